"""Converts between Hugging Face's GPT-2 config.json and our config."""

from __future__ import annotations

from typing import Any

from gpt2_jax import config as configs
from gpt2_jax import placements
from gpt2_jax.config import Config
from gpt2_jax.errors import UserError, quoted
from gpt2_jax.placements.axes import INITIAL
from gpt2_jax.placements.resolve import differences
from gpt2_jax.tuning.definition import INSERTS

# Hugging Face's name of an activation: our name.
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
# Other unknown fields do not affect the logits: generation defaults, task heads, library options.
UNSUPPORTED = ("add_cross_attention", "is_encoder_decoder")
# Axes in which an exported model may differ from `GPT2`: config.json has a field for them, or they
# affect only training.
FREE = ("activation", "norm_eps", "drop_path", *INITIAL)
GPT2 = placements.PRESETS["pre_ln"]
# Their optional fields: our field and the default.
DEFAULTED = {
    "layer_norm_epsilon": ("placement.norm_eps", 1e-5),
    "initializer_range": ("model.init_std", 0.02),
    "tie_word_embeddings": ("model.tie_head", True),
    "scale_attn_weights": ("model.scale_attn_weights", True),
    "scale_attn_by_inverse_layer_idx": ("model.scale_attn_by_inverse_layer_idx", False),
}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def from_huggingface(fields: dict[str, Any]) -> Config:
    """Returns our config of the model described by the fields of a config.json.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    _check_supported(fields)
    ours = {f"model.{name}": _read_field(fields, name, f"model.{name}") for name in SIZES}
    longest = "n_positions" if "n_positions" in fields else "n_ctx"
    length = _read_field(fields, longest, "model.n_positions")
    inner = fields.get("n_inner") is not None
    usual_inner = 4 * ours["model.n_embd"]
    ours |= {
        "model.n_positions": length,
        "model.n_inner": _read_field(fields, "n_inner", "model.n_inner") if inner else usual_inner,
        "placement.activation": _read_activation(fields),
        "data.seq_len": length,
    }
    for name, (field, usual) in DEFAULTED.items():
        ours[field] = _read_field(fields, name, field, usual)
    return configs.replace(Config(), ours)


def dropout_note(fields: dict[str, Any]) -> str | None:
    """Returns a note about the dropout rates, which are not imported; None if they are 0."""
    rates = {name: fields[name] for name in DROPOUTS if fields.get(name)}
    if not rates:
        return None
    listed = ", ".join(f"{name}={quoted(rate)}" for name, rate in rates.items())
    return f"it was trained with {listed}; set model.dropout to use dropout in further training"


def to_huggingface(config: Config, end_of_text: int | None, dtype: str) -> dict[str, Any]:
    """Returns the config.json of a `GPT2LMHeadModel`.

    Args:
      end_of_text: id of the tokenizer's end-of-text token, or None.
      dtype: dtype of the exported tensors.

    Raises:
      UserError: if the model cannot be represented as Hugging Face's GPT-2.
    """
    model = config.model
    placement = config.placement.resolve()
    if config.tune.method in INSERTS:
        raise UserError(
            f"a model tuned with tune.method={config.tune.method} cannot be exported: Hugging "
            "Face's GPT-2 has no place for what it adds; use lora, dora or bitfit"
        )
    extra = {n: value for n, value in differences(placement, GPT2).items() if n not in FREE}
    if extra:
        listed = ", ".join(f"{name}={value!r}" for name, value in extra.items())
        raise UserError(
            f"placement.preset={config.placement.preset} cannot be exported: Hugging Face's GPT-2 "
            "has norms before each sublayer and after the last block, and nothing else "
            f"(here {listed})"
        )
    if placement.activation not in ACTIVATIONS:
        raise UserError(
            f"placement.activation={placement.activation} is not supported by Hugging Face"
        )
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(model, name) for name in SIZES},
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


def _check_supported(fields: dict[str, Any]) -> None:
    model_type = fields.get("model_type", "gpt2")
    if model_type != "gpt2":
        raise UserError(f"config.json: {model_type=} is not supported; it must be gpt2")
    for name in UNSUPPORTED:
        if fields.get(name):
            raise UserError(f"config.json: {name}={fields[name]!r} is not supported")
    if fields.get("quantization_config"):
        raise UserError("config.json: quantized weights are not supported; use the original ones")


def _read_field(fields: dict[str, Any], name: str, ours: str, default: Any = None) -> Any:
    """Returns a field of config.json, or its default, as a value of our field `ours`.

    Raises:
      UserError: naming the field, if it is missing, has the wrong type or is out of bounds.
    """
    value = fields.get(name)
    if value is None and default is None:
        raise UserError(f"config.json has no {name}")
    return configs.validated(ours, default if value is None else value, f"config.json: {name}")


def _read_activation(fields: dict[str, Any]) -> str:
    name = fields.get("activation_function", "gelu_new")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise UserError(f"config.json: activation_function={name!r} is not one of {known}")
    return ACTIVATIONS[name]
