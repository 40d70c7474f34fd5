"""Matrix products of rounded inputs with float32 results, and the products of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


class _Rule(NamedTuple):
    """The static part of a `product`."""

    equation: str
    dtype: jnp.dtype
    results: tuple[jnp.dtype, jnp.dtype]  # of the gradients of a and b


def product(equation: str, a: jax.Array, b: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns einsum(equation, a, b) in float32, of a and b rounded to `dtype`.

    In the backward pass, the gradient of the result is rounded to `dtype` as well, and each of the
    two products has the dtype of the input that it is the gradient of. With autodiff, float32
    gradients would make these products float32, which is up to twice as slow.

    Args:
      equation: without repeated letters in a term; each letter is in two of the three terms, or
        in all three (batch).
    """
    rule = _Rule(equation, jnp.dtype(dtype), (jnp.dtype(a.dtype), jnp.dtype(b.dtype)))
    return _product(rule, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(rule: _Rule, a: jax.Array, b: jax.Array) -> jax.Array:
    return _forward(rule, a, b)[0]


def _forward(
    rule: _Rule, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    a, b = _rounded(a, rule.dtype), _rounded(b, rule.dtype)
    y = jnp.einsum(rule.equation, a, b, preferred_element_type=jnp.float32)
    return (_on_cpu(lax.optimization_barrier, y) if a.dtype == jnp.bfloat16 else y), (a, b)


def _backward(
    rule: _Rule, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    (a, b), g = saved, _rounded(g, rule.dtype)
    inputs, out = rule.equation.split("->")
    left, right = inputs.split(",")
    return (
        _contract(f"{out},{right}->{left}", g, b, rule.results[0]),
        _contract(f"{left},{out}->{right}", a, g, rule.results[1]),
    )


_product.defvjp(_forward, _backward)

# On a CPU, XLA has fast products of bfloat16 only for float32 results, and if in memory the summed
# axis is the last of the first input, and axes are in order. Otherwise it computes in float32 or,
# if it has merged a product with a transpose of its result, fails. Hence layouts of inputs are
# constrained, which costs a copy of those that are transposed, and a barrier follows each product.


def _rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    x = x.astype(dtype)
    return _on_cpu(_in_order, x) if dtype == jnp.bfloat16 else x


def _in_order(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _on_cpu(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, cpu=function, default=lambda x: x)


def _contract(equation: str, x: jax.Array, y: jax.Array, result: jnp.dtype) -> jax.Array:
    plain = partial(jnp.einsum, equation, preferred_element_type=result)
    if x.dtype != jnp.bfloat16:
        return plain(x, y)
    return lax.platform_dependent(
        x, y, cpu=partial(_contract_on_cpu, equation, result), default=plain
    )


def _contract_on_cpu(equation: str, result: jnp.dtype, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns einsum(equation, x, y), with a transposed copy of an input if XLA needs it."""
    terms, out = equation.split("->")
    left, right = terms.split(",")
    (summed,) = set(left) - set(out)
    batch = [c for c in out if c in left and c in right]
    if out[len(batch)] in right:  # the result of dot_general starts with axes of the first input
        left, right, x, y = right, left, y, x
    if left[-1] != summed:
        order = left.replace(summed, "") + summed
        x, left = _in_order(x.transpose([left.index(c) for c in order])), order
    axes = lambda letters: tuple(tuple(name.index(c) for c in letters) for name in (left, right))
    dimensions: Any = (axes(summed), axes(batch))
    y_32 = lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
    return lax.optimization_barrier(y_32).astype(result)


@cache
def has_fast_bfloat16() -> bool:
    """Returns whether this machine's CPU multiplies bfloat16 faster than float32.

    That is, whether Linux reports AVX512-BF16 or AMX.
    """
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not BFLOAT16_FLAGS.isdisjoint(flags.split())
