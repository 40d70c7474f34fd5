"""What `data.*` names, opened: prepared folders, .bin shards, or text prepared into the cache."""

from __future__ import annotations

from pathlib import Path

from gpt2_jax.data import shards
from gpt2_jax.data.preparation import plan_key, prepare
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.split import Plan
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir


def open_corpus(
    source: str | None, val_source: str | None, tokenizer_name: str, val_fraction: float
) -> tuple[Corpus, Tokenizer]:
    """Returns tokens ready to be read, preparing text into the cache the first time.

    Args:
      source: as `data.source`; None for validation text alone.
      val_source: as `data.val_source`.

    Raises:
      UserError: if there is no text, or it cannot be read or stored.
    """
    main = source or val_source or ""
    if Path(main).is_dir() and (Path(main) / shards.MANIFEST).exists():
        if source and val_source:
            raise UserError(f"{source} is prepared with a validation part; unset data.val_source")
        return _open_prepared(Path(main), source is None, tokenizer_name)
    if main.endswith(".bin"):
        if tokenizer_name != "gpt2":
            raise UserError(
                f"{main}: .bin shards hold GPT-2 tokens; set data.tokenizer=gpt2 "
                f"(it is {tokenizer_name})"
            )
        return shards.open_bins(main, val_source, val_fraction), load_tokenizer("gpt2")
    tokenizer = load_tokenizer(tokenizer_name)
    plan = open_plan(source, val_source, val_fraction)
    folder = cache_dir() / "corpora" / plan_key(plan, tokenizer)[:24]
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


def open_plan(source: str | None, val_source: str | None, val_fraction: float) -> Plan:
    """Returns the plan of a corpus given as `data.*` fields; `stdlib` and files are found here."""
    return Plan(
        open_source(source) if source else None,
        open_source(val_source) if val_source else None,
        val_fraction,
    )
