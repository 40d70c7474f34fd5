"""What each connection supports, by name, and how connections, norms and presets are added.

`model.residual` has a class for each connection, and `nn.norms` for each norm. A module outside the
package adds a connection by `model.residual.register`, a norm by `nn.norms.register_norm`, and a
preset by `register_preset`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.placements.axes import AXES, BLOCK_SITES, QK_SITES, Placement
from gpt2_jax.placements.catalogue import PRESETS

IN_BRANCH = ("pre", "out")
BRANCH_SCALES = ("branch_scale", "input_scale")
SCALES = ("skip_scale", *BRANCH_SCALES)


@dataclass(frozen=True)
class Supports:
    """What a connection supports; anything else is refused. By default, what is in the sublayer.

    Attributes:
      sites: norm sites of the block. scales: which of `skip_scale`, `branch_scale`, `input_scale`.
      needs: sites that it requires.
      whole_block: whether it combines all sublayers at once, so that the sites outside a sublayer,
        and the skip's scale, must be the same for all.
      places: whether positions can be added between the sublayers (`positions_at=mlp`).
      several: whether it keeps more than one stream.
      streams: whether it uses `n_streams`, the number of streams, or of parts of one (splits).
      most_streams: the largest `n_streams`; 0: any.
      low_rank: whether it uses `rank`. groups: whether it uses `depth_groups`.
      gates: whether it uses `gate_bias`.
      measured: whether it supports `data_dependent_init`.
      by_depth: whether the shapes of a block's parameters depend on its number.
      unit: whether it normalizes the stream to length 1, so that its size has no effect.
      final: whether it has a final norm whatever the last sublayer ends in.
    """

    sites: tuple[str, ...] = IN_BRANCH
    scales: tuple[str, ...] = BRANCH_SCALES
    needs: tuple[str, ...] = ()
    whole_block: bool = False
    places: bool = False
    several: bool = False
    streams: bool = False
    most_streams: int = 0
    splits: bool = False
    low_rank: bool = False
    groups: bool = False
    gates: bool = False
    measured: bool = False
    by_depth: bool = False
    unit: bool = False
    final: bool = False


AND_POST = (*IN_BRANCH, "post")
# Those inside a sublayer, whatever the connection.
IN_BRANCH_SITES = (*IN_BRANCH, "inner", *QK_SITES)
SUPPORTS: dict[str, Supports] = {
    "plain": Supports(sites=BLOCK_SITES, scales=SCALES, places=True, measured=True),
    "parallel": Supports(sites=BLOCK_SITES, scales=SCALES, whole_block=True),
    "parallel_shared": Supports(sites=BLOCK_SITES, scales=SCALES, whole_block=True, needs=("pre",)),
    "b2t": Supports(sites=AND_POST, needs=("post",)),
    "gpas": Supports(sites=BLOCK_SITES, scales=SCALES),
    "gru": Supports(gates=True),
    "highway": Supports(gates=True),
    "laurel_rw": Supports(),
    "laurel_lr": Supports(low_rank=True),
    "laurel_pa": Supports(several=True),
    "slerp": Supports(scales=("input_scale",), unit=True),
    "ddl": Supports(scales=("input_scale",), needs=("pre",)),
    "orthogonal": Supports(),
    "residual_dual": Supports(sites=AND_POST, needs=("post",), several=True, final=True),
    "siamesenorm": Supports(sites=AND_POST, needs=("post",), several=True, final=True),
    "hyper_static": Supports(several=True, streams=True),
    "hyper": Supports(several=True, streams=True),
    "frac": Supports(streams=True, splits=True),
    "mhc": Supports(several=True, streams=True),
    "muddformer": Supports(scales=("branch_scale",), needs=("pre",), several=True, by_depth=True),
    "attention_residuals": Supports(several=True, groups=True),
    "mhc_lite": Supports(  # mixes all permutations of its streams: 720 for 6 of them
        several=True, streams=True, most_streams=6
    ),
}


def declare(name: str, supports: Supports) -> None:
    """Adds a connection, as `placement.connection=name`.

    Raises:
      ValueError: if the name is taken.
    """
    if name in SUPPORTS:
        raise ValueError(f"the connection {name!r} is registered twice")
    SUPPORTS[name] = supports


def register_preset(name: str, placement: Placement) -> None:
    """Adds a preset, as `placement.preset=name`.

    Raises:
      ValueError: if the name is taken.
      UserError: if an axis has a value that is not valid.
    """
    for axis, field in AXES.items():
        field.validated(getattr(placement, axis), f"the preset {name!r}: {axis}")
    if name in PRESETS:
        raise ValueError(f"the preset {name!r} is registered twice")
    PRESETS[name] = placement
