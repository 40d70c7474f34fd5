"""GPT-2: decoders with a norm before each sublayer.

Their Conv1D kernels have shape (in, out), like ours, but the heads are flattened into one axis.
"""

from __future__ import annotations

import re
from typing import Any

from gpt2_jax import placements
from gpt2_jax.errors import UserError
from gpt2_jax.interop.families.family import (
    ConfigField,
    Family,
    Fields,
    Row,
    Sections,
    Table,
    read_activation,
    read_field,
    read_fields,
    refuse,
    same,
    write_fields,
)
from gpt2_jax.interop.layouts import Layout
from gpt2_jax.model.heads import HeadSpec
from gpt2_jax.placements.axes import Placement

PREFIX, HEAD = "transformer.", "lm_head.weight"
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# Other unknown fields do not affect the logits: generation defaults, task heads, library options.
UNSUPPORTED = ("add_cross_attention", "is_encoder_decoder")
FIELDS = (
    *(ConfigField(name, f"model.{name}") for name in ("n_layer", "n_head", "n_embd", "vocab_size")),
    ConfigField("layer_norm_epsilon", "placement.norm_eps", 1e-5),
    ConfigField("initializer_range", "model.init_std", 0.02),
    ConfigField("tie_word_embeddings", "model.tie_head", True),
    ConfigField("scale_attn_weights", "model.scale_attn_weights", True),
    ConfigField("scale_attn_by_inverse_layer_idx", "model.scale_attn_by_inverse_layer_idx", False),
)
BLOCK, THEIR_BLOCK = "blocks.all.", "h.{layer}."
ATTENTION = BLOCK + "attn.sublayer."
ROWS = (
    same("embedding.wte", "wte.weight"),
    same("embedding.wpe", "wpe.weight"),
    same(BLOCK + "attn.pre.gain", THEIR_BLOCK + "ln_1.weight"),
    same(BLOCK + "attn.pre.bias", THEIR_BLOCK + "ln_1.bias"),
    Row(ATTENTION + "qkv.kernel", (THEIR_BLOCK + "attn.c_attn.weight",), Layout.HEADS_OUT),
    Row(ATTENTION + "qkv.bias", (THEIR_BLOCK + "attn.c_attn.bias",), Layout.HEADS_OUT),
    Row(ATTENTION + "out.kernel", (THEIR_BLOCK + "attn.c_proj.weight",), Layout.HEADS_IN),
    same(ATTENTION + "out.bias", THEIR_BLOCK + "attn.c_proj.bias"),
    same(BLOCK + "mlp.pre.gain", THEIR_BLOCK + "ln_2.weight"),
    same(BLOCK + "mlp.pre.bias", THEIR_BLOCK + "ln_2.bias"),
    same(BLOCK + "mlp.sublayer.up.kernel", THEIR_BLOCK + "mlp.c_fc.weight"),
    same(BLOCK + "mlp.sublayer.up.bias", THEIR_BLOCK + "mlp.c_fc.bias"),
    same(BLOCK + "mlp.sublayer.down.kernel", THEIR_BLOCK + "mlp.c_proj.weight"),
    same(BLOCK + "mlp.sublayer.down.bias", THEIR_BLOCK + "mlp.c_proj.bias"),
    same("ln_f.gain", "ln_f.weight"),
    same("ln_f.bias", "ln_f.bias"),
)


def read(fields: Fields) -> dict[str, Any]:
    """Returns the values of our fields, by dotted name, for a GPT-2's config.json.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    refuse(fields, UNSUPPORTED)
    ours = read_fields(FIELDS, fields)
    longest = "n_positions" if "n_positions" in fields else "n_ctx"
    length = read_field(fields, longest, "model.n_positions")
    inner = read_field(fields, "n_inner", "model.n_inner", 4 * ours["model.n_embd"])
    ours |= {
        "model.n_positions": length,
        "model.n_inner": inner,
        "placement.activation": read_activation(fields, "activation_function", "gelu_new"),
        "data.seq_len": length,
    }
    return ours


def write(config: Sections) -> Fields:
    """Returns the config.json of a `GPT2LMHeadModel`, without the fields of all families."""
    model = config.model
    return {
        **write_fields(FIELDS, config),
        "n_positions": model.n_positions,
        "n_inner": None if model.n_inner == 4 * model.n_embd else model.n_inner,
        "activation_function": config.placement.resolve().activation,
        **dict.fromkeys(DROPOUTS, model.dropout),
    }


def table(config: Sections, head: HeadSpec) -> Table:
    """Returns the tensors of a `GPT2LMHeadModel`.

    Raises:
      UserError: if the model predicts anything but next tokens.
    """
    if head.kind != "lm":
        raise UserError(f"a decoder with a head of kind {head.kind} cannot be exported")
    matrix = () if config.model.tie_head else (same("head", HEAD, outside=True),)
    return Table(
        architecture="GPT2LMHeadModel",
        auto="AutoModelForCausalLM",
        task="text-generation",
        rows=(*ROWS, *matrix),
        prefix=PREFIX,
        copies={HEAD: "wte.weight"} if config.model.tie_head else {},
    )


def _placement(config: Sections) -> Placement:
    del config
    return placements.PRESETS["pre_ln"]


FAMILY = Family(
    model_type="gpt2",
    label="GPT-2",
    matches=lambda config: config.model.architecture == "decoder",
    placement=_placement,
    description="norms before each sublayer and after the last block",
    read=read,
    write=write,
    table=table,
    dropouts=DROPOUTS,
    fixed={"model.position_offset": 0, "model.logits_bias": False},
    special_ids=("bos_token_id", "eos_token_id"),
    prefix=PREFIX,
    # Constants that older versions of transformers saved with the weights.
    buffers=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$"),
)
