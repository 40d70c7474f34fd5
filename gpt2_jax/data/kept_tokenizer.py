"""The copy of its tokenizer file that a run keeps, so that no other file can take its place."""

from __future__ import annotations

from pathlib import Path

from gpt2_jax.data.tokenizer import (
    JsonTokenizer,
    Tokenizer,
    is_tokenizer_file,
    load_tokenizer,
)
from gpt2_jax.errors import UserError
from gpt2_jax.files import write_atomic

TOKENIZER = "tokenizer.json"


def keep_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer's file into a run's folder; built-in tokenizers have none."""
    if isinstance(tokenizer, JsonTokenizer):
        write_atomic(folder / TOKENIZER, tokenizer.content)


def find_kept_tokenizer(folder: Path, name: str, fingerprint: str | None) -> str:
    """Returns the name under which to load the tokenizer that the run in `folder` began with.

    Args:
      name: the run's own `data.tokenizer`. A path is only read if the copy is missing.
      fingerprint: of the run's tokenizer; None in runs that did not record it, whose copy is
        trusted.

    Raises:
      UserError: if neither the copy nor the file at the path has that fingerprint.
    """
    if not is_tokenizer_file(name):
        return name
    copy = (folder / TOKENIZER).absolute()
    if fingerprint is None:
        return str(copy) if copy.exists() else name
    for candidate in (str(copy), name):
        if has_fingerprint(candidate, fingerprint):
            return candidate
    fault = "is not the run's tokenizer any more" if copy.exists() else "is missing"
    raise UserError(
        f"{copy} {fault}; put back the file that the run began with (tokenizer fingerprint "
        f"{fingerprint[:12]} in run.json)"
    )


def has_fingerprint(name: str, fingerprint: str) -> bool:
    """Returns whether `name` is a readable tokenizer with this fingerprint."""
    try:
        return load_tokenizer(name).fingerprint == fingerprint
    except UserError:
        return False


def is_replaced(name: str, fingerprint: str) -> bool:
    """Returns whether a tokenizer file exists and is not the one with this fingerprint."""
    is_file = is_tokenizer_file(name) and Path(name).is_file()
    return is_file and not has_fingerprint(name, fingerprint)


def same_tokenizer(name: str, other: str) -> bool:
    """Returns whether two values of `data.tokenizer` are the same tokenizer."""
    if name == other:
        return True
    try:
        return has_fingerprint(name, load_tokenizer(other).fingerprint)
    except UserError:
        return False
