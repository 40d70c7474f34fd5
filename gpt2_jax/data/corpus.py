"""What `data.*` names, opened: prepared folders, .bin shards, or text prepared into the cache."""

from __future__ import annotations

import os
from pathlib import Path

from gpt2_jax.config_check import check_split
from gpt2_jax.data import shards
from gpt2_jax.data.manifest import MANIFEST
from gpt2_jax.data.preparation import plan_key, prepare
from gpt2_jax.data.separator import Separated
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.sources import Source, open_source
from gpt2_jax.data.split import Plan
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir, disk_errors


def open_corpus(
    source: str | None,
    val_source: str | None,
    tokenizer_name: str,
    val_fraction: float,
    document_separator: str | None = None,
) -> tuple[Corpus, Tokenizer]:
    """Returns tokens ready to be read, preparing text into the cache the first time.

    Args:
      source: as `data.source`; None for validation text alone.
      val_source: as `data.val_source`.
      document_separator: as `data.document_separator`.

    Raises:
      UserError: if there is no text, or it cannot be read or stored.
    """
    main = source or val_source or ""
    if main and os.path.isfile(os.path.join(main, MANIFEST)):
        if source and val_source:
            raise UserError(f"{source} is prepared with a validation part; unset data.val_source")
        found, tokenizer = _open_prepared(Path(main), source is None, tokenizer_name)
        if source:
            _check_separator(source, found.manifest.document_separator, document_separator)
        return found, tokenizer
    if main.endswith(".bin"):
        if tokenizer_name != "gpt2":
            raise UserError(
                f"{main}: .bin shards hold GPT-2 tokens; set data.tokenizer=gpt2 "
                f"(it is {tokenizer_name})"
            )
        if source:
            _check_separator(source, None, document_separator)
            check_split(val_fraction, val_source, "data.val_fraction", "data.val_source")
        return shards.open_bins(main, val_source, val_fraction), load_tokenizer("gpt2")
    tokenizer = load_tokenizer(tokenizer_name)
    plan = open_plan(source, val_source, val_fraction, document_separator)
    folder = cache_dir() / "corpora" / plan_key(plan, tokenizer)[:24]
    with disk_errors("the cache (set XDG_CACHE_HOME)"):
        folder.mkdir(parents=True, exist_ok=True)
    prepare(plan, tokenizer, folder)
    return shards.open_prepared(folder), tokenizer


def _open_prepared(folder: Path, anything: bool, tokenizer_name: str) -> tuple[Corpus, Tokenizer]:
    found = shards.open_prepared(folder)
    tokenizer = load_tokenizer(tokenizer_name)
    if found.manifest.tokenizer["fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"{folder} was prepared with tokenizer {found.manifest.tokenizer['name']}; "
            f"set data.tokenizer to it (it is {tokenizer_name})"
        )
    if found.train is None and not anything:
        raise UserError(f"{folder} holds validation text only")
    return found, tokenizer


def _check_separator(main: str, prepared_with: str | None, asked: str | None) -> None:
    if asked is not None and asked != prepared_with:
        raise UserError(
            f"{main} holds tokens that were not split at data.document_separator={asked!r}; unset "
            "it, or prepare the text again with --document_separator"
        )


def open_plan(
    source: str | None,
    val_source: str | None,
    val_fraction: float,
    document_separator: str | None = None,
) -> Plan:
    """Returns the plan of a corpus given as `data.*` fields; named sources and files are found.

    Raises:
      UserError: if a source is not there, or there would be nothing to validate on.
    """
    for field, given in (
        ("data.source", source),
        ("data.val_source", val_source),
        ("data.document_separator", document_separator),
    ):
        if given == "":
            raise UserError(f"{field} is empty; leave it out, or give a value")
    if source:
        check_split(val_fraction, val_source, "data.val_fraction", "data.val_source")

    def opened(spec: str | None) -> Source | None:
        found = open_source(spec) if spec else None
        return Separated(found, document_separator) if found and document_separator else found

    return Plan(opened(source), opened(val_source), val_fraction, document_separator)
