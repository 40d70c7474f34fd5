"""AdamW and Muon over stacked parameters, told what each one is by its role.

A stacked gain is two-dimensional and a stacked matrix three: what is decayed, and what Muon takes,
is therefore read from the role that the model wrote on a parameter, never from its ndim.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from gpt2_jax.model.parts import Role
from gpt2_jax.model.structure import Info

DECAYED: dict[Role, bool] = {
    Role.MATRIX: True,
    Role.EMBEDDING: True,
    Role.POSITION: True,
    Role.HEAD: True,
    Role.GAIN: False,
    Role.BIAS: False,
}
# Updates as large as AdamW's usual ones, so that one rate and one decay serve both
# (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).
MUON_RMS = 0.2


def make_optimizer(config: ConfigDict, infos: dict[str, Any]) -> optax.GradientTransformation:
    """Returns the transformation from clipped gradients to updates at learning rate 1.

    The caller multiplies the updates by the rate, which thus stays plain data.

    Args:
      infos: tree of `Info`, as `Structure.infos`.

    Raises:
      KeyError: if a parameter has a role that is in no rule.
    """
    decayed = _map(lambda info: DECAYED[info.role], infos)
    match config.optimizer.name:
        case "adamw":
            return _adamw(config, decayed)
        case "muon":
            labels = _map(lambda i: "muon" if i.role == Role.MATRIX else "adamw", infos)
            return optax.partition(
                {"muon": _muon(config, infos), "adamw": _adamw(config, _without_matrices(infos))},
                labels,
            )
    raise ValueError(config.optimizer.name)


def _adamw(config: ConfigDict, decayed: Any) -> optax.GradientTransformation:
    opt = config.optimizer
    return optax.adamw(1.0, opt.b1, opt.b2, opt.eps, weight_decay=opt.weight_decay, mask=decayed)


def _muon(config: ConfigDict, infos: dict[str, Any]) -> optax.GradientTransformation:
    opt = config.optimizer
    return muon(
        1.0,
        beta=opt.momentum,
        weight_decay=opt.weight_decay,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=_map(_dimension_numbers, infos),
    )


def _dimension_numbers(info: Info) -> MuonDimensionNumbers | optax.MaskedNode:
    """Axes in neither tuple (layers; q, k, v) are batch axes: each holds matrices of its own."""
    if info.role != Role.MATRIX:
        return optax.MaskedNode()
    return MuonDimensionNumbers(info.in_axes, info.out_axes)


def _without_matrices(infos: dict[str, Any]) -> Any:
    return _map(lambda i: optax.MaskedNode() if i.role == Role.MATRIX else DECAYED[i.role], infos)


def _map(f: Any, infos: dict[str, Any]) -> Any:
    return jax.tree.map(f, infos, is_leaf=lambda x: isinstance(x, Info))
