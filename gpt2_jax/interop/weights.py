"""Hugging Face's tensor names and shapes for GPT-2, and ours: one table, read in both directions.

Their Conv1D keeps a matrix as (in, out), as we do, with heads flattened into one axis; their blocks
are numbered where ours are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gpt2_jax.errors import UserError
from gpt2_jax.model.structure import Structure

Tensors = dict[str, np.ndarray]

# Path in our tree: name in theirs.
OUTSIDE_BLOCKS = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln_f.gain": "ln_f.weight",
    "ln_f.bias": "ln_f.bias",
}
IN_BLOCKS = {
    "attn.pre.gain": "ln_1.weight",
    "attn.pre.bias": "ln_1.bias",
    "attn.sublayer.qkv.kernel": "attn.c_attn.weight",
    "attn.sublayer.qkv.bias": "attn.c_attn.bias",
    "attn.sublayer.out.kernel": "attn.c_proj.weight",
    "attn.sublayer.out.bias": "attn.c_proj.bias",
    "mlp.pre.gain": "ln_2.weight",
    "mlp.pre.bias": "ln_2.bias",
    "mlp.sublayer.up.kernel": "mlp.c_fc.weight",
    "mlp.sublayer.up.bias": "mlp.c_fc.bias",
    "mlp.sublayer.down.kernel": "mlp.c_proj.weight",
    "mlp.sublayer.down.bias": "mlp.c_proj.bias",
}
HEAD = "lm_head.weight"
PREFIX = "transformer."
# Constants that older versions of transformers saved beside the weights.
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")
EXACT = (np.dtype("float32"), np.dtype("float16"))  # bfloat16 besides, which numpy only borrows


def to_huggingface(structure: Structure, params: Any) -> Tensors:
    """Returns the tensors of a `GPT2LMHeadModel` with these parameters, float32.

    Raises:
      KeyError: if the model has parameters that GPT-2 has not.
    """
    flat = dict(_leaves(jax.device_get(params)))
    out: Tensors = {}
    for path, name in OUTSIDE_BLOCKS.items():
        out[PREFIX + name] = flat.pop(path)
    for path, name in IN_BLOCKS.items():
        stacked = flat.pop(f"blocks.{path}")
        for layer, value in enumerate(stacked):
            out[f"{PREFIX}h.{layer}.{name}"] = value.reshape(_flat_shape(path, value.shape))
    if not structure.cfg.tie_head:
        out[HEAD] = flat.pop("head")
    if flat:
        raise KeyError(f"no name for {', '.join(flat)}")
    for name in {PREFIX + "wte.weight", HEAD} & set(out):
        out[name] = out[name][: structure.cfg.vocab_size]
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def from_huggingface(structure: Structure, tensors: Tensors) -> Any:
    """Returns our parameters, float32, from the tensors of any GPT-2 checkpoint.

    Raises:
      UserError: naming the tensor that is missing, left over, of another shape or another type.
    """
    given = _plain_names(tensors, tied=structure.cfg.tie_head)
    shapes = dict(_leaves(structure.shapes))
    flat: dict[str, np.ndarray] = {}
    for path, name in OUTSIDE_BLOCKS.items():
        flat[path] = _take(given, name, _their_shape(structure, path, shapes[path].shape))
    for path, name in IN_BLOCKS.items():
        shape = shapes[f"blocks.{path}"].shape
        layers = [
            _take(given, f"h.{layer}.{name}", _flat_shape(path, shape[1:])).reshape(shape[1:])
            for layer in range(shape[0])
        ]
        flat[f"blocks.{path}"] = np.stack(layers)
    if not structure.cfg.tie_head:
        flat["head"] = _take(given, HEAD, _their_shape(structure, "head", shapes["head"].shape))
    if given:
        raise UserError(
            f"the checkpoint has {len(given)} tensors that GPT-2 has no place for: "
            f"{', '.join(sorted(given)[:3])}; is it another kind of model?"
        )
    for path in {"wte", "head"} & set(flat):
        rows = shapes[path].shape[0] - len(flat[path])
        flat[path] = np.pad(flat[path], ((0, rows), (0, 0)))
    leaves = [flat[path] for path, _ in _leaves(structure.shapes)]
    return jax.tree.unflatten(jax.tree.structure(structure.shapes), leaves)


def _plain_names(tensors: Tensors, tied: bool) -> Tensors:
    """Returns the tensors without prefix, buffers, and a head that only repeats the embedding."""
    out: Tensors = {}
    for name, value in tensors.items():
        plain = name.removeprefix(PREFIX)
        if plain in out:
            raise UserError(f"the checkpoint has {plain} twice, with {PREFIX} and without")
        if not BUFFERS.match(plain):
            out[plain] = value
    if tied and HEAD in out:
        head = out.pop(HEAD)
        if not np.array_equal(head, out.setdefault("wte.weight", head)):
            raise UserError(
                f"config.json ties the head to the embedding, but {HEAD} differs from wte.weight; "
                'set "tie_word_embeddings": false in config.json if the head is its own'
            )
    return out


def _take(given: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = given.pop(name, None)
    if value is None:
        raise UserError(f"the checkpoint has no tensor {name}, of shape {shape} by its config.json")
    if value.shape != shape:
        raise UserError(f"tensor {name} has shape {value.shape}, and its config.json says {shape}")
    if value.dtype not in EXACT and value.dtype.name != "bfloat16":
        raise UserError(
            f"tensor {name} is {value.dtype}; only float32, float16 and bfloat16 are taken"
        )
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"tensor {name} holds values that are not finite (NaN or infinity)")
    return value


def _flat_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of one block's tensor with the heads flattened, as they keep it."""
    match path:
        case "attn.sublayer.qkv.kernel":
            return shape[0], int(np.prod(shape[1:]))
        case "attn.sublayer.qkv.bias":
            return (int(np.prod(shape)),)
        case "attn.sublayer.out.kernel":
            return int(np.prod(shape[:-1])), shape[-1]
    return shape


def _their_shape(structure: Structure, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape without the vocabulary's padding."""
    return (structure.cfg.vocab_size, *shape[1:]) if path in ("wte", "head") else shape


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf
