"""What Marian and BART have in common: two towers, with a norm after each sublayer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpt2_jax.errors import UserError, quoted
from gpt2_jax.interop.families.family import (
    NORMAL_INIT,
    PLAIN_ATTENTION,
    ConfigField,
    Fields,
    Row,
    Sections,
    Table,
    linear,
    norm,
    qkv,
    read_activation,
    read_fields,
    refuse,
    same,
    write_fields,
)
from gpt2_jax.interop.layouts import Layout
from gpt2_jax.model.heads import HeadSpec

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
UNSUPPORTED = ("is_decoder", "normalize_before", "add_final_layer_norm")
SPECIAL_IDS = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
FIXED = {**PLAIN_ATTENTION, "model.architecture": "encoder_decoder"}
FIELDS = (
    ConfigField("d_model", "model.n_embd"),
    ConfigField("decoder_layers", "model.n_layer"),
    ConfigField("encoder_layers", "model.n_encoder_layer"),
    ConfigField("decoder_attention_heads", "model.n_head"),
    ConfigField("decoder_ffn_dim", "model.n_inner"),
    ConfigField("vocab_size", "model.vocab_size"),
    ConfigField("max_position_embeddings", "model.n_positions"),
    ConfigField("init_std", "model.init_std", 0.02),
    ConfigField("tie_word_embeddings", "model.tie_head", True),
)
# Fields of the two towers that must agree, because ours have them in common.
EQUAL = (
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("decoder_vocab_size", "vocab_size"),
)
SHARED, HEAD = "shared.weight", "lm_head.weight"
LOGITS_BIAS = "final_logits_bias"
PREFIX = "model."
# Tokens are multiplied by sqrt(d) with scale_embedding.
SCALED, UNSCALED = "d**0.5", "1"


def read_common(fields: Fields) -> dict[str, Any]:
    """Returns the values of our fields, by dotted name.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    refuse(fields, UNSUPPORTED)
    for one, other in EQUAL:
        given = fields.get(one)
        if given is not None and given != fields.get(other):
            raise UserError(
                f"config.json: {one}={quoted(given)} must equal {other}={quoted(fields.get(other))}"
            )
    ours = read_fields(FIELDS, fields)
    scaled = fields.get("scale_embedding", False)
    if not isinstance(scaled, bool):
        raise UserError(f"config.json: scale_embedding={quoted(scaled)} must be true or false")
    return {
        **ours,
        "model.architecture": "encoder_decoder",
        "model.logits_bias": True,
        "placement.preset": "post_ln",
        **{f"placement.{name}": value for name, value in NORMAL_INIT.items()},
        "placement.activation": read_activation(fields, "activation_function", "gelu"),
        "placement.embedding_multiplier": SCALED if scaled else UNSCALED,
        "data.seq_len": ours["model.n_positions"],
    }


def write_common(config: Sections) -> Fields:
    """Returns the fields of a config.json; the inverse of `read_common`."""
    model, placement = config.model, config.placement.resolve()
    n_encoder_layer = model.n_encoder_layer or model.n_layer
    return {
        **write_fields(FIELDS, config),
        "encoder_layers": n_encoder_layer,
        "num_hidden_layers": n_encoder_layer,
        "encoder_attention_heads": model.n_head,
        "encoder_ffn_dim": model.n_inner,
        "activation_function": placement.activation,
        "scale_embedding": placement.embedding_multiplier == SCALED,
        "is_encoder_decoder": True,
        "dropout": model.dropout,
        "attention_dropout": model.dropout,
        "activation_dropout": 0.0,
    }


def multiplier(config: Sections) -> str:
    """Returns the factor on tokens, if it is one that config.json has a field for."""
    given = config.placement.resolve().embedding_multiplier
    return given if given in (SCALED, UNSCALED) else SCALED


def block_rows(tower: str) -> Iterator[Row]:
    """Yields the rows of the blocks of `encoder` or `decoder`."""
    ours, theirs = f"{tower}.blocks.all.", f"{tower}.layers.{{layer}}."
    names = {"attn": "self_attn"} | ({"cross": "encoder_attn"} if tower == "decoder" else {})
    for name, their in names.items():
        projections = (f"{theirs}{their}.{one}_proj" for one in "qkv")
        yield from qkv(f"{ours}{name}.sublayer.qkv", projections)
        out = (f"{ours}{name}.sublayer.out", f"{theirs}{their}.out_proj")
        yield from linear(*out, Layout.HEADS_IN_TRANSPOSED)
        yield from norm(f"{ours}connection.{name}.post", f"{theirs}{their}_layer_norm")
    yield from linear(f"{ours}mlp.sublayer.up", f"{theirs}fc1")
    yield from linear(f"{ours}mlp.sublayer.down", f"{theirs}fc2")
    yield from norm(f"{ours}connection.mlp.post", f"{theirs}final_layer_norm")


BLOCKS = (*block_rows("encoder"), *block_rows("decoder"))


def seq2seq_table(
    config: Sections,
    head: HeadSpec,
    names: tuple[str, str],
    embeddings: tuple[Row, ...],
    copies: Mapping[str, str],
    target_tokens: str,
) -> Table:
    """Returns the tensors of a class with the output matrix.

    Args:
      names: of the class, and of its pipeline on the hub.
      embeddings: their parameters.
      copies: their tensors that repeat another.
      target_tokens: the decoder's token table, which a tied output matrix repeats.

    Raises:
      ValueError: if the head is not that of next tokens.
    """
    if head.kind != "lm":
        raise ValueError(f"a head of kind {head.kind!r} is not one of an encoder-decoder")
    model = config.model
    outputs: list[Row] = []
    # Unless the output matrix is tied, transformers ties no tables either: each needs its values.
    saved = {} if model.tie_head else {PREFIX + copy: PREFIX + copies[copy] for copy in copies}
    if not model.tie_head:
        outputs.append(same("decoder.head", HEAD, outside=True))
    if model.logits_bias:
        outputs.append(Row("decoder.logits_bias", (LOGITS_BIAS,), Layout.AS_ROW, outside=True))
    return Table(
        architecture=names[0],
        auto="AutoModelForSeq2SeqLM",
        task=names[1],
        rows=(*embeddings, *BLOCKS, *outputs),
        prefix=PREFIX,
        copies={**copies, **({HEAD: target_tokens} if model.tie_head else {})},
        saved_copies=saved,
        zeros={} if model.logits_bias else {LOGITS_BIAS: (1, model.vocab_size)},
    )
