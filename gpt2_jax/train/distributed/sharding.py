"""How parameters and the train state are laid out on a mesh: one table of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath, tree_map_with_path

from gpt2_jax.model.definition import ModelDef, is_info, param_name
from gpt2_jax.model.gather import Gather, Part
from gpt2_jax.nn.param import ParamInfo, Role
from gpt2_jax.train.distributed.mesh import DATA, FSDP, TENSOR

# The mesh axis of a parameter's axis, by its name. Every other axis may be split over `fsdp`.
RULES = {"heads": TENSOR, "mlp": TENSOR, "vocab": TENSOR}
# Vectors and small matrices are not split over `fsdp`: gathering them costs more than it saves.
SHARDED = frozenset({Role.MATRIX, Role.EMBEDDING, Role.POSITION, Role.HEAD})
# Only used in the compute dtype, so they can be gathered in it.
CAST = frozenset({Role.MATRIX, Role.HEAD})

SCALE = "scale"  # the field of `moments.Quantized`

Keys = tuple[str, ...]  # of a parameter, in the model's nested dict


def param_spec(info: ParamInfo, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns how a parameter is split.

    `tensor` splits the axis that `RULES` names, and `fsdp` the longest other axis of a large
    parameter, never that of the layers. An axis that the mesh does not divide stays whole.
    """
    entries: list[str | None] = [None] * len(shape)
    first = len(shape) - len(info.axes)  # after the axis of layers
    divides = lambda name, axis: mesh.shape[name] > 1 and shape[axis] % mesh.shape[name] == 0
    for axis, name in enumerate(info.axes, first):
        if RULES.get(name or "") == TENSOR and TENSOR not in entries and divides(TENSOR, axis):
            entries[axis] = TENSOR
    free = [i for i in range(first, len(shape)) if entries[i] is None and divides(FSDP, i)]
    if free and info.role in SHARDED:
        entries[max(free, key=lambda axis: shape[axis])] = FSDP
    return PartitionSpec(*entries)


@dataclass(frozen=True)
class Layout:
    """How a model is laid out on a mesh.

    Attributes:
      specs: how each parameter is split. stacked: the parameters whose first axis is layers.
    """

    mesh: Mesh
    model_def: ModelDef
    specs: dict[Keys, PartitionSpec]
    stacked: frozenset[Keys]

    def keys(self, path: KeyPath) -> Keys | None:
        """Returns the parameter whose keys a path in a tree ends in, None if there is none."""
        keys = param_keys(path)
        return next((keys[i:] for i in range(len(keys)) if keys[i:] in self.specs), None)

    def spec(self, path: KeyPath) -> PartitionSpec:
        """Returns how the array at a path of a tree of parameters or of a train state is split.

        If the path ends in the keys of a parameter, it is split as the parameter is; the scales of
        a quantized one have a single column. All other arrays are whole on every device.
        """
        keys = self.keys(path)
        if keys is None:
            return PartitionSpec()
        if getattr(path[-1], "name", None) == SCALE:
            return PartitionSpec(*self.specs[keys][:-1], None)
        return self.specs[keys]

    def shardings(self, tree: Any) -> Any:
        """Returns the shardings of a tree of parameters or of a train state."""
        return tree_map_with_path(lambda path, _: NamedSharding(self.mesh, self.spec(path)), tree)

    def abstract(self, tree: Any) -> Any:
        """Returns the shapes, types and shardings of a tree of parameters or of a train state."""
        shape = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(shape, tree, self.shardings(tree))

    def specs_of(self, tree: Any, mesh_axis: str) -> Any:
        """Returns how a tree is split over one axis of the mesh."""
        only = lambda spec: PartitionSpec(*(name if name == mesh_axis else None for name in spec))
        return tree_map_with_path(lambda path, _: only(self.spec(path)), tree)

    @property
    def on_device(self) -> ModelDef:
        """The model for use inside a `shard_map`, where each device has parts of parameters."""
        n_parts = self.mesh.shape[FSDP]
        if n_parts * self.mesh.shape[TENSOR] == 1:
            return self.model_def

        def part(path: KeyPath, info: ParamInfo) -> Part:
            entries = tuple(self.spec(path))
            axis = entries.index(FSDP) - len(entries) if FSDP in entries else None
            dtype = self.model_def.cfg.dtype if info.role in CAST else "float32"
            tensor = PartitionSpec(*(name if name == TENSOR else None for name in entries))
            return Part(axis, n_parts, dtype, tensor)

        parts = tree_map_with_path(part, self.model_def.infos, is_leaf=is_info)
        return replace(self.model_def, gather=Gather(FSDP, parts))

    @property
    def whole(self) -> list[str]:
        """The names of large parameters that neither `fsdp` nor `tensor` divides."""
        if self.mesh.shape[FSDP] * self.mesh.shape[TENSOR] == 1:
            return []
        return [
            param_name(path)
            for path, info in _leaves(self.model_def.infos)
            if info.role in SHARDED and not any(self.spec(path))
        ]


