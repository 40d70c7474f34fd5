"""BERT and RoBERTa: encoders with a norm after each sublayer and one after the embedding.

RoBERTa's table of positions begins with as many unused rows as the id of its padding token, plus
one, and its heads have other names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt2_jax.errors import UserError, quoted
from gpt2_jax.interop.families.family import (
    NORMAL_INIT,
    PLAIN_ATTENTION,
    ConfigField,
    Family,
    Fields,
    Row,
    Sections,
    Table,
    linear,
    norm,
    qkv,
    read_activation,
    read_field,
    read_fields,
    refuse,
    same,
    write_fields,
)
from gpt2_jax.interop.families.labels import read_labels
from gpt2_jax.interop.layouts import Layout
from gpt2_jax.model.heads import HeadSpec
from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.resolve import resolve

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
UNSUPPORTED = ("is_decoder", "add_cross_attention", "is_encoder_decoder", "embedding_size")
PLACEMENT = {
    **NORMAL_INIT,
    "embedding_norm": True,
    "embedding_multiplier": "1",
}
FIELDS = (
    ConfigField("num_hidden_layers", "model.n_layer"),
    ConfigField("num_attention_heads", "model.n_head"),
    ConfigField("hidden_size", "model.n_embd"),
    ConfigField("intermediate_size", "model.n_inner"),
    ConfigField("vocab_size", "model.vocab_size"),
    ConfigField("layer_norm_eps", "placement.norm_eps", 1e-12),
    ConfigField("initializer_range", "model.init_std", 0.02),
    ConfigField("tie_word_embeddings", "model.tie_head", True),
)
EMBEDDINGS = "embeddings."
WORDS = EMBEDDINGS + "word_embeddings.weight"
BLOCK, THEIR_BLOCK = "blocks.all.", "encoder.layer.{layer}."
TYPES = EMBEDDINGS + "token_type_embeddings.weight"
ROWS = (
    same("embedding.wte", WORDS),
    same("embedding.wpe", EMBEDDINGS + "position_embeddings.weight"),
    *norm("embedding.embedding_norm", EMBEDDINGS + "LayerNorm"),
    *qkv(
        BLOCK + "attn.sublayer.qkv",
        (f"{THEIR_BLOCK}attention.self.{name}" for name in ("query", "key", "value")),
    ),
    *linear(
        BLOCK + "attn.sublayer.out",
        THEIR_BLOCK + "attention.output.dense",
        Layout.HEADS_IN_TRANSPOSED,
    ),
    *norm(BLOCK + "connection.attn.post", THEIR_BLOCK + "attention.output.LayerNorm"),
    *linear(BLOCK + "mlp.sublayer.up", THEIR_BLOCK + "intermediate.dense"),
    *linear(BLOCK + "mlp.sublayer.down", THEIR_BLOCK + "output.dense"),
    *norm(BLOCK + "connection.mlp.post", THEIR_BLOCK + "output.LayerNorm"),
)


@dataclass(frozen=True)
class HeadClass:
    """A class of these families: the end of its name, its head and the head's parameters.

    Attributes:
      auto, task: as in `Table`.
    """

    suffix: str
    kind: str
    auto: str
    task: str
    rows: tuple[Row, ...]


def _outside(path: str, name: str) -> tuple[Row, ...]:
    return linear(path, name, outside=True)


POOLER = linear("head.dense", "pooler.dense")
LABELS = _outside("head", "classifier")


def _classes(mlm: tuple[Row, ...], sequence: tuple[Row, ...]) -> tuple[HeadClass, ...]:
    """Returns the classes; the families differ in the names of two heads."""
    base = HeadClass("Model", "pooled", "AutoModel", "feature-extraction", POOLER)
    return (
        base,
        HeadClass("ForMaskedLM", "mlm", "AutoModelForMaskedLM", "fill-mask", mlm),
        HeadClass(
            "ForTokenClassification",
            "tokens",
            "AutoModelForTokenClassification",
            "token-classification",
            LABELS,
        ),
        HeadClass(
            "ForSequenceClassification",
            "sequence",
            "AutoModelForSequenceClassification",
            "text-classification",
            sequence,
        ),
        HeadClass(
            "ForQuestionAnswering",
            "span",
            "AutoModelForQuestionAnswering",
            "question-answering",
            _outside("head", "qa_outputs"),
        ),
    )


@dataclass(frozen=True)
class Kind:
    """What distinguishes the two families.

    Attributes:
      name: of the classes. decoder: name of the output layer for masked tokens, and the other
        name of its bias.
    """

    name: str
    prefix: str
    decoder: tuple[str, str]
    classes: tuple[HeadClass, ...]

    def class_of(self, kind: str) -> HeadClass | None:
        """Returns the class with a kind of head."""
        return next((one for one in self.classes if one.kind == kind), None)


PREDICTIONS = "cls.predictions."
BERT = Kind(
    "Bert",
    "bert.",
    (PREDICTIONS + "decoder", PREDICTIONS + "bias"),
    _classes(
        mlm=(
            *_outside("mlm.dense", PREDICTIONS + "transform.dense"),
            *norm("mlm.norm", PREDICTIONS + "transform.LayerNorm", outside=True),
        ),
        sequence=(*POOLER, *LABELS),
    ),
)
ROBERTA = Kind(
    "Roberta",
    "roberta.",
    ("lm_head.decoder", "lm_head.bias"),
    _classes(
        mlm=(
            *_outside("mlm.dense", "lm_head.dense"),
            *norm("mlm.norm", "lm_head.layer_norm", outside=True),
        ),
        sequence=(
            *_outside("head.dense", "classifier.dense"),
            *_outside("head", "classifier.out_proj"),
        ),
    ),
)


def _read(kind: Kind, fields: Fields) -> dict[str, Any]:
    """Returns the values of our fields, by dotted name.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    refuse(fields, UNSUPPORTED)
    if fields.get("position_embedding_type", "absolute") != "absolute":
        given = quoted(fields["position_embedding_type"])
        raise UserError(f"config.json: position_embedding_type={given} is not supported")
    ours = read_fields(FIELDS, fields)
    length = read_field(fields, "max_position_embeddings", "model.n_positions")
    offset = 0
    if kind is ROBERTA:
        offset = read_field(fields, "pad_token_id", "model.position_offset", 1) + 1
    if length <= offset:
        raise UserError(f"config.json: max_position_embeddings={length} must be above {offset}")
    ours |= {
        "model.architecture": "encoder",
        "model.n_positions": length - offset,
        "model.position_offset": offset,
        "model.token_types": read_field(fields, "type_vocab_size", "model.token_types", 2),
        "placement.preset": "post_ln",
        "placement.activation": read_activation(fields, "hidden_act", "gelu"),
        **{f"placement.{name}": value for name, value in PLACEMENT.items()},
        "data.seq_len": length - offset,
    }
    return ours


