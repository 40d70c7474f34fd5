"""Head and cross-entropy; the gradient of the logits is computed in the forward pass."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.nn.products import product

WARPS = 16
CHUNK = 2048  # logits that a program loads at a time
# Above it, exponentials are computed again, relative to the largest logit. It is far below the
# largest float32 and bfloat16 (3e38), so that products with the exponentials stay finite.
LARGEST_SUM = 1e20
SMALLEST_FACTOR = 1e-6  # of the softmax in the gradient with a z-loss, so that s / a stays finite

Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class HeadLoss(NamedTuple):
    """What is static in `head_loss`.

    Attributes:
      n_vocab: the number of logits; the head may have more rows.
      dtype: what the inputs of matrix products are rounded to.
      z_loss: the weight of log^2 Z, as in `nn.loss.cross_entropy`.
    """

    n_vocab: int
    dtype: jnp.dtype
    z_loss: float = 0.0


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def head_loss(
    kind: HeadLoss, x_ND: jax.Array, head_VD: jax.Array, targets_N: jax.Array
) -> jax.Array:
    """Returns the `cross_entropy` of targets over the first `n_vocab` logits x head^T, float32 (N).

    Logits l are float32, whatever the dtype of x and head. With e = exp(l - l[target]) and
    s = sum(e), the loss is log(s), and its gradient is (e - s onehot(target)) / s. A kernel reads
    l once and writes e - s onehot(target) in `kind.dtype`. The division by s, and the product
    with the incoming gradient of each row, are applied to the small results and factors of the
    two matrix products that follow. XLA would read l three times: for its maximum, the sum and the
    gradient. Without a gradient, as in evaluation, no kernel is used.

    With a z-loss, log^2 Z is added, and the gradient is (a e - s onehot(target)) / s with
    a = 1 + 2 z log(Z). The kernel then returns s / a in place of s, so that the rest is unchanged.

    Targets must be in [0, n_vocab); the kernel does not check.
    """
    logits_NV = product("ND,VD->NV", x_ND, head_VD, kind.dtype)
    return cross_entropy(logits_NV[:, : kind.n_vocab], targets_N, kind.z_loss)


def _forward(
    kind: HeadLoss, x_ND: jax.Array, head_VD: jax.Array, targets_N: jax.Array
) -> tuple[jax.Array, Saved]:
    logits_NV = product("ND,VD->NV", x_ND, head_VD, kind.dtype)
    nll_N, sum_N, d_NV = rows_loss(kind, logits_NV, targets_N)
    return nll_N, (d_NV, sum_N, x_ND, head_VD)


def _backward(kind: HeadLoss, saved: Saved, g_N: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    d_NV, sum_N, x_ND, head_VD = saved
    factor_N1 = (g_N / sum_N)[:, None]
    dx_ND = factor_N1 * product("NV,VD->ND", d_NV, head_VD, kind.dtype)
    scaled_ND = (factor_N1 * x_ND).astype(kind.dtype)
    multiply = partial(jnp.einsum, preferred_element_type=head_VD.dtype)
    return dx_ND.astype(x_ND.dtype), multiply("NV,ND->VD", d_NV, scaled_ND), None


head_loss.defvjp(_forward, _backward)


def rows_loss(
    kind: HeadLoss, logits_NV: jax.Array, targets_N: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the loss of each row, s, and e - s onehot(target) in `kind.dtype`, as in `head_loss`.

    If s would exceed `LARGEST_SUM`, e and s are relative to the largest logit instead.
    """
    row = jax.ShapeDtypeStruct(targets_N.shape, jnp.float32)
    return pl.pallas_call(
        partial(_kernel, n_vocab=kind.n_vocab, z_loss=kind.z_loss),
        out_shape=(row, row, jax.ShapeDtypeStruct(logits_NV.shape, kind.dtype)),
        grid=(targets_N.size,),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS),
        name="cross_entropy",
    )(logits_NV, targets_N)


def _kernel(
    logits_ref: Any,
    targets_ref: Any,
    nll_ref: Any,
    sum_ref: Any,
    d_ref: Any,
    *,
    n_vocab: int,
    z_loss: float,
) -> None:
    row = pl.program_id(0)
    target = targets_ref[row]
    target_logit = logits_ref[row, target]
    n_columns = logits_ref.shape[1]
    n_chunks = pl.cdiv(n_columns, CHUNK)

    def load(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        column_C = i * CHUNK + jnp.arange(CHUNK)
        here = logits_ref.at[row, column_C]
        return column_C, plgpu.load(here, mask=column_C < n_vocab, other=-jnp.inf)

    def largest_logit() -> jax.Array:
        larger = lambda i, largest_C: jnp.maximum(largest_C, load(i)[1])
        return lax.fori_loop(0, n_chunks, larger, jnp.full(CHUNK, -jnp.inf)).max()

    def write_exponentials(reference: jax.Array) -> jax.Array:
        """Writes e except for the target, and returns the sum of all."""

        def chunk(i: jax.Array, sum_C: jax.Array) -> jax.Array:
            column_C, logits_C = load(i)
            e_C = jnp.exp2((logits_C - reference) * math.log2(math.e))
            mask_C = (column_C < n_columns) & (column_C != target)
            plgpu.store(d_ref.at[row, column_C], e_C.astype(d_ref.dtype), mask=mask_C)
            return sum_C + e_C

        return lax.fori_loop(0, n_chunks, chunk, jnp.zeros(CHUNK, jnp.float32)).sum()

    def again(_: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reference = largest_logit()
        return reference, write_exponentials(reference)

    first = target_logit, write_exponentials(target_logit)
    # Runs at most once: relative to the largest logit, the sum is at most `n_vocab`.
    reference, total = lax.while_loop(lambda found: found[1] > LARGEST_SUM, again, first)
    nll = jnp.log(total) + (reference - target_logit)
    if z_loss:
        log_z = jnp.log(total) + reference
        nll += z_loss * log_z * log_z
        factor = 1.0 + 2.0 * z_loss * log_z
        total /= jnp.where(jnp.abs(factor) < SMALLEST_FACTOR, SMALLEST_FACTOR, factor)
    nll_ref[row] = nll
    sum_ref[row] = total
    d_ref[row, target] = (jnp.exp(target_logit - reference) - total).astype(d_ref.dtype)
