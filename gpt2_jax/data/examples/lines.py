"""Reads the lines of a text file, split at LF alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpt2_jax.data.decompress import open_text
from gpt2_jax.data.text import reader_errors
from gpt2_jax.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number of each line, from 1, and its text without the line ending.

    Lines end at LF or CRLF only: other characters that Unicode counts as line breaks are text.

    Raises:
      UserError: if the file cannot be read or is not UTF-8, naming the line.
    """
    with reader_errors(f"cannot read {path}"), open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} line {number} is not UTF-8 text ({error.reason}); convert the file, "
                    "for example with iconv"
                ) from None
            yield number, text.removesuffix("\n").removesuffix("\r")
