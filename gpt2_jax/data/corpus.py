"""Opens the corpus of a config's `data` section, tokenizing text into the cache if necessary."""

from __future__ import annotations

import os
from pathlib import Path

from gpt2_jax.data import shards
from gpt2_jax.data.manifest import MANIFEST
from gpt2_jax.data.preparation import plan_key, prepare
from gpt2_jax.data.separator import SeparatedSource
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.sources import Source, open_source
from gpt2_jax.data.split import Plan, check_split
from gpt2_jax.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from gpt2_jax.data.trained_tokenizer import is_trained, trained_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir, disk_errors


def open_corpus(
    source: str | None,
    val_source: str | None,
    tokenizer_name: str,
    val_fraction: float,
    document_separator: str | None = None,
) -> tuple[Corpus, Tokenizer]:
    """Opens a prepared folder, .bin shards, or text, which is tokenized once and then cached.

    The arguments are fields of the `data` section; `source` is None to open only validation text.

    Raises:
      UserError: if there is no text, or it cannot be read or stored.
    """
    main = source or val_source or ""
    if main and os.path.isfile(os.path.join(main, MANIFEST)):
        if source and val_source:
            raise UserError(f"{source} already has a validation split; unset data.val_source")
        found, tokenizer = _open_prepared(Path(main), source is not None, tokenizer_name)
        if source:
            _check_separator(source, found.manifest.document_separator, document_separator)
        return found, tokenizer
    if main.endswith(".bin"):
        if tokenizer_name != "gpt2":
            raise UserError(
                f"{main}: .bin shards contain GPT-2 tokens; set data.tokenizer=gpt2 "
                f"(it is {tokenizer_name})"
            )
        if source:
            _check_separator(source, None, document_separator)
            check_split(val_fraction, val_source, "data.val_fraction", "data.val_source")
        return shards.open_bin_shards(main, val_source, val_fraction), load_tokenizer("gpt2")
    plan = open_plan(source, val_source, val_fraction, document_separator)
    tokenizer = _open_tokenizer(tokenizer_name, plan)
    folder = cache_dir() / "corpora" / plan_key(plan, tokenizer)[:24]
    with disk_errors("the cache (set XDG_CACHE_HOME)"):
        folder.mkdir(parents=True, exist_ok=True)
    prepare(plan, tokenizer, folder)
    return shards.open_prepared(folder), tokenizer


def _open_tokenizer(name: str, plan: Plan) -> Tokenizer:
    """Loads a tokenizer, or trains it on the training text of a plan."""
    if not is_trained(name):
        return load_tokenizer(name)
    fingerprint = plan_key(plan, ByteTokenizer())  # any tokenizer: the text and its split matter
    texts = lambda: (piece.text for split, piece in plan.pieces() if split == "train")
    return trained_tokenizer(name, fingerprint, texts)


def _open_prepared(
    folder: Path, needs_train: bool, tokenizer_name: str
) -> tuple[Corpus, Tokenizer]:
    found = shards.open_prepared(folder)
    tokenizer = load_tokenizer(tokenizer_name)
    if found.manifest.tokenizer["fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"{folder} was prepared with another tokenizer; set data.tokenizer="
            f"{found.manifest.tokenizer['name']} (it is {tokenizer_name})"
        )
    if found.train is None and needs_train:
        raise UserError(f"{folder} contains only validation text")
    return found, tokenizer


def _check_separator(source: str, prepared_with: str | None, requested: str | None) -> None:
    if requested is not None and requested != prepared_with:
        raise UserError(
            f"{source} contains tokens that were not split at "
            f"data.document_separator={requested!r}; unset it, or prepare the text again with "
            "--document_separator"
        )


def open_plan(
    source: str | None,
    val_source: str | None,
    val_fraction: float,
    document_separator: str | None = None,
) -> Plan:
    """Opens the sources of a corpus and plans its split; the arguments are as for `open_corpus`.

    Raises:
      UserError: if a source does not exist, or no text would be left for validation.
    """
    for field, value in (
        ("data.source", source),
        ("data.val_source", val_source),
        ("data.document_separator", document_separator),
    ):
        if value == "":
            raise UserError(f"{field} is empty; unset it, or set a value")
    if source:
        check_split(val_fraction, val_source, "data.val_fraction", "data.val_source")

    def open_separated(spec: str | None) -> Source | None:
        found = open_source(spec) if spec else None
        return SeparatedSource(found, document_separator) if found and document_separator else found

    return Plan(
        open_separated(source), open_separated(val_source), val_fraction, document_separator
    )
