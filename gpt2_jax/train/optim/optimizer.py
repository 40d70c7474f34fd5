"""AdamW and Muon for stacked parameters, selected by each parameter's role.

A stacked gain has two dimensions and a stacked matrix three, so the number of dimensions cannot
decide which parameters get weight decay or Muon. The roles in the metadata do.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from gpt2_jax.config.sections import OptimizerConfig
from gpt2_jax.model.definition import ModelDef, is_info
from gpt2_jax.nn.param import HyperScales, ParamInfo, Role
from gpt2_jax.train.distributed.sharding import LayerSplit
from gpt2_jax.train.optim.frozen_params import drop_frozen, frozen_rows
from gpt2_jax.train.optim.moments import with_stored_moments

DECAYED: dict[Role, bool] = {
    Role.MATRIX: True,
    Role.MAP: True,
    Role.EMBEDDING: True,
    Role.POSITION: True,
    Role.HEAD: True,
    Role.ADAPTER: True,
    Role.GAIN: False,
    Role.BIAS: False,
    Role.SCALAR: False,
}
# Muon's updates get the RMS of AdamW's, so that both share a learning rate and a weight decay
# (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).
MUON_RMS = 0.2


def make_optimizer(
    opt: OptimizerConfig, infos: dict[str, Any], layers: LayerSplit | None = None
) -> optax.GradientTransformation:
    """Returns the transformation from clipped gradients to updates at learning rate 1.

    The caller multiplies the updates by the learning rate.

    Args:
      infos: tree of `ParamInfo` of the trainable parameters; `ModelDef.infos` if all are.
      layers: divides Muon's matrices among devices; None if each device computes all of them.

    Raises:
      KeyError: if a parameter's role has no rule.
    """
    plain = _by_name(opt, infos, layers)
    if opt.moments_dtype != "float32":
        plain = with_stored_moments(plain, opt.moments_dtype, infos)
    if all(info.scales == HyperScales() for info in jax.tree.leaves(infos, is_leaf=is_info)):
        return plain
    return optax.chain(_divided(infos, "eps"), plain, _multiplied(infos, "lr"))


def trainable_infos(config: OptimizerConfig, model_def: ModelDef) -> dict[str, Any]:
    """Returns the infos of all parameters that are not wholly frozen."""
    return drop_frozen(model_def.infos, frozen_rows(config, model_def))


def _by_name(
    opt: OptimizerConfig, infos: dict[str, Any], layers: LayerSplit | None
) -> optax.GradientTransformation:
    decays = _map(_decay, infos)
    match opt.name:
        case "adamw":
            return _adamw(opt, decays)
        case "muon":
            labels = _map(lambda i: "muon" if i.role == Role.MATRIX else "adamw", infos)
            matrices = _muon(opt, infos)
            return optax.partition(
                {
                    "muon": matrices if layers is None else _by_layers(matrices, layers),
                    "adamw": _adamw(opt, _without_matrices(infos)),
                },
                labels,
            )
    raise ValueError(opt.name)


def _decay(info: ParamInfo) -> float:
    return info.scales.decay if DECAYED[info.role] else 0.0


def _divided(infos: dict[str, Any], name: str) -> optax.GradientTransformation:
    """Divides gradients by a factor, which is equivalent to multiplying Adam's epsilon by it."""
    factors = _map(lambda info: getattr(info.scales, name), infos)
    return optax.stateless(lambda grads, _: jax.tree.map(lambda g, f: g / f, grads, factors))


def _multiplied(infos: dict[str, Any], name: str) -> optax.GradientTransformation:
    factors = _map(lambda info: getattr(info.scales, name), infos)
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))


def _adamw(opt: OptimizerConfig, decays: Any) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017), scaled per parameter."""

    def decay(updates: Any, params: Any) -> Any:
        add = lambda u, p, factor: u + opt.weight_decay * factor * p if factor else u
        return jax.tree.map(add, updates, params, decays)

    adam = optax.scale_by_adam(opt.b1, opt.b2, opt.eps)
    return optax.chain(adam, optax.stateless(decay), optax.scale(-1.0))


def _muon(opt: OptimizerConfig, infos: dict[str, Any]) -> optax.GradientTransformation:
    leaves = jax.tree.leaves(infos, is_leaf=is_info)
    factors = {info.scales.decay for info in leaves if info.role == Role.MATRIX}
    (factor,) = factors or {1.0}  # all matrices may be frozen
    return muon(
        1.0,
        beta=opt.momentum,
        weight_decay=opt.weight_decay * factor,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=_map(_dimension_numbers, infos),
    )


def _by_layers(
    plain: optax.GradientTransformation, layers: LayerSplit
) -> optax.GradientTransformation:
    """Computes the updates of each layer on one of the devices, and the state as it is laid out.

    Every matrix has its own Newton-Schulz iteration, which would otherwise be repeated on every
    device, or cut across matrices.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        directions = lambda *share: plain.update(*share)[0]
        _, new_state = plain.update(updates, state, params)  # XLA drops its unused iterations
        return layers.apply(directions, updates, updates, state, params), new_state

    return optax.GradientTransformation(plain.init, update)


def _dimension_numbers(info: ParamInfo) -> MuonDimensionNumbers | optax.MaskedNode:
    """Returns a matrix's input and output axes; all others (layers; q, k, v) are batch axes."""
    if info.role != Role.MATRIX:
        return optax.MaskedNode()
    return MuonDimensionNumbers(info.in_axes, info.out_axes)


def _without_matrices(infos: dict[str, Any]) -> Any:
    return _map(lambda i: optax.MaskedNode() if i.role == Role.MATRIX else _decay(i), infos)


def _map(f: Any, infos: dict[str, Any]) -> Any:
    return jax.tree.map(f, infos, is_leaf=is_info)
