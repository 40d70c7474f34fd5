"""Small Hugging Face checkpoints with random weights."""

import json

import numpy as np
from safetensors.numpy import save_file

# The state_dict of transformers' GPT2LMHeadModel(n_layer=2, n_head=2, n_embd=16, vocab_size=11,
# n_positions=12), but with n_inner 40 and an untied head.
BLOCK = {
    "ln_1.weight": (16,),
    "ln_1.bias": (16,),
    "attn.c_attn.weight": (16, 48),
    "attn.c_attn.bias": (48,),
    "attn.c_proj.weight": (16, 16),
    "attn.c_proj.bias": (16,),
    "ln_2.weight": (16,),
    "ln_2.bias": (16,),
    "mlp.c_fc.weight": (16, 40),
    "mlp.c_fc.bias": (40,),
    "mlp.c_proj.weight": (40, 16),
    "mlp.c_proj.bias": (16,),
}
CONFIG = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_inner": 40,
    "n_positions": 12,
    "vocab_size": 11,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
}


def tensors(dtype="float32"):
    """Returns random values for all tensors."""
    shapes = {"wte.weight": (11, 16), "wpe.weight": (12, 16)}
    shapes |= {f"h.{i}.{name}": shape for i in range(2) for name, shape in BLOCK.items()}
    shapes |= {"ln_f.weight": (16,), "ln_f.bias": (16,)}
    random = np.random.default_rng(0)
    out = {f"transformer.{name}": random.normal(size=shape) for name, shape in shapes.items()}
    out["lm_head.weight"] = random.normal(size=(11, 16))
    return {name: value.astype(dtype) for name, value in out.items()}


def write(folder, weights=None, **changes):
    """Writes model.safetensors and config.json to a new folder."""
    folder.mkdir()
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder
