"""Saves a run's tokenizer file in its run directory, and finds it again by its fingerprint."""

from __future__ import annotations

from pathlib import Path

from gpt2_jax.data.tokenizer import (
    Tokenizer,
    is_tokenizer_file,
    load_tokenizer,
)
from gpt2_jax.errors import UserError
from gpt2_jax.files import write_atomic

TOKENIZER = "tokenizer.json"


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Saves the tokenizer's file in a run directory; built-in tokenizers have no file."""
    if tokenizer.content is not None:
        write_atomic(folder / TOKENIZER, tokenizer.content)


def find_saved_tokenizer(folder: Path, name: str, fingerprint: str | None) -> str:
    """Returns the `data.tokenizer` from which to load the tokenizer of the run in `folder`.

    Args:
      name: the run's `data.tokenizer`; a path is read only if the saved copy is missing or changed.
      fingerprint: fingerprint of the run's tokenizer; None if the run did not record it, in which
        case the saved copy is not checked.

    Raises:
      UserError: if neither the saved copy nor the file at `name` has this fingerprint.
    """
    if not is_tokenizer_file(name):
        return name
    saved = (folder / TOKENIZER).absolute()
    if fingerprint is None:
        return str(saved) if saved.exists() else name
    for candidate in (str(saved), name):
        if has_fingerprint(candidate, fingerprint):
            return candidate
    fault = "has changed since the run started" if saved.exists() else "is missing"
    raise UserError(
        f"{saved} {fault}; restore the original file (tokenizer fingerprint {fingerprint[:12]} in "
        "run.json)"
    )


def has_fingerprint(name: str, fingerprint: str) -> bool:
    """Returns whether `name` is a readable tokenizer with this fingerprint."""
    try:
        return load_tokenizer(name).fingerprint == fingerprint
    except UserError:
        return False


def tokenizer_file_changed(name: str, fingerprint: str) -> bool:
    """Returns whether `name` is an existing tokenizer file with another fingerprint."""
    is_file = is_tokenizer_file(name) and Path(name).is_file()
    return is_file and not has_fingerprint(name, fingerprint)


def same_tokenizer(name: str, other: str) -> bool:
    """Returns whether two values of `data.tokenizer` name the same tokenizer."""
    if name == other:
        return True
    try:
        return has_fingerprint(name, load_tokenizer(other).fingerprint)
    except UserError:
        return False
