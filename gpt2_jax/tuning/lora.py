"""Low-rank updates of matrices (LoRA), as a transform of a model's parameters.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3: W' = W + (α/r) A B.
Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", eq. 5: each column of W' (the
weights of one output) is then scaled to a trained length m, initially that of W.

The matrices of a fused kernel, q, k and v, have separate updates. In the parameter tree, `lora` is
next to `kernel`: {"kernel": W, "lora": {"q": {"a": A, "b": B}}} for `qkv`, and {"kernel": W,
"lora": {"a": A, "b": B}} for a single matrix. A has the input axes of W and B its output axes, each
with the axis of layers first; r is the last axis of A and the second of B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gpt2_jax.model.definition import ModelDef, is_info, param_name
from gpt2_jax.model.gather import Gather
from gpt2_jax.model.stack import Params
from gpt2_jax.nn.param import Init, ParamInfo, Role

KERNEL, LORA = "kernel", "lora"
PARTS = ("q", "k", "v")  # along the axis `qkv`
SMALLEST = 1e-12  # lower bound on the length of a column


@dataclass(frozen=True)
class Matrix:
    """A matrix in a stacked kernel that can have a low-rank update.

    Attributes:
      keys: of the kernel's layer in the parameter tree, such as ("blocks", "all", "mlp",
        "sublayer", "up").
      part: its entry along the axis `qkv`; None if the kernel is a single matrix.
      info: of the kernel. shape: of the kernel, with the axis of layers.
    """

    keys: tuple[str, ...]
    part: int | None
    info: ParamInfo
    shape: tuple[int, ...]

    @property
    def lora_keys(self) -> tuple[str, ...]:
        """The keys of its update in the parameter tree."""
        return (*self.keys, LORA, *(() if self.part is None else (PARTS[self.part],)))

    @property
    def name(self) -> str:
        """Its name, such as `blocks.all.attn.sublayer.qkv.q` or `blocks.all.mlp.sublayer.up`."""
        return ".".join((*self.keys, *self.lora_keys[len(self.keys) + 1 :]))

    @property
    def n_rows(self) -> int:
        """The number of layers in the stack."""
        return self.shape[0]

    @property
    def qkv_axis(self) -> int:
        """The axis of q, k and v in the kernel."""
        return 1 + self.info.axes.index("qkv")

    def axes(self, indices: tuple[int, ...]) -> tuple[str | None, ...]:
        """Returns the names of the kernel's axes with these negative indices."""
        return tuple(self.info.axes[i] for i in indices)

    def sizes(self, indices: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the kernel's axes with these negative indices."""
        return tuple(self.shape[i] for i in indices)


def matrices(model_def: ModelDef) -> Iterator[Matrix]:
    """Yields the matrices of a model's blocks."""
    infos = jax.tree_util.tree_leaves_with_path(model_def.infos, is_leaf=is_info)
    shapes = jax.tree.leaves(model_def.shapes)
    for (path, info), shape in zip(infos, shapes, strict=True):
        keys = tuple(key.key for key in path)
        if model_def.stack_path(path) is None or info.role != Role.MATRIX or keys[-1] != KERNEL:
            continue
        n_parts = shape.shape[1 + info.axes.index("qkv")] if "qkv" in info.axes else None
        for part in [None] if n_parts is None else range(n_parts):
            yield Matrix(keys[:-1], part, info, shape.shape)


def added_infos(matrix: Matrix, magnitude: bool) -> dict[str, ParamInfo]:
    """Returns the infos of A, B and, with `magnitude`, m."""
    ins, outs = (matrix.axes(i) for i in (matrix.info.in_axes, matrix.info.out_axes))
    infos = {
        "a": ParamInfo(Role.ADAPTER, (*ins, None)),
        "b": ParamInfo(Role.ADAPTER, (None, *outs)),
    }
    return infos | ({"m": ParamInfo(Role.GAIN, outs)} if magnitude else {})


def added_shapes(matrix: Matrix, rank: int, magnitude: bool) -> dict[str, Any]:
    """Returns the shapes of A, B and, with `magnitude`, m."""
    n, info = matrix.n_rows, matrix.info
    ins, outs = matrix.sizes(info.in_axes), matrix.sizes(info.out_axes)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    shapes = {"a": shape(n, *ins, rank), "b": shape(n, rank, *outs)}
    return shapes | ({"m": shape(n, *outs)} if magnitude else {})


def initial(matrix: Matrix, rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """Returns the initial A and B = 0.

    A is normal with the variance of peft's uniform values, 1/(3 n) for n inputs.
    """
    shapes = added_shapes(matrix, rank, magnitude=False)
    n_in = math.prod(matrix.sizes(matrix.info.in_axes))
    a = Init(key).normal(f"lora.{matrix.name}", shapes["a"].shape, (3 * n_in) ** -0.5)
    return {"a": a, "b": jnp.zeros(shapes["b"].shape)}


def lengths(matrix: Matrix, params: Params) -> jax.Array:
    """Returns the length of each column of the matrix, with the axis of layers first."""
    kernel = subtree(params, matrix.keys)[KERNEL]
    w = kernel if matrix.part is None else jnp.take(kernel, matrix.part, matrix.qkv_axis)
    n_in = matrix.info.n_in
    return jnp.sqrt(jnp.square(w).sum(tuple(range(1, 1 + n_in))))


def merge(
    params: Params, updated: tuple[Matrix, ...], scale: float, gather: Gather | None
) -> Params:
    """Returns parameters without updates, which are added to the kernels.

    Args:
      scale: α/r. gather: if set, kernels are one device's parts, and updates are whole.
    """
    out = jax.tree.map(lambda x: x, params)  # copies the dicts
    for keys, group in by_kernel(updated).items():
        node = subtree(out, keys)
        del node[LORA]
        merged = {}
        for matrix in group:
            added = subtree(params, matrix.lora_keys)
            merged[matrix.part] = _merged(matrix, node[KERNEL], added, scale, gather)
        if None in merged:
            node[KERNEL] = merged[None]
            continue
        axis = group[0].qkv_axis
        parts = lax.split(node[KERNEL], [1] * node[KERNEL].shape[axis], axis)
        parts = [
            jnp.expand_dims(merged[i], axis) if i in merged else part
            for i, part in enumerate(parts)
        ]
        node[KERNEL] = jnp.concatenate(parts, axis)
    return out


def by_kernel(updated: tuple[Matrix, ...]) -> dict[tuple[str, ...], list[Matrix]]:
    """Returns the updated matrices of each kernel, by its layer's keys."""
    out: dict[tuple[str, ...], list[Matrix]] = {}
    for matrix in updated:
        out.setdefault(matrix.keys, []).append(matrix)
    return out


def _merged(
    matrix: Matrix,
    kernel: jax.Array,
    added: dict[str, jax.Array],
    scale: float,
    gather: Gather | None,
) -> jax.Array:
    """Returns W' of one matrix, or one device's part of it."""
    w = kernel
    if matrix.part is not None:
        w = lax.index_in_dim(kernel, matrix.part, matrix.qkv_axis, keepdims=False)
    ins, outs = matrix.info.in_axes, matrix.info.out_axes
    own = _own_part(matrix, gather)
    a, b = own(added["a"], ins, 1), own(added["b"], outs, 2)
    i, o = "ij"[: len(ins)], "xy"[: len(outs)]
    w = w + scale * jnp.einsum(f"l{i}r,lr{o}->l{i}{o}", a, b)
    if "m" not in added:
        return w
    squares = jnp.square(w).sum(tuple(range(1, 1 + len(ins))), keepdims=True)
    if gather is not None and _split_axis(matrix, gather) in ins:
        squares = lax.psum(squares, gather.mesh_axis)
    # The length counts as a constant in the gradient (Liu et al. 2024, section 4.3).
    length = lax.stop_gradient(jnp.sqrt(jnp.maximum(squares, SMALLEST**2)))
    m = own(added["m"], outs, 1)
    return w * (m.reshape(length.shape) / length)


def _split_axis(matrix: Matrix, gather: Gather) -> int | None:
    """Returns the axis of the kernel that the devices divide, as a negative index."""
    return subtree(gather.parts, matrix.keys)[KERNEL].axis


def _own_part(matrix: Matrix, gather: Gather | None) -> Any:
    """Returns a function of (array, its axes in the kernel, the first of them in the array).

    It returns this device's part of the array if the kernel is divided along one of these axes.
    """

    def own(x: jax.Array, axes: tuple[int, ...], first: int) -> jax.Array:
        axis = None if gather is None else _split_axis(matrix, gather)
        if gather is None or axis not in axes:
            return x
        at = first + axes.index(axis)
        size = x.shape[at] // subtree(gather.parts, matrix.keys)[KERNEL].n_parts
        return lax.dynamic_slice_in_dim(x, lax.axis_index(gather.mesh_axis) * size, size, at)

    return own


def subtree(tree: Any, keys: tuple[str, ...]) -> Any:
    """Returns the part of a nested dict at some keys."""
    for key in keys:
        tree = tree[key]
    return tree


def with_added(tree: Any, added: dict[tuple[str, ...], Any]) -> Any:
    """Returns a nested dict with entries added at tuples of keys."""
    out = jax.tree.map(lambda x: x, tree, is_leaf=is_info)
    for (*keys, last), value in added.items():
        node = out
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = value
    return out


def target_name(name: str) -> str | None:
    """Returns the name of the matrix that a parameter updates, None if it is not an update.

    `blocks.0.attn.sublayer.qkv.lora.q.a` updates `blocks.0.attn.sublayer.qkv.q`.
    """
    parts = name.split(".")
    if LORA not in parts:
        return None
    i = parts.index(LORA)
    return ".".join((*parts[:i], *parts[i + 1 : -1]))


def all_names(model_def: ModelDef) -> list[tuple[str, ParamInfo]]:
    """Returns the name and the info of every parameter, of each block of a stack."""
    infos = jax.tree_util.tree_leaves_with_path(model_def.infos, is_leaf=is_info)
    return [
        (name, info) for path, info in infos for _, name in model_def.row_names(param_name(path))
    ]
