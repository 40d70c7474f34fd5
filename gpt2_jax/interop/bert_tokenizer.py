"""The tokenizer files of BERT and RoBERTa, as transformers reads them.

BERT's WordPiece is in tokenizer.json or vocab.txt; its settings are in tokenizer_config.json.
RoBERTa's and BART's byte-level BPE is in tokenizer.json, or in vocab.json and merges.txt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.files import read_file, text_lines
from gpt2_jax.interop.template import template

VOCAB = "vocab.txt"
CLASS = "BertTokenizer"
BERT_CLASSES = (CLASS, f"{CLASS}Fast")
ROBERTA_CLASSES = tuple(
    f"{name}Tokenizer{fast}" for name in ("Roberta", "Bart") for fast in ("", "Fast")
)
CLASS_OF = {  # by model type
    "bert": CLASS,
    "roberta": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "marian": "MarianTokenizer",
}
# Fields of tokenizer_config.json, of BERT's normalizer, and the default.
SETTINGS = (
    ("do_lower_case", "lowercase", True),
    ("strip_accents", "strip_accents", None),
    ("tokenize_chinese_chars", "handle_chinese_chars", True),
)
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def class_name(settings: Mapping[str, Any], model_type: object) -> str:
    """Returns the class that transformers loads: the named one, or that of the type of model."""
    name = settings.get("tokenizer_class") or CLASS_OF.get(str(model_type), "GPT2Tokenizer")
    return name if isinstance(name, str) else ""


def from_vocab_txt(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer.json of a vocab.txt, which has a token per line.

    Raises:
      UserError: if it is not valid, or lacks a special token.
    """
    path = folder / VOCAB
    try:
        lines = text_lines(read_file(path).decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    vocab = {token: i for i, token in enumerate(lines)}
    names = _special_names(settings, BERT_TOKENS)
    if missing := [name for name in names.values() if name not in vocab]:
        raise UserError(f"{path} does not have the token {missing[0]!r}; is it a BERT's?")
    cls, sep = ({names[field]: vocab[names[field]]} for field in ("cls_token", "sep_token"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(name, vocab[name]) for name in names.values()],
        "normalizer": {"type": "BertNormalizer", "clean_text": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template(cls, sep),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": names["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def apply_settings(content: dict[str, Any], settings: Mapping[str, Any], name: str) -> None:
    """Applies what a tokenizer's class reads only from tokenizer_config.json.

    Args:
      name: of the class.
    """
    normalizer = content.get("normalizer") or {}
    if name in BERT_CLASSES and normalizer.get("type") == "BertNormalizer":
        for theirs, ours, default in SETTINGS:
            normalizer[ours] = settings.get(theirs, default)


def add_special_tokens(content: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Adds RoBERTa's special tokens, and its frame around texts, to a byte-level BPE."""
    names, vocab = _special_names(settings, ROBERTA_TOKENS), content["model"]["vocab"]
    present = [(field, name) for field, name in names.items() if name in vocab]
    for field, name in present:
        token = _special(name, vocab[name]) | {"lstrip": field == "mask_token"}
        content["added_tokens"].append(token)
    content["added_tokens"].sort(key=lambda token: token["id"])
    cls, sep = names["cls_token"], names["sep_token"]
    if cls in vocab and sep in vocab:
        content["post_processor"] = {
            "type": "RobertaProcessing",
            "cls": [cls, vocab[cls]],
            "sep": [sep, vocab[sep]],
            "trim_offsets": True,
            "add_prefix_space": bool(settings.get("add_prefix_space", False)),
        }


def exported_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of tokenizer_config.json for a tokenizer.json of BERT's; else none."""
    normalizer = content.get("normalizer") or {}
    if not _is_wordpiece(content) or normalizer.get("type") != "BertNormalizer":
        return {}
    settings = {theirs: normalizer.get(ours, usual) for theirs, ours, usual in SETTINGS}
    return {"tokenizer_class": CLASS, **settings}


def vocab_txt(content: Mapping[str, Any]) -> str:
    """Returns the vocab.txt of a tokenizer.json of BERT's."""
    vocab = content["model"]["vocab"]
    return "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))


def _is_wordpiece(content: Mapping[str, Any]) -> bool:
    """Returns whether a tokenizer.json is a WordPiece with all tokens in its vocabulary."""
    model = content["model"]
    if model.get("type") != "WordPiece":
        return False
    vocab, added = model["vocab"], content.get("added_tokens") or []
    has_all = all(token.get("content") in vocab for token in added)
    return has_all and sorted(vocab.values()) == [*range(len(vocab))]


def _special_names(settings: Mapping[str, Any], usual: Mapping[str, str]) -> dict[str, str]:
    """Returns special tokens by field; a field may have the token's properties as well."""
    names = {}
    for field, default in usual.items():
        given = settings.get(field) or default
        given = given.get("content") if isinstance(given, dict) else given
        names[field] = given if isinstance(given, str) else default
    return names


def _special(text: str, token_id: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, **plain, "special": True}
