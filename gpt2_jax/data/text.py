"""Documents as pieces of text, and the column of a table that holds them."""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpt2_jax.errors import UserError

PIECE_CHARS = 1 << 24
TEXT_FIELDS = ("text", "content", "body")


@dataclass(frozen=True)
class Piece:
    """A stretch of text, and whether it is the last of its document."""

    text: str
    last: bool = True


def split_long(text: str) -> Iterator[Piece]:
    """Yields a document in pieces, cut before white space, where no tokenizer's token crosses.

    GPT-2's pattern starts a new word at white space that follows other characters, so the ids of
    the pieces are the ids of the whole.
    """
    if not text:
        return
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        while end > start and not (text[end].isspace() and not text[end - 1].isspace()):
            end -= 1
        if end == start:
            end = start + PIECE_CHARS
        yield Piece(text[start:end], last=False)
        start = end
    yield Piece(text[start:])


def row_text(value: Any, where: str) -> Iterator[Piece]:
    """Yields the text of one row; a null or empty value is not a document.

    Binary values are read as UTF-8, because many programs write text without marking it as such.

    Raises:
      UserError: if the value is not text.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 text ({error.reason})") from None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} has no text, but {type(value).__name__}")
    if value and not value.isascii():
        check_encodable(value, where)
    yield from split_long(value or "")


def check_encodable(text: str, where: str) -> None:
    """Refuses lone surrogates, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} is not text: it holds half of a surrogate pair, "
            f"{text[error.start]!a}, at character {error.start}"
        ) from None


def text_field(columns: list[str], where: str) -> str:
    """Returns the column that holds the text: `text`, `content`, `body`, or the only one.

    Raises:
      UserError: if there is no such column, or two columns have its name.
    """
    for name in TEXT_FIELDS:
        if columns.count(name) > 1:
            raise UserError(f"{where} has {columns.count(name)} columns named {name}; rename one")
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    raise UserError(
        f"{where} has no column named {' or '.join(TEXT_FIELDS)}; its columns are {shown(columns)}"
    )


def shown(names: list[str], limit: int = 8) -> str:
    """Returns names as a short list for an error message."""
    listed = ", ".join(name if len(name) <= 40 else name[:40] + "…" for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns what any reader raises on a file that is not what its name says into one line."""
    import pyarrow as pa
    import zstandard

    try:
        yield
    except RecursionError:
        raise UserError(f"{what}: its JSON is nested too deeply") from None
    except (
        OSError,
        EOFError,
        ValueError,
        lzma.LZMAError,
        zlib.error,
        csv.Error,
        zstandard.ZstdError,
        pa.ArrowException,
    ) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
