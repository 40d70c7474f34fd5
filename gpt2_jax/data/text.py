"""Splits documents into pieces of text, and finds the text column of a table."""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gpt2_jax.errors import UserError

PIECE_CHARS = 1 << 24
TEXT_FIELDS = ("text", "content", "body")


@dataclass(frozen=True)
class Piece:
    """A document or part of one; `last` marks the final piece of each document."""

    text: str
    last: bool = True


def split_long(text: str) -> Iterator[Piece]:
    """Yields a document in pieces of at most `PIECE_CHARS`, cut where white space begins.

    No token of GPT-2's tokenizer crosses such a cut, so the ids of the pieces are those of the
    whole document. A piece without white space is cut at its maximum length.
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


def row_text(value: object, where: str) -> Iterator[Piece]:
    """Yields the text of one row; a null or empty value yields nothing.

    Binary values are decoded as UTF-8, because many programs do not declare text columns as text.

    Raises:
      UserError: if the value is not text.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 text ({error.reason})") from None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} is not text but {type(value).__name__}")
    if value and not value.isascii():
        check_encodable(value, where)
    yield from split_long(value or "")


def check_encodable(text: str, where: str) -> None:
    """Raises a `UserError` for lone surrogates, which JSON can encode but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} is not valid text: it has half of a surrogate pair, "
            f"{text[error.start]!a}, at character {error.start}"
        ) from None


def text_field(columns: list[str], where: str) -> str:
    """Returns the name of the text column: `text`, `content`, `body`, or the only column.

    Raises:
      UserError: if there is no such column, or more than one of that name.
    """
    for name in TEXT_FIELDS:
        if columns.count(name) > 1:
            raise UserError(f"{where} has {columns.count(name)} columns named {name}; rename one")
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    raise UserError(
        f"{where} has no column named {' or '.join(TEXT_FIELDS)}; "
        f"its columns are {short_list(columns)}"
    )


def short_list(names: list[str], limit: int = 8) -> str:
    """Joins names for an error message, shortening long names and long lists."""
    listed = ", ".join(name if len(name) <= 40 else name[:40] + "…" for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed


@contextmanager
def reader_errors(what: str) -> Iterator[None]:
    """Turns the exceptions of all readers for an unreadable file into a `UserError`."""
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
