"""LayerNorm as two GPU kernels, each of which reads its inputs once.

XLA reads x three times in the forward pass (mean, variance, result) and reads x and dy twice in the
backward pass, for dx and for the gradients of gain and bias.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

TILE_ROWS = 2  # rows that a program holds at a time
TILES = 32  # of one program in the backward pass, which adds up gradients of gain and bias

Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(eps: float, x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns gain (x - mean) / sqrt(var + eps) + bias over the last axis, in the dtype of x.

    Statistics and sums are float32. The gradient keeps x and two numbers per row.

    Args:
      x: (..., D). gain, bias: (D), float32.
    """
    return _forward(eps, x, gain, bias)[0]


def _forward(eps: float, x: jax.Array, gain: jax.Array, bias: jax.Array) -> tuple[jax.Array, Saved]:
    d = x.shape[-1]
    n = x.size // d
    row_statistic = jax.ShapeDtypeStruct((n,), jnp.float32)
    y_ND, mean_N, inverse_sigma_N = pl.pallas_call(
        partial(_forward_kernel, eps=eps),
        out_shape=(jax.ShapeDtypeStruct((n, d), x.dtype), row_statistic, row_statistic),
        grid=(pl.cdiv(n, TILE_ROWS),),
        compiler_params=_compiler_params(d),
        name="layer_norm_forward",
    )(x.reshape(n, d), gain, bias)
    return y_ND.reshape(x.shape), (x, mean_N, inverse_sigma_N, gain)


def _forward_kernel(
    x_ref: Any,
    gain_ref: Any,
    bias_ref: Any,
    y_ref: Any,
    mean_ref: Any,
    inverse_sigma_ref: Any,
    *,
    eps: float,
) -> None:
    n, d = x_ref.shape
    row_R = pl.program_id(0) * TILE_ROWS + jnp.arange(TILE_ROWS)
    column_C = jnp.arange(pl.next_power_of_2(d))
    in_rows, in_columns = row_R < n, column_C < d
    here, valid_RC = (row_R[:, None], column_C[None, :]), in_rows[:, None] & in_columns[None, :]
    x_RC = _load(x_ref, here, valid_RC)
    mean_R = x_RC.sum(1) / d
    centred_RC = jnp.where(in_columns[None, :], x_RC - mean_R[:, None], 0.0)
    inverse_sigma_R = lax.rsqrt((centred_RC * centred_RC).sum(1) / d + eps)
    gain_C, bias_C = _load(gain_ref, column_C, in_columns), _load(bias_ref, column_C, in_columns)
    y_RC = centred_RC * inverse_sigma_R[:, None] * gain_C[None, :] + bias_C[None, :]
    plgpu.store(y_ref.at[here], y_RC.astype(y_ref.dtype), mask=valid_RC)
    plgpu.store(mean_ref.at[row_R], mean_R, mask=in_rows)
    plgpu.store(inverse_sigma_ref.at[row_R], inverse_sigma_R, mask=in_rows)


def _backward(eps: float, saved: Saved, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del eps
    x, mean_N, inverse_sigma_N, gain = saved
    d = x.shape[-1]
    n = x.size // d
    programs = pl.cdiv(n, TILES * TILE_ROWS)
    partial_sum = jax.ShapeDtypeStruct((programs, d), jnp.float32)
    dx_ND, dgain_PD, dbias_PD = pl.pallas_call(
        _backward_kernel,
        out_shape=(jax.ShapeDtypeStruct((n, d), x.dtype), partial_sum, partial_sum),
        grid=(programs,),
        compiler_params=_compiler_params(d),
        name="layer_norm_backward",
    )(x.reshape(n, d), mean_N, inverse_sigma_N, gain, dy.reshape(n, d))
    return dx_ND.reshape(x.shape), dgain_PD.sum(0), dbias_PD.sum(0)


def _backward_kernel(
    x_ref: Any,
    mean_ref: Any,
    inverse_sigma_ref: Any,
    gain_ref: Any,
    dy_ref: Any,
    dx_ref: Any,
    dgain_ref: Any,
    dbias_ref: Any,
) -> None:
    """With n = (x - mean)/sigma and g = gain dy: dx = (g - mean(g) - n mean(g n)) / sigma."""
    n, d = x_ref.shape
    program = pl.program_id(0)
    column_C = jnp.arange(pl.next_power_of_2(d))
    in_columns = column_C < d
    gain_C = _load(gain_ref, column_C, in_columns)

    def tile(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row_R = (program * TILES + i) * TILE_ROWS + jnp.arange(TILE_ROWS)
        in_rows = row_R < n
        here, valid_RC = (row_R[:, None], column_C[None, :]), in_rows[:, None] & in_columns[None, :]
        x_RC, dy_RC = _load(x_ref, here, valid_RC), _load(dy_ref, here, valid_RC)
        mean_R = _load(mean_ref, row_R, in_rows)
        inverse_sigma_R = _load(inverse_sigma_ref, row_R, in_rows)
        n_RC = (x_RC - mean_R[:, None]) * inverse_sigma_R[:, None]
        g_RC = dy_RC * gain_C[None, :]
        mean_g_R, mean_gn_R = g_RC.sum(1) / d, (g_RC * n_RC).sum(1) / d
        means_RC = mean_g_R[:, None] + n_RC * mean_gn_R[:, None]
        dx_RC = inverse_sigma_R[:, None] * (g_RC - means_RC)
        plgpu.store(dx_ref.at[here], dx_RC.astype(dx_ref.dtype), mask=valid_RC)
        return sums[0] + dy_RC * n_RC, sums[1] + dy_RC

    zeros = jnp.zeros((TILE_ROWS, column_C.size), jnp.float32)
    dgain_RC, dbias_RC = lax.fori_loop(0, TILES, tile, (zeros, zeros))
    plgpu.store(dgain_ref.at[program, column_C], dgain_RC.sum(0), mask=in_columns)
    plgpu.store(dbias_ref.at[program, column_C], dbias_RC.sum(0), mask=in_columns)


layer_norm.defvjp(_forward, _backward)


def _compiler_params(d: int) -> plgpu.CompilerParams:
    """Returns the number of warps, such that a thread holds about 16 elements of a tile."""
    elements = TILE_ROWS * pl.next_power_of_2(d)
    return plgpu.CompilerParams(num_warps=max(1, min(16, elements // (32 * 16))))


def _load(ref: Any, at: Any, valid: jax.Array) -> jax.Array:
    """Returns elements in float32, 0 where not valid."""
    return plgpu.load(ref.at[at], mask=valid, other=0.0).astype(jnp.float32)