def _write(kind: Kind, config: Sections) -> Fields:
    model = config.model
    # RoBERTa's unused positions are those up to the id of its padding token.
    pad = {"pad_token_id": model.position_offset - 1} if kind is ROBERTA else {}
    return {
        **pad,
        **write_fields(FIELDS, config),
        "max_position_embeddings": model.n_positions + model.position_offset,
        "type_vocab_size": max(model.token_types, 1),
        "hidden_act": config.placement.resolve().activation,
        **dict.fromkeys(DROPOUTS, model.dropout),
    }


def _head(kind: Kind, fields: Fields, tensors: Collection[str]) -> HeadSpec:
    """Returns the head of a checkpoint's class.

    Raises:
      UserError: if the class is not supported.
    """
    names = fields.get("architectures") or [f"{kind.name}Model"]
    name = names[0] if isinstance(names, list) else names
    heads = {f"{kind.name}{one.suffix}": one.kind for one in kind.classes}
    heads[f"{kind.name}ForPreTraining"] = "mlm"
    if not isinstance(name, str) or name not in heads:
        known = ", ".join(sorted(heads))
        raise UserError(f"config.json: architectures={quoted(names)} is not one of {known}")
    head = heads[name]
    if head in ("tokens", "sequence"):
        return HeadSpec(head, len(read_labels(fields)))
    lacks_pooler = head == "pooled" and POOLER[0].names[0] not in tensors
    return HeadSpec(head, transform=False if lacks_pooler else None)


