"""Marian: translation models with sinusoids, sines in the first half of the channels."""

from __future__ import annotations

import re
from typing import Any

from gpt2_jax.interop.families.family import Family, Fields, Sections, Table, read_field, same
from gpt2_jax.interop.families.seq2seq import (
    DROPOUTS,
    FIXED,
    PREFIX,
    SHARED,
    SPECIAL_IDS,
    multiplier,
    read_common,
    seq2seq_table,
    write_common,
)
from gpt2_jax.model.heads import HeadSpec
from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.resolve import resolve

POSITIONS = "sinusoidal_halves"
SHARING = "share_encoder_decoder_embeddings"
TOKENS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def read(fields: Fields) -> dict[str, Any]:
    """Returns the values of our fields, by dotted name, for a Marian's config.json.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    ours = read_common(fields)
    ours["model.share_embeddings"] = read_field(fields, SHARING, "model.share_embeddings", True)
    ours["placement.positions"] = POSITIONS
    return ours


def write(config: Sections) -> Fields:
    """Returns the config.json of a `MarianMTModel`, without the fields of all families."""
    return {
        **write_common(config),
        "decoder_vocab_size": config.model.vocab_size,
        SHARING: config.model.share_embeddings,
        "static_position_embeddings": True,
    }


def table(config: Sections, head: HeadSpec) -> Table:
    """Returns the tensors of a `MarianMTModel`."""
    towers = zip(("encoder", "decoder"), TOKENS, strict=True)
    tokens = tuple(same(f"{tower}.embedding.wte", name) for tower, name in towers)
    copies: dict[str, str] = {}
    if config.model.share_embeddings:
        tokens = (same("encoder.embedding.wte", SHARED),)
        copies = dict.fromkeys(TOKENS, SHARED)
    names = ("MarianMTModel", "translation")
    return seq2seq_table(config, head, names, tokens, copies, tokens[-1].names[0])


def _placement(config: Sections) -> Placement:
    changes = {"positions": POSITIONS, "embedding_multiplier": multiplier(config)}
    return resolve("post_ln", changes)


FAMILY = Family(
    model_type="marian",
    label="Marian",
    matches=lambda config: (
        config.model.architecture == "encoder_decoder"
        and config.placement.resolve().positions != "learned"
    ),
    placement=_placement,
    description=f"norms after each sublayer, and positions={POSITIONS}",
    fixed=FIXED,
    read=read,
    write=write,
    table=table,
    dropouts=DROPOUTS,
    special_ids=SPECIAL_IDS,
    prefix=PREFIX,
    buffers=re.compile(r"(encoder|decoder)\.embed_positions\.weight$"),
)
