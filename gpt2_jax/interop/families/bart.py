"""BART: learned positions, of which the first two are unused, and a norm after the embedding."""

from __future__ import annotations

import re
from typing import Any

from gpt2_jax.interop.families.family import Family, Fields, Sections, Table, norm, same
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

OFFSET = 2
TOWERS = ("encoder", "decoder")


def read(fields: Fields) -> dict[str, Any]:
    """Returns the values of our fields, by dotted name, for a BART's config.json.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    ours = read_common(fields)
    ours |= {
        "model.share_embeddings": True,
        "model.position_offset": OFFSET,
        "placement.embedding_norm": True,
    }
    return ours


def table(config: Sections, head: HeadSpec) -> Table:
    """Returns the tensors of a `BartForConditionalGeneration`."""
    embeddings = [same("encoder.embedding.wte", SHARED)]
    for tower in TOWERS:
        embeddings.append(same(f"{tower}.embedding.wpe", f"{tower}.embed_positions.weight"))
        embeddings += norm(f"{tower}.embedding.embedding_norm", f"{tower}.layernorm_embedding")
    copies = {f"{tower}.embed_tokens.weight": SHARED for tower in TOWERS}
    names = ("BartForConditionalGeneration", "summarization")
    return seq2seq_table(config, head, names, tuple(embeddings), copies, SHARED)


def _placement(config: Sections) -> Placement:
    changes = {"embedding_norm": True, "embedding_multiplier": multiplier(config)}
    return resolve("post_ln", changes)


FAMILY = Family(
    model_type="bart",
    label="BART",
    matches=lambda config: (
        config.model.architecture == "encoder_decoder"
        and config.placement.resolve().positions == "learned"
    ),
    placement=_placement,
    description="norms after the embedding and after each sublayer, and learned positions",
    fixed=FIXED | {"model.position_offset": OFFSET, "model.share_embeddings": True},
    read=read,
    write=write_common,
    table=table,
    dropouts=DROPOUTS,
    special_ids=SPECIAL_IDS,
    prefix=PREFIX,
    buffers=re.compile(r"(encoder|decoder)\.version$"),
)
