"""Weights in 8 bits for evaluation and sampling: W ≈ s q with integers q from -127 to 127.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.1, without an offset. Each output of a matrix, and
each row of an embedding, has its own scale s. Activations, biases, norms and position vectors keep
their type.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax.model.definition import ModelDef, is_info
from gpt2_jax.model.stack import Params
from gpt2_jax.nn.param import ParamInfo, Role

LEVELS = 127  # of each sign
CODES, SCALE = "codes", "scale"
TABLES = (Role.EMBEDDING, Role.HEAD)


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8Model(ModelDef):
    """A model whose matrices and embeddings are stored in 8 bits.

    Each of them is {"codes": q, "scale": s} in the parameter tree.

    Attributes:
      plain: the model with weights in float32.
    """

    plain: ModelDef

    def bind(self, params: Params) -> Any:
        """Returns the module with weights s q, float32."""
        return self.plain.bind(self.restored(params))

    def restored(self, params: Params) -> Params:
        """Returns the parameters of `plain`, or of the same part of it."""
        if not isinstance(params, dict):
            return params
        if params.keys() == {CODES, SCALE}:
            return params[CODES].astype(jnp.float32) * params[SCALE]
        return {name: self.restored(value) for name, value in params.items()}


def in_int8(model_def: ModelDef, params: Params) -> tuple[Int8Model, Params]:
    """Returns a model and its parameters with matrices and embeddings in 8 bits."""
    is_coded = lambda info: info.role in (Role.MATRIX, *TABLES)

    def coded(info: ParamInfo, x: jax.Array) -> Any:
        return _quantized(info, x) if is_coded(info) else x

    def info_of(info: ParamInfo, x: jax.Array) -> Any:
        whole = ParamInfo(Role.SCALAR, (None,) * x.ndim)  # not divided among devices
        return {CODES: whole, SCALE: whole} if is_coded(info) else info

    def over(function: Any) -> Any:
        return lambda params: jax.tree.map(function, model_def.infos, params, is_leaf=is_info)

    stored = jax.jit(over(coded))(params)
    given = {f.name: getattr(model_def, f.name) for f in fields(ModelDef)}
    given |= {"infos": over(info_of)(params), "shapes": jax.eval_shape(lambda: stored)}
    return Int8Model(**given, plain=replace(model_def)), stored


def n_bytes(params: Params) -> int:
    """Returns the bytes of all parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(params))


def _quantized(info: ParamInfo, x: jax.Array) -> dict[str, jax.Array]:
    axes = info.in_axes
    if info.role in TABLES:
        assert info.width_axis is not None
        axes = (info.width_axis,)
    largest = jnp.abs(x).max(axes, keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest) / LEVELS
    return {CODES: jnp.round(x / scale).astype(jnp.int8), SCALE: scale}
