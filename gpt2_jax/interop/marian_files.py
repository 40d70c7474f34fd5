"""Marian's tokenizer files: source.spm, target.spm and vocab.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2_jax.data.marian_tokenizer import SPECIAL_NAMES, MarianTokenizer, pack
from gpt2_jax.data.tokenizer_protocol import START
from gpt2_jax.errors import UserError
from gpt2_jax.files import read_fields, read_file, write_atomic, write_json

CLASS = "MarianTokenizer"
SOURCE, TARGET, VOCAB = "source.spm", "target.spm", "vocab.json"
LANGUAGES = ("source_lang", "target_lang")  # fields of tokenizer_config.json


def read_marian(
    folder: Path,
    settings: Mapping[str, Any],
    targets: Mapping[str, int],
    added: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the fields of the file of a `MarianTokenizer`.

    Args:
      settings: fields of tokenizer_config.json and special_tokens_map.json.
      targets: as in `pack`; a decoder starts from padding if there is no other start.
      added: tokens of the other files, in the format of tokenizer.json.

    Raises:
      UserError: if a file is missing or not valid, or the sides do not share one vocabulary.
    """
    if settings.get("separate_vocabs"):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: separate_vocabs=true is not supported; source "
            f"and target must share {VOCAB}"
        )
    names = _special_names(settings)
    vocab = _read_vocab(folder / VOCAB, names)
    for token in added:
        known = vocab.get(token["content"]) == token["id"]
        if not known or not (token["special"] or token["content"] in names.values()):
            raise UserError(
                f"{folder}: the added token {token['content']!r} is not supported, because it is "
                f"not a special token of {VOCAB}"
            )
    targets = {START: vocab[names["pad_token"]], **targets}
    models = [read_file(folder / name) for name in (SOURCE, TARGET)]
    languages = {field: settings[field] for field in LANGUAGES if settings.get(field)}
    return pack(models, vocab, names, targets, languages)


def write_marian(tokenizer: MarianTokenizer, n_positions: int, out: Path) -> None:
    """Writes the files that `MarianTokenizer` of transformers reads."""
    for name, model in zip((SOURCE, TARGET), tokenizer.models, strict=True):
        write_atomic(out / name, model)
    write_json(out / VOCAB, tokenizer.vocab)
    settings = {"tokenizer_class": CLASS, **tokenizer.names, **tokenizer.settings}
    write_json(out / "tokenizer_config.json", settings | {"model_max_length": n_positions})


def _special_names(settings: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for field, usual in SPECIAL_NAMES.items():
        given = settings.get(field)
        given = given.get("content") if isinstance(given, dict) else given
        names[field] = given if isinstance(given, str) else usual
    return names


def _read_vocab(path: Path, names: Mapping[str, str]) -> dict[str, int]:
    vocab = read_fields(path)
    ids = list(vocab.values())
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        raise UserError(f"{path} must have an id of its own for each piece")
    if missing := [name for name in names.values() if name not in vocab]:
        raise UserError(f"{path} does not have the token {missing[0]!r}; is it a Marian's?")
    return vocab