def _table(kind: Kind, config: Sections, head: HeadSpec) -> Table:
    """Returns the tensors.

    Raises:
      UserError: if no class has this head.
    """
    found = kind.class_of("pooled" if head.kind == "lm" else head.kind)
    assert found is not None  # the kinds of heads for encoders
    _check_head(kind, found, config, head)
    rows = found.rows if head.has_transform or head.kind in ("tokens", "span") else ()
    copies: dict[str, str] = {}
    saved: dict[str, str] = {}
    if head.kind == "mlm":
        rows, copies, saved = _masked_head(kind, rows, config.model.tie_head)
    types = (same("embedding.wtt", TYPES),) if config.model.token_types else ()
    prefix = "" if found.kind == "pooled" else kind.prefix
    return Table(
        architecture=f"{kind.name}{found.suffix}",
        auto=found.auto,
        task=found.task,
        rows=(*ROWS, *types, *rows),
        prefix=prefix,
        copies=copies,
        saved_copies=saved,
        zeros={} if types else {prefix + TYPES: (1, config.model.n_embd)},
    )


def _masked_head(
    kind: Kind, rows: tuple[Row, ...], tied: bool
) -> tuple[tuple[Row, ...], dict[str, str], dict[str, str]]:
    """Returns the rows of a head for masked tokens, the copies that files may have, and must have.

    The bias has two names, of which transformers uses the first unless the matrix is tied.
    """
    decoder, bias = kind.decoder
    weight, decoder_bias = f"{decoder}.weight", f"{decoder}.bias"
    if tied:
        bias_row = same("mlm.bias", bias, outside=True)
        return (*rows, bias_row), {weight: WORDS, decoder_bias: bias}, {}
    own = same("mlm.bias", decoder_bias, outside=True), same("head", weight, outside=True)
    return (*rows, *own), {bias: decoder_bias}, {bias: decoder_bias}


def _check_head(kind: Kind, found: HeadClass, config: Sections, head: HeadSpec) -> None:
    """Raises UserError if the class computes something else than this head."""
    if head.kind in ("mlm", "sequence") and (head.pool != "cls" or not head.has_transform):
        raise UserError(
            f"head.pool={head.pool}, head.transform={head.has_transform} cannot be exported: "
            f"{kind.name}{found.suffix} has a dense layer, and reads labels from the first token"
        )
    activation = config.placement.resolve().activation
    if kind is ROBERTA and head.kind == "mlm" and activation != "gelu":
        raise UserError(
            f"placement.activation={activation} is not supported: the head of RobertaForMaskedLM "
            "always has gelu"
        )


def _placement(config: Sections) -> Placement:
    del config
    return resolve("post_ln", PLACEMENT)


def _family(kind: Kind, model_type: str, label: str, **options: Any) -> Family:
    def matches(config: Sections) -> bool:
        has_offset = config.model.position_offset > 0
        return config.model.architecture == "encoder" and has_offset == (kind is ROBERTA)

    return Family(
        model_type=model_type,
        label=label,
        matches=matches,
        placement=_placement,
        description="norms after the embedding and after each sublayer, and learned positions",
        fixed={**PLAIN_ATTENTION, "model.logits_bias": False},
        read=partial(_read, kind),
        write=partial(_write, kind),
        head=partial(_head, kind),
        table=partial(_table, kind),
        dropouts=DROPOUTS,
        prefix=kind.prefix,
        buffers=re.compile(r"embeddings\.(position_ids|token_type_ids)$"),
        unused=re.compile(r"(pooler\.dense|cls\.seq_relationship)\.(weight|bias)$"),
        renamed=(
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
        **options,
    )


BERT_FAMILY = _family(
    BERT,
    "bert",
    "BERT",
    special_ids=("pad_token_id",),
)
ROBERTA_FAMILY = _family(
    ROBERTA,
    "roberta",
    "RoBERTa",
    special_ids=("bos_token_id", "eos_token_id"),
)
