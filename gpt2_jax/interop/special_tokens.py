"""Special tokens of a tokenizer, in the fields of Hugging Face's files."""

from __future__ import annotations

from collections.abc import Mapping

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
# Fields of config.json, and the token that each is the id of.
IDS = {
    "pad_token_id": "pad_token",
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "decoder_start_token_id": "bos_token",
    "forced_eos_token_id": "eos_token",
}


def special_tokens(vocab: Mapping[str, int]) -> dict[str, str]:
    """Returns the special tokens that a vocabulary has, by field of tokenizer_config.json."""
    found = {field: [name for name in names if name in vocab] for field, names in TOKENS.items()}
    return {field: names[0] for field, names in found.items() if names}


def special_ids(
    family: Family,
    vocab: Mapping[str, int],
    end_of_text: int,
    known: Mapping[str, int],
) -> dict[str, int]:
    """Returns the ids of special tokens, by field of config.json.

    Args:
      vocab: the tokenizer's, empty for a built-in one. end_of_text: its id, which is used, as in
        training, if there is no other token.
      known: ids of an imported model, by field, which are kept.
    """
    ids = {field: vocab[token] for field, token in special_tokens(vocab).items()}
    found = {
        field: ids.get(IDS[field], end_of_text) for field in family.special_ids if field in IDS
    }
    return found | dict(known)
