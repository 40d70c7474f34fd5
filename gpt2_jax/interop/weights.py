"""Converts GPT-2 parameters between Hugging Face's tensors and ours.

Their Conv1D kernels have shape (in, out), like ours, but the heads are flattened into one axis.
Their blocks are separate tensors; ours are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import ModelDef

Tensors = dict[str, np.ndarray]

# Path in our parameter tree: Hugging Face tensor name.
OUTSIDE_BLOCKS = {
    "embedding.wte": "wte.weight",
    "embedding.wpe": "wpe.weight",
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
# Constants that older versions of transformers saved with the weights.
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")
EXACT = (np.dtype("float32"), np.dtype("float16"))  # exact in float32, like bfloat16


def to_huggingface(model_def: ModelDef, params: Any) -> Tensors:
    """Returns the float32 tensors of a `GPT2LMHeadModel` with these parameters.

    Raises:
      KeyError: if the model has parameters that GPT-2 does not have.
    """
    flat = dict(_leaves(jax.device_get(params)))
    out: Tensors = {}
    for path, name in OUTSIDE_BLOCKS.items():
        out[PREFIX + name] = flat.pop(path)
    for path, name in IN_BLOCKS.items():
        stacked = flat.pop(f"blocks.all.{path}")
        for layer, value in enumerate(stacked):
            out[f"{PREFIX}h.{layer}.{name}"] = value.reshape(_flat_shape(path, value.shape))
    if not model_def.cfg.tie_head:
        out[HEAD] = flat.pop("head")
    if flat:
        raise KeyError(f"no tensor name for {', '.join(flat)}")
    for name in {PREFIX + "wte.weight", HEAD} & set(out):
        out[name] = out[name][: model_def.cfg.vocab_size]
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def from_huggingface(model_def: ModelDef, tensors: Tensors) -> Any:
    """Returns our float32 parameters from the tensors of a GPT-2 checkpoint.

    Raises:
      UserError: naming a tensor that is missing or unexpected, or has a wrong shape, type or value.
    """
    remaining = _normalize(tensors, tied=model_def.cfg.tie_head)
    shapes = dict(_leaves(model_def.shapes))
    flat: dict[str, np.ndarray] = {}
    for path, name in OUTSIDE_BLOCKS.items():
        flat[path] = _take(remaining, name, _unpadded(model_def, path, shapes[path].shape))
    for path, name in IN_BLOCKS.items():
        shape = shapes[f"blocks.all.{path}"].shape
        layers = [
            _take(remaining, f"h.{layer}.{name}", _flat_shape(path, shape[1:])).reshape(shape[1:])
            for layer in range(shape[0])
        ]
        flat[f"blocks.all.{path}"] = np.stack(layers)
    if not model_def.cfg.tie_head:
        flat["head"] = _take(remaining, HEAD, _unpadded(model_def, "head", shapes["head"].shape))
    if remaining:
        raise UserError(
            f"the checkpoint has {len(remaining)} tensors that GPT-2 does not have: "
            f"{', '.join(sorted(remaining)[:3])}; is it a different model?"
        )
    for path in {"embedding.wte", "head"} & set(flat):
        rows = shapes[path].shape[0] - len(flat[path])
        flat[path] = np.pad(flat[path], ((0, rows), (0, 0)))
    leaves = [flat[path] for path, _ in _leaves(model_def.shapes)]
    return jax.tree.unflatten(jax.tree.structure(model_def.shapes), leaves)


def _normalize(tensors: Tensors, tied: bool) -> Tensors:
    """Removes name prefixes, buffers, and a head that is a copy of the embedding."""
    out: Tensors = {}
    for name, value in tensors.items():
        plain = name.removeprefix(PREFIX)
        if plain in out:
            raise UserError(f"the checkpoint has {plain} twice, with and without {PREFIX}")
        if not BUFFERS.match(plain):
            out[plain] = value
    if tied and HEAD in out:
        head = out.pop(HEAD)
        if not np.array_equal(head, out.setdefault("wte.weight", head)):
            raise UserError(
                f"config.json ties the head to the embedding, but {HEAD} differs from wte.weight; "
                'set "tie_word_embeddings": false in config.json if the head is separate'
            )
    return out


def _take(remaining: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
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


def _flat_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns Hugging Face's shape of a block's parameter, with the heads flattened."""
    match path:
        case "attn.sublayer.qkv.kernel":
            return shape[0], int(np.prod(shape[1:]))
        case "attn.sublayer.qkv.bias":
            return (int(np.prod(shape)),)
        case "attn.sublayer.out.kernel":
            return int(np.prod(shape[:-1])), shape[-1]
    return shape


def _unpadded(model_def: ModelDef, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (model_def.cfg.vocab_size, *shape[1:]) if path in ("embedding.wte", "head") else shape


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf
