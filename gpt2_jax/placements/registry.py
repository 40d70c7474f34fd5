"""What each connection supports, by name, and registration of connections and presets.

The classes are in `model.residual` and `nn.norms`. A module outside the package adds a connection
with `model.residual.register`, a norm with `nn.norms.register_norm`, and a preset with
`register_preset`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2_jax.placements.axes import AXES, BLOCK_SITES, QK_SITES, SCALES, Placement
from gpt2_jax.placements.catalogue import PRESETS

IN_BRANCH = ("pre", "out")
BRANCH_SCALES = ("branch_scale", "input_scale")


@dataclass(frozen=True)
class Supports:
    """What a connection supports; anything else is refused. By default, what is in the sublayer.

    Attributes:
      sites: norm sites of the block. scales: which of `skip_scale`, `branch_scale`, `input_scale`.
      required_sites: norm sites that every sublayer must have.
      whole_block: whether it combines all sublayers at once, so that the skip's scale and the norm
        sites outside the sublayers must be the same for all of them.
      positions_at_mlp: whether positions can be added between sublayers (`positions_at=mlp`).
      multi_stream: whether it keeps more than one stream.
      n_streams: whether it uses the axis `n_streams`: the number of streams or, if `splits_stream`,
        of parts of one stream.
      max_streams: the largest `n_streams`; 0 for no limit.
      rank, depth_groups, gate_bias, data_dependent_init: whether it uses the axis of this name.
      shapes_by_depth: whether the shapes of a block's parameters depend on the block's number.
      unit_stream: whether it normalizes the stream to length 1, so that its scale has no effect.
      final_norm: whether it needs a final norm even if the last sublayer ends in a norm.
      cross: whether it is defined for blocks with cross-attention.
    """

    sites: tuple[str, ...] = IN_BRANCH
    scales: tuple[str, ...] = BRANCH_SCALES
    required_sites: tuple[str, ...] = ()
    whole_block: bool = False
    positions_at_mlp: bool = False
    multi_stream: bool = False
    n_streams: bool = False
    splits_stream: bool = False
    max_streams: int = 0
    rank: bool = False
    depth_groups: bool = False
    gate_bias: bool = False
    data_dependent_init: bool = False
    shapes_by_depth: bool = False
    unit_stream: bool = False
    final_norm: bool = False
    cross: bool = True


AND_POST = (*IN_BRANCH, "post")
# Sites inside a sublayer, which every connection supports.
IN_BRANCH_SITES = (*IN_BRANCH, "inner", *QK_SITES)
_TWO_STREAMS = Supports(
    sites=AND_POST, required_sites=("post",), multi_stream=True, final_norm=True
)
_HYPER = Supports(multi_stream=True, n_streams=True)
SUPPORTS: dict[str, Supports] = {
    "plain": Supports(
        sites=BLOCK_SITES, scales=SCALES, positions_at_mlp=True, data_dependent_init=True
    ),
    "parallel": Supports(sites=BLOCK_SITES, scales=SCALES, whole_block=True),
    "parallel_shared": Supports(
        sites=BLOCK_SITES, scales=SCALES, whole_block=True, required_sites=("pre",)
    ),
    "b2t": Supports(sites=AND_POST, required_sites=("post",)),
    "gpas": Supports(sites=BLOCK_SITES, scales=SCALES),
    "gru": Supports(gate_bias=True),
    "highway": Supports(gate_bias=True),
    "laurel_rw": Supports(),
    "laurel_lr": Supports(rank=True),
    "laurel_pa": Supports(multi_stream=True),
    "slerp": Supports(scales=("input_scale",), unit_stream=True),
    "ddl": Supports(scales=("input_scale",), required_sites=("pre",)),
    "orthogonal": Supports(),
    "residual_dual": _TWO_STREAMS,
    "siamesenorm": _TWO_STREAMS,
    "hyper_static": _HYPER,
    "hyper": _HYPER,
    "frac": Supports(n_streams=True, splits_stream=True),
    "mhc": _HYPER,
    "muddformer": Supports(
        scales=("branch_scale",),
        required_sites=("pre",),
        multi_stream=True,
        shapes_by_depth=True,
        cross=False,  # its sums over depth feed the q, k and v of self-attention
    ),
    "attention_residuals": Supports(multi_stream=True, depth_groups=True),
    # It mixes all permutations of its streams: 720 for 6 streams.
    "mhc_lite": replace(_HYPER, max_streams=6),
}


def supports_cross(placement: Placement) -> bool:
    """Returns whether a placement is defined for blocks with cross-attention."""
    square = placement.shaped_attention or placement.identity_values
    return SUPPORTS[placement.connection].cross and not square


def declare(name: str, supports: Supports) -> None:
    """Declares what the connection `placement.connection=name` supports.

    Raises:
      ValueError: if the name is taken.
    """
    if name in SUPPORTS:
        raise ValueError(f"the connection {name!r} is registered twice")
    SUPPORTS[name] = supports


def register_preset(name: str, placement: Placement) -> None:
    """Adds a preset as `placement.preset=name`.

    Raises:
      ValueError: if the name is taken.
      UserError: if the value of an axis is invalid.
    """
    for axis, field in AXES.items():
        field.validated(getattr(placement, axis), f"the preset {name!r}: {axis}")
    if name in PRESETS:
        raise ValueError(f"the preset {name!r} is registered twice")
    PRESETS[name] = placement
