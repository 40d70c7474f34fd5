"""AdamW and Muon over stacked parameters, told what each one is by its role.

A stacked gain is two-dimensional and a stacked matrix three: what is decayed, and what Muon takes,
is therefore read from the role that the model wrote on a parameter, never from its ndim.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from gpt2_jax.model.parts import Rates, Role
from gpt2_jax.model.structure import Info

DECAYED: dict[Role, bool] = {
    Role.MATRIX: True,
    Role.MAP: True,
    Role.EMBEDDING: True,
    Role.POSITION: True,
    Role.HEAD: True,
    Role.GAIN: False,
    Role.BIAS: False,
    Role.SCALAR: False,
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
    plain = _by_name(config, infos)
    is_info = lambda x: isinstance(x, Info)
    if all(info.rates == Rates() for info in jax.tree.leaves(infos, is_leaf=is_info)):
        return plain
    return optax.chain(_divided(infos, "eps"), plain, _multiplied(infos, "lr"))


def _by_name(config: ConfigDict, infos: dict[str, Any]) -> optax.GradientTransformation:
    decays = _map(_decay, infos)
    match config.optimizer.name:
        case "adamw":
            return _adamw(config, decays)
        case "muon":
            labels = _map(lambda i: "muon" if i.role == Role.MATRIX else "adamw", infos)
            return optax.partition(
                {"muon": _muon(config, infos), "adamw": _adamw(config, _without_matrices(infos))},
                labels,
            )
    raise ValueError(config.optimizer.name)


def _decay(info: Info) -> float:
    """Returns the factor on a parameter's weight decay."""
    return info.rates.decay if DECAYED[info.role] else 0.0


def _divided(infos: dict[str, Any], name: str) -> optax.GradientTransformation:
    """Divides gradients by a factor: to Adam that is an epsilon larger by it, and nothing else."""
    factors = _map(lambda info: getattr(info.rates, name), infos)
    return optax.stateless(lambda grads, _: jax.tree.map(lambda g, f: g / f, grads, factors))


def _multiplied(infos: dict[str, Any], name: str) -> optax.GradientTransformation:
    factors = _map(lambda info: getattr(info.rates, name), infos)
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))


def _adamw(config: ConfigDict, decays: Any) -> optax.GradientTransformation:
    """Adam with decoupled decay (Loshchilov & Hutter 2017), a factor on it for each parameter."""
    opt = config.optimizer

    def decay(updates: Any, params: Any) -> Any:
        add = lambda u, p, factor: u + opt.weight_decay * factor * p if factor else u
        return jax.tree.map(add, updates, params, decays)

    adam = optax.scale_by_adam(opt.b1, opt.b2, opt.eps)
    return optax.chain(adam, optax.stateless(decay), optax.scale(-1.0))


def _muon(config: ConfigDict, infos: dict[str, Any]) -> optax.GradientTransformation:
    opt = config.optimizer
    is_info = lambda x: isinstance(x, Info)
    leaves = jax.tree.leaves(infos, is_leaf=is_info)
    (factor,) = {info.rates.decay for info in leaves if info.role == Role.MATRIX}
    return muon(
        1.0,
        beta=opt.momentum,
        weight_decay=opt.weight_decay * factor,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=_map(_dimension_numbers, infos),
    )


def _dimension_numbers(info: Info) -> MuonDimensionNumbers | optax.MaskedNode:
    """Axes in neither tuple (layers; q, k, v) are batch axes: each holds matrices of its own."""
    if info.role != Role.MATRIX:
        return optax.MaskedNode()
    return MuonDimensionNumbers(info.in_axes, info.out_axes)


def _without_matrices(infos: dict[str, Any]) -> Any:
    return _map(lambda i: optax.MaskedNode() if i.role == Role.MATRIX else _decay(i), infos)


def _map(f: Any, infos: dict[str, Any]) -> Any:
    return jax.tree.map(f, infos, is_leaf=lambda x: isinstance(x, Info))
