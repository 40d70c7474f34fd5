"""Special tokens of a tokenizer, in the fields of Hugging Face's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_jax.data.tokenizer_protocol import (
    FORCED_FIRST,
    FORCED_LAST,
    START,
    TARGET_IDS,
    Tokenizer,
)
from gpt2_jax.files import read_fields
from gpt2_jax.interop.families import find_family
from gpt2_jax.interop.families.family import Family

# Fields of tokenizer_config.json, and the names that such tokens have in vocabularies.
TOKENS = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "bos_token": ("<s>", "[CLS]"),
    "eos_token": ("</s>", "[SEP]"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
GENERATION = "generation_config.json"
LARGEST_ID = 2**31


def special_tokens(vocab: Mapping[str, int]) -> dict[str, str]:
    """Returns the special tokens that a vocabulary has, by field of tokenizer_config.json."""
    found = {field: [name for name in names if name in vocab] for field, names in TOKENS.items()}
    return {field: names[0] for field, names in found.items() if names}


def read_special_ids(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids of special tokens that a checkpoint names, by field of config.json.

    As in transformers, the ids that start or are forced upon a generated target are those of
    generation_config.json, if there is one.
    """
    path = folder / GENERATION
    generation = read_fields(path) if path.exists() else config
    given = dict(config) | {field: generation.get(field) for field in TARGET_IDS}
    if given[START] is None:
        given[START] = config.get(START)
    fields = find_family(dict(config)).special_ids
    return {field: given[field] for field in fields if _is_id(given.get(field))}


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST_ID


def special_ids(
    family: Family, tokenizer: Tokenizer, known: Mapping[str, int]
) -> dict[str, int | None]:
    """Returns the ids of special tokens, by field of config.json; None for no such token.

    Args:
      known: ids of an imported model, by field, which are kept.
    """
    special, frame = tokenizer.specials, tokenizer.side_frame
    ids = {
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        START: special.start,
        FORCED_FIRST: frame.forced_first,
        FORCED_LAST: frame.forced_last,
    }
    return {field: ids[field] for field in family.special_ids} | dict(known)