def make_layout(model_def: ModelDef, mesh: Mesh) -> Layout:
    """Returns how a model is laid out on a mesh."""
    specs, stacked = {}, set()
    shapes = jax.tree.leaves(model_def.shapes)
    for (path, info), x in zip(_leaves(model_def.infos), shapes, strict=True):
        specs[param_keys(path)] = param_spec(info, x.shape, mesh)
        if len(x.shape) > len(info.axes):
            stacked.add(param_keys(path))
    return Layout(mesh, model_def, specs, frozenset(stacked))


@dataclass(frozen=True)
class LayerSplit:
    """Divides stacked matrices among the devices of a mesh, each matrix whole on one device."""

    layout: Layout

    def apply(self, function: Callable[..., Any], like: Any, *trees: Any) -> Any:
        """Returns `function(*trees)`, computed by each device for its share of the layers.

        Args:
          like: a tree with the structure of the result: parameters.
          trees: parameters or optimizer states, which hold matrices by layers.
        """
        mesh, layout = self.layout.mesh, self.layout
        specs = lambda tree: tree_map_with_path(lambda path, _: layout.spec(path), tree)
        share = lambda path, x: self._share(path, x) if layout.keys(path) else x

        def local(*trees: Any) -> Any:
            result = function(*tree_map_with_path(share, trees))
            return tree_map_with_path(self._join, result, like)

        sharded = jax.shard_map(
            local, mesh=mesh, in_specs=specs(trees), out_specs=specs(like), check_vma=False
        )
        return sharded(*trees)

    def _share(self, path: KeyPath, x: jax.Array) -> jax.Array:
        """Returns this device's layers of an array, from its part of all layers."""
        for axis, cut, n_layers in self._steps(path, x):
            size = self.layout.mesh.shape[axis]
            if n_layers > 1:
                x = jnp.pad(x, [(0, -n_layers % size), *[(0, 0)] * (x.ndim - 1)])
                if cut is None:
                    x = _own_part(x, axis, 0, size)
                else:
                    x = lax.all_to_all(x, axis, split_axis=0, concat_axis=cut, tiled=True)
            elif cut is not None:
                x = lax.all_gather(x, axis, axis=cut, tiled=True)
        return x

    def _join(self, path: KeyPath, x: jax.Array, like: jax.Array) -> jax.Array:
        """Returns this device's part of all layers, from its layers; the inverse of `_share`."""
        for axis, cut, n_layers in reversed(self._steps(path, like)):
            size = self.layout.mesh.shape[axis]
            if n_layers > 1:
                if cut is None:
                    x = lax.all_gather(x, axis, axis=0, tiled=True)
                else:
                    x = lax.all_to_all(x, axis, split_axis=cut, concat_axis=0, tiled=True)
                x = x[:n_layers]
            elif cut is not None:
                x = _own_part(x, axis, cut, size)
        return x

    def _steps(self, path: KeyPath, x: jax.Array) -> list[tuple[str, int | None, int]]:
        """Returns each mesh axis, the axis of x that it cuts, and the layers that it divides.

        With a single layer left there is nothing to divide, and the matrix is joined instead.
        """
        keys = self.layout.keys(path)
        assert keys is not None
        n_layers = x.shape[0] if keys in self.layout.stacked else 1
        entries, steps = list(self.layout.specs[keys]), []
        for axis in (FSDP, TENSOR, DATA):
            if (size := self.layout.mesh.shape[axis]) > 1:
                cut = entries.index(axis) if axis in entries else None
                steps.append((axis, cut, n_layers))
                n_layers = -(-n_layers // size)
        return steps


def _own_part(x: jax.Array, mesh_axis: str, axis: int, n_parts: int) -> jax.Array:
    """Returns this device's part of an array that all devices of a mesh axis hold."""
    size = x.shape[axis] // n_parts
    return lax.dynamic_slice_in_dim(x, lax.axis_index(mesh_axis) * size, size, axis)


def param_keys(path: KeyPath) -> Keys:
    """Returns the keys of a parameter in the model's nested dict, from its path in any tree."""
    return tuple(key.key for key in path if isinstance(key, DictKey))


def _leaves(infos: Any) -> list[tuple[KeyPath, ParamInfo]]:
    return jax.tree_util.tree_leaves_with_path(infos, is_leaf=is_info)
