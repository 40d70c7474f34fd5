"""Converts parameters between Hugging Face's tensors and ours, by the table of a family.

Their blocks are separate tensors; ours are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gpt2_jax.errors import UserError, counted
from gpt2_jax.interop.families.family import LAYER, Family, Row, Table
from gpt2_jax.interop.layouts import Shape, Tensors, their_shape, to_ours, to_theirs
from gpt2_jax.model.definition import ModelDef

EXACT = (np.dtype("float32"), np.dtype("float16"))  # exact in float32, like bfloat16


def to_huggingface(table: Table, model_def: ModelDef, params: Any) -> Tensors:
    """Returns the float32 tensors of the model with these parameters.

    Raises:
      KeyError: if the model has parameters that are not in the table.
    """
    flat = dict(_leaves(jax.device_get(params)))
    out: Tensors = {}
    for row in table.rows:
        prefix = "" if row.outside else table.prefix
        value = _without_padding(model_def, row.path, flat.pop(row.path))
        for layer, one in enumerate(value if row.stacked else [value]):
            for name, tensor in zip(row.names, to_theirs(row.layout, one), strict=True):
                out[prefix + name.replace(LAYER, str(layer))] = np.ascontiguousarray(tensor)
    if flat:
        raise KeyError(f"no tensor name for {', '.join(flat)}")
    for copy, original in table.saved_copies.items():
        out[copy] = out[original]
    for name, shape in table.zeros.items():
        out[name] = np.zeros(shape, np.float32)
    return out


def normalize(family: Family, tensors: Tensors) -> Tensors:
    """Returns the tensors without buffers, under their present names in the base model.

    Raises:
      UserError: if two of them have the same name.
    """
    out: Tensors = {}
    for name, value in tensors.items():
        plain = name.removeprefix(family.prefix)
        for pattern, replacement in family.renamed:
            plain = re.sub(pattern, replacement, plain)
        if plain in out:
            raise UserError(f"the checkpoint has {plain} twice, with and without {family.prefix}")
        if not family.buffers.match(plain):
            out[plain] = value
    return out


def from_huggingface(
    family: Family, table: Table, model_def: ModelDef, tensors: Tensors
) -> tuple[Any, list[str]]:
    """Returns our float32 parameters from tensors of `normalize`, and the names of unused ones.

    Raises:
      UserError: naming a tensor that is missing or unexpected, or has a wrong shape, type or value.
    """
    remaining = dict(tensors)
    for copy, original in table.copies.items():
        if copy in remaining:
            _remove_copy(remaining, copy, original)
    shapes = dict(_leaves(model_def.shapes))
    flat = {
        row.path: _take_row(remaining, row, _real_shape(model_def, row.path, shapes[row.path]))
        for row in table.rows
    }
    unused = sorted(name for name in remaining if family.unused.match(name))
    if unexpected := sorted(remaining.keys() - {*unused}):
        raise UserError(
            f"the checkpoint has {counted(len(unexpected), 'tensor')} that "
            f"{table.architecture} does not have: {', '.join(unexpected[:3])}; is it a different "
            "model?"
        )
    leaves = [_with_padding(flat[path], shape.shape) for path, shape in shapes.items()]
    return jax.tree.unflatten(jax.tree.structure(model_def.shapes), leaves), unused


def _remove_copy(tensors: Tensors, copy: str, original: str) -> None:
    value = tensors.pop(copy)
    if not np.array_equal(value, tensors.setdefault(original, value)):
        advice = '; set "tie_word_embeddings": false in config.json if it is separate'
        is_matrix = value.ndim > 1
        raise UserError(f"{copy} differs from {original}, which it must equal{advice * is_matrix}")


def _take_row(remaining: Tensors, row: Row, shape: Shape) -> np.ndarray:
    """Removes the tensors of a row and returns the parameter of this shape that they make up."""
    if not row.stacked:
        return _take_all(remaining, row, row.names, shape)
    layers = [
        _take_all(remaining, row, [n.replace(LAYER, str(layer)) for n in row.names], shape[1:])
        for layer in range(shape[0])
    ]
    return np.stack(layers)


def _take_all(
    remaining: Tensors, row: Row, names: list[str] | tuple[str, ...], shape: Shape
) -> np.ndarray:
    theirs = their_shape(row.layout, shape)
    return to_ours(row.layout, [_take(remaining, name, theirs) for name in names], shape)


def _take(remaining: Tensors, name: str, shape: Shape) -> np.ndarray:
    """Removes a tensor and returns it as float32, after checking its shape, type and values."""
    value = remaining.pop(name, None)
    if value is None:
        raise UserError(f"the checkpoint has no tensor {name}; config.json requires shape {shape}")
    if value.shape != shape:
        raise UserError(f"tensor {name} has shape {value.shape}, but config.json requires {shape}")
    if value.dtype not in EXACT and value.dtype.name != "bfloat16":
        raise UserError(
            f"tensor {name} is {value.dtype}; only float32, float16 and bfloat16 are supported"
        )
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"tensor {name} has values that are not finite (NaN or infinity)")
    return value


def _vocab_axes(model_def: ModelDef) -> dict[str, int]:
    """Returns the axis of each parameter that the vocabulary may pad, by path."""
    infos = [(path, info.axes) for path, info in _leaves(model_def.infos) if "vocab" in info.axes]
    return {path: axes.index("vocab") - len(axes) for path, axes in infos}


def _real_shape(model_def: ModelDef, path: str, shape: Any) -> Shape:
    """Returns the shape of a parameter without vocabulary padding."""
    sizes = list(shape.shape)
    if (axis := _vocab_axes(model_def).get(path)) is not None:
        sizes[axis] = model_def.cfg.vocab_size
    return tuple(sizes)


def _without_padding(model_def: ModelDef, path: str, value: np.ndarray) -> np.ndarray:
    shape = _real_shape(model_def, path, value)
    return value[tuple(slice(size) for size in shape)]


def _with_padding(value: np.ndarray, shape: Shape) -> np.ndarray:
    widths = [(0, size - has) for size, has in zip(shape, value.shape, strict=True)]
    return np.pad(value, widths)


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    is_leaf = lambda x: not isinstance(x, dict)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf
