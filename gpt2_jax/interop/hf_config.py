"""Hugging Face's config.json for GPT-2, and ours: what one says of a model, said by the other."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError, shown
from gpt2_jax.model import placements
from gpt2_jax.model.placements.axes import INITIAL
from gpt2_jax.model.placements.resolve import differences, resolve

# Their names for nonlinearities that are ours.
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
SIZES = ("n_layer", "n_head", "n_embd", "vocab_size")
# All else in a GPT-2 config is no part of the function: defaults of generation, heads for other
# tasks, how a library is to run it.
UNSUPPORTED = ("add_cross_attention", "is_encoder_decoder")
# What a GPT-2 may differ in: the config says it, or it is nothing but an initial value.
FREE = ("activation", "norm_eps", "drop_path", *INITIAL)
GPT2 = placements.PRESETS["pre_ln"]
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def from_huggingface(theirs: dict[str, Any]) -> ConfigDict:
    """Returns our config of the model that their config.json describes.

    Raises:
      UserError: if a field is missing or asks for something that this model does not do.
    """
    _refuse(theirs)
    ours = configs.default()
    model = ours.model
    for name in SIZES:
        model[name] = _taken(theirs, name, name)
    longest = "n_positions" if "n_positions" in theirs else "n_ctx"
    model.n_positions = _taken(theirs, longest, "n_positions")
    inner = theirs.get("n_inner") is not None
    model.n_inner = _taken(theirs, "n_inner", "n_inner") if inner else 4 * model.n_embd
    model.activation = _activation(theirs)
    model.norm_eps = _taken(theirs, "layer_norm_epsilon", "norm_eps", 1e-5)
    model.init_std = _taken(theirs, "initializer_range", "init_std", 0.02)
    model.tie_head = _taken(theirs, "tie_word_embeddings", "tie_head", True)
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        model[name] = _taken(theirs, name, name, usual)
    ours.data.seq_len = model.n_positions
    return ours


def dropout_note(theirs: dict[str, Any]) -> str | None:
    """Returns a line about dropout rates, which are left to the config that trains the model."""
    rates = {name: theirs[name] for name in DROPOUTS if theirs.get(name)}
    if not rates:
        return None
    listed = ", ".join(f"{name}={shown(rate)}" for name, rate in rates.items())
    return f"it was trained with {listed}; set model.dropout to train on with any"


def to_huggingface(ours: ConfigDict, end_of_text: int | None, dtype: str) -> dict[str, Any]:
    """Returns config.json for `GPT2LMHeadModel`.

    Raises:
      UserError: if Hugging Face's GPT-2 cannot express the model.
    """
    model = ours.model
    placement = resolve(model)
    if extra := [name for name in differences(placement, GPT2) if name not in FREE]:
        listed = ", ".join(f"{name}={getattr(placement, name)!r}" for name in extra)
        raise UserError(
            f"model.placement={model.placement} cannot be exported: Hugging Face's GPT-2 has norms "
            f"before each sublayer and after the last block, and nothing else (here {listed})"
        )
    if placement.activation not in ACTIVATIONS:
        raise UserError(f"model.activation={placement.activation} is none of Hugging Face's GPT-2")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: model[name] for name in SIZES},
        "n_positions": model.n_positions,
        "n_inner": None if model.n_inner == 4 * model.n_embd else model.n_inner,
        "activation_function": placement.activation,
        **dict.fromkeys(DROPOUTS, model.dropout),
        "layer_norm_epsilon": placement.norm_eps,
        "initializer_range": model.init_std,
        "scale_attn_weights": model.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": model.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": model.tie_head,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": dtype,
    }


def _refuse(theirs: dict[str, Any]) -> None:
    kind = theirs.get("model_type", "gpt2")
    if kind != "gpt2":
        raise UserError(f"config.json: model_type={kind!r} is no GPT-2")
    for name in UNSUPPORTED:
        if theirs.get(name):
            raise UserError(f"config.json: {name}={theirs[name]!r} is not supported here")
    if theirs.get("quantization_config"):
        raise UserError("config.json: quantized weights are not supported; take the original ones")


def _taken(theirs: dict[str, Any], name: str, ours: str, usual: Any = None) -> Any:
    """Returns a field of theirs, or what it usually is, as a value of our `model.<ours>`.

    Raises:
      UserError: if it is missing, of another type or out of bounds, naming it.
    """
    value = theirs.get(name)
    if value is None and usual is None:
        raise UserError(f"config.json has no {name}")
    return configs.validated(
        f"model.{ours}", usual if value is None else value, f"config.json: {name}"
    )


def _activation(theirs: dict[str, Any]) -> str:
    name = theirs.get("activation_function", "gelu_new")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise UserError(f"config.json: activation_function={name!r} is not one of {known}")
    return ACTIVATIONS[name]
