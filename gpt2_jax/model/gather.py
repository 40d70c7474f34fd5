"""Fully sharded parameters: each device keeps a part of each, and gathers it where it is used.

Zhao et al. 2023 (PyTorch FSDP, 2304.11277), with one unit per block. With `model.remat=none` the
gathered weights are kept for the backward pass; otherwise it gathers them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec


@dataclass(frozen=True)
class Part:
    """What one device has of a parameter.

    Attributes:
      axis: the axis that is split, as a negative index; None if the device has all of it.
      n_parts: the number of parts along it.
      dtype: what the parameter is gathered in.
      spec: how XLA splits other axes of it.
    """

    axis: int | None
    n_parts: int
    dtype: str
    spec: PartitionSpec


@dataclass(frozen=True, eq=False)
class Gather:
    """Returns whole parameters from the parts of all devices, inside a `shard_map`.

    Attributes:
      mesh_axis: name of the mesh axis over which parameters are split.
      parts: nested dict of `Part` like the model's parameters.
    """

    mesh_axis: str
    parts: dict[str, Any]

    def at(self, path: tuple[str, ...]) -> Gather:
        """Returns the same for the parameters at a path."""
        return replace(self, parts=reduce(getitem, path, self.parts)) if path else self

    def block(self, stack: str, params: dict[str, Any]) -> dict[str, Any]:
        """Returns the parameters of one block of a stack, from its parts."""
        return self._whole(params, self.parts["blocks"][stack])

    def outside(self, params: dict[str, Any], stacks: set[str]) -> dict[str, Any]:
        """Returns all parameters, with those outside the stacks gathered."""
        blocks = params["blocks"]
        kept = {name: blocks[name] for name in stacks}
        others = lambda tree: {
            **tree,
            "blocks": {name: value for name, value in tree["blocks"].items() if name not in stacks},
        }
        whole = self._whole(others(params), others(self.parts))
        return {**whole, "blocks": whole["blocks"] | kept}

    def shapes(self, shapes: dict[str, Any]) -> dict[str, Any]:
        """Returns the shapes of one device's parts, as tuples."""

        def local(shape: Any, part: Part) -> tuple[int, ...]:
            sizes = list(shape.shape)
            if part.axis is not None:
                sizes[part.axis] //= part.n_parts
            return tuple(sizes)

        return jax.tree.map(local, shapes, self.parts)

    def _whole(self, params: Any, parts: Any) -> Any:
        gather = lambda x, part: x if part.axis is None else gathered(x, part, self.mesh_axis)
        return jax.tree.map(gather, params, parts)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(x: jax.Array, part: Part, mesh_axis: str) -> jax.Array:
    """Returns the devices' parts joined along their axis.

    The gradient is the sum over devices in float32, each device's part of it: a reduce-scatter.
    """
    assert part.axis is not None
    axis = part.axis % x.ndim
    join = lambda x: lax.all_gather(x, mesh_axis, axis=axis, tiled=True)
    return _on_slices(join, x.astype(part.dtype), part)


def _gathered_forward(x: jax.Array, part: Part, mesh_axis: str) -> tuple[jax.Array, None]:
    return gathered(x, part, mesh_axis), None


def _gathered_backward(part: Part, mesh_axis: str, saved: None, g: jax.Array) -> tuple[jax.Array]:
    del saved
    assert part.axis is not None
    axis = part.axis % g.ndim

    def add(g: jax.Array) -> jax.Array:
        # Along an axis whose parts are not multiples of a TPU's tile, such as 96 of 768, XLA would
        # reduce the whole array on every device; along a new first axis it does not.
        by_part = g.reshape(*g.shape[:axis], part.n_parts, -1, *g.shape[axis + 1 :])
        return lax.psum_scatter(jnp.moveaxis(by_part, axis, 0), mesh_axis, scatter_dimension=0)

    return (_on_slices(add, g.astype(jnp.float32), part),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def _on_slices(collective: Callable[[jax.Array], jax.Array], x: jax.Array, part: Part) -> jax.Array:
    """Applies a collective to what a device has of an array that XLA splits.

    XLA would first join the slices: it does not divide collectives that are written out.
    """
    spec = tuple(part.spec)[-x.ndim :]  # a block has no axis of layers
    names = {name for name in spec if name is not None}
    if not names:
        return collective(x)
    return jax.shard_map(
        collective,
        in_specs=PartitionSpec(*spec),
        out_specs=PartitionSpec(*spec),
        axis_names=names,
        check_vma=False,
    )(x)
