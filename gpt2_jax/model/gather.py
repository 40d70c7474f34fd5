"""Fully sharded parameters: each device keeps a part of each, and gathers it where it is used.

Zhao et al. 2023 (PyTorch FSDP, 2304.11277), with one unit per block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True, eq=False)
class Gather:
    """Returns whole parameters from the parts of all devices, inside a `shard_map`.

    Attributes:
      mesh_axis: name of the mesh axis over which parameters are split. n_parts: its size.
      axes: nested dict like the model's parameters: the split axis as a negative index, 0 for a
        parameter that every device has as a whole.
      dtypes: nested dict of the dtypes that parameters are gathered in.
    """

    mesh_axis: str
    n_parts: int
    axes: dict[str, Any]
    dtypes: dict[str, Any]

    def block(self, stack: str, params: dict[str, Any]) -> dict[str, Any]:
        """Returns the parameters of one block of a stack, from its parts."""
        return self._whole(params, self.axes["blocks"][stack], self.dtypes["blocks"][stack])

    def outside(self, params: dict[str, Any], stacks: set[str]) -> dict[str, Any]:
        """Returns all parameters, with those outside the stacks gathered."""
        blocks = params["blocks"]
        kept = {name: blocks[name] for name in stacks}
        pick = lambda tree: {**tree, "blocks": _without(tree["blocks"], stacks)}
        whole = self._whole(pick(params), pick(self.axes), pick(self.dtypes))
        return {**whole, "blocks": whole["blocks"] | kept}

    def parts(self, shapes: dict[str, Any]) -> dict[str, Any]:
        """Returns the shapes of one device's parts, as tuples."""

        def part(shape: Any, axis: int) -> tuple[int, ...]:
            sizes = list(shape.shape)
            if axis:
                sizes[axis] //= self.n_parts
            return tuple(sizes)

        return jax.tree.map(part, shapes, self.axes)

    def _whole(self, params: Any, axes: Any, dtypes: Any) -> Any:
        gather = lambda x, axis, dtype: (
            gathered(x, axis % x.ndim, dtype, self.mesh_axis) if axis else x
        )
        return jax.tree.map(gather, params, axes, dtypes)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gathered(x: jax.Array, axis: int, dtype: str, mesh_axis: str) -> jax.Array:
    """Returns the devices' parts, joined along an axis, in a dtype.

    The gradient is the sum over devices in float32, each device's part of it: a reduce-scatter.
    """
    return lax.all_gather(x.astype(dtype), mesh_axis, axis=axis, tiled=True)


def _gathered_forward(
    x: jax.Array, axis: int, dtype: str, mesh_axis: str
) -> tuple[jax.Array, None]:
    return gathered(x, axis, dtype, mesh_axis), None


def _gathered_backward(
    axis: int, dtype: str, mesh_axis: str, saved: None, g: jax.Array
) -> tuple[jax.Array]:
    del dtype, saved
    g = g.astype(jnp.float32)
    return (lax.psum_scatter(g, mesh_axis, scatter_dimension=axis, tiled=True),)


gathered.defvjp(_gathered_forward, _gathered_backward)


# What layers do with a weight before its product; cheap to repeat.
REPEATED = frozenset(("convert_element_type", "reshape", "slice", "squeeze", "transpose"))


def all_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy for `jax.checkpoint`: saves all but gathered weights, which are gathered again."""
    inner = params.get("call_jaxpr")  # of a custom_vjp, such as `gathered`
    is_gather = inner is not None and any(e.primitive.name == "all_gather" for e in inner.eqns)
    return primitive.name not in REPEATED and not is_gather


def _without(tree: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in names}
