"""FLOPs of a traced program: matrix products and attention kernels, as they are executed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.extend


class Flops(NamedTuple):
    """FLOPs of one run on all devices.

    Attributes:
      products: of matrix products, recomputed ones included.
      attention: of attention kernels, half of which causality saves.
    """

    products: int
    attention: int


def executed_flops(jaxpr: jax.extend.core.Jaxpr) -> Flops:
    """Returns the FLOPs of a jaxpr; those of kernels of this project are negligible.

    Of a branch, the more expensive alternative counts. A while loop counts as one iteration.
    """
    products, attention = 0, 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            products += _product(eqn)
        elif name.startswith("dot_product_attention"):
            attention += _attention(eqn)
        elif name == "pallas_call":  # of these, only attention has products
            grid = [n for n in eqn.params["grid_mapping"].grid if isinstance(n, int)]
            attention += math.prod(grid) * executed_flops(eqn.params["jaxpr"]).products // 2
        else:
            inner = [executed_flops(x) for x in _inner(eqn.params)]
            if not inner:
                continue
            n = _repeats(eqn)
            if name == "cond":
                inner = [max(inner)]
            products += n * sum(x.products for x in inner)
            attention += n * sum(x.attention for x in inner)
    return Flops(products, attention)


def _product(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)


def _attention(eqn: Any) -> int:
    """The forward pass has two products, the backward pass five."""
    batch, time, heads, width = eqn.invars[0].aval.shape
    n_products = 5 if "bwd" in eqn.primitive.name else 2
    return n_products * 2 * batch * heads * time * time * width // 2


def _inner(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, jax.extend.core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, jax.extend.core.Jaxpr):
                found.append(one)
    return found


def _repeats(eqn: Any) -> int:
    """Returns how often an equation's inner program runs, on all devices of a `shard_map`."""
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":
        shape = eqn.params["mesh"].shape
        return math.prod(shape[axis] for axis in eqn.params["newly_manual_axes"])
    return 1
