"""Reads the lists in a JSON file item by item, with the line of each item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from gpt2_jax.data.decompress import open_text
from gpt2_jax.data.examples.fields import Row
from gpt2_jax.data.text import reader_errors, short_list
from gpt2_jax.errors import UserError

_SPACE = " \t\n\r"


def read_json_rows(path: Path, keys: str) -> Iterator[Row]:
    """Yields the items of the lists at `keys` (`key+key`), or of the file if `keys` is empty.

    Raises:
      UserError: if the file is not JSON or has no such list, naming the line.
    """
    with reader_errors(f"cannot read {path}"):
        try:
            with open_text(path) as file:
                text = file.read().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it") from None
        reader = _Reader(text)
        try:
            yield from (Row(item, f"{path} line {line}") for item, line in reader.items(path, keys))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {error.lineno} is not JSON: {error.msg}") from None


class _Reader:
    """A position in a JSON text. Only the items of lists are parsed by the library.

    Args:
      text: the whole file.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._decode = json.JSONDecoder().raw_decode
        self._line, self._counted = 1, 0

    def items(self, path: Path, keys: str) -> Iterator[tuple[Any, int]]:
        """Yields the items of the lists at `keys`, in the order of `keys`, with their lines."""
        start = self._skip(0)
        if not keys:
            if self._text[start : start + 1] != "[":
                raise UserError(
                    f"{path} is not a list of rows; name the list, as in {path}#train"
                    f"{self._hint(start)}"
                )
            yield from self._list(start)
            return
        lists = self._object(start) if self._text[start : start + 1] == "{" else {}
        for key in keys.split("+"):
            if key not in lists or self._text[lists[key]] != "[":
                raise UserError(
                    f"{path} has no list named {key}; its fields are {short_list(list(lists))}"
                )
            yield from self._list(lists[key])

    def _hint(self, start: int) -> str:
        known = list(self._object(start)) if self._text[start : start + 1] == "{" else []
        return f" (its fields are {short_list(known)})" if known else ""

    def _skip(self, position: int) -> int:
        while self._text[position : position + 1] in _SPACE and position < len(self._text):
            position += 1
        return position

    def _object(self, position: int) -> dict[str, int]:
        """Returns where the value of each field of an object starts."""
        found: dict[str, int] = {}
        position = self._skip(position + 1)
        while self._text[position : position + 1] != "}":
            if found:
                position = self._skip(self._expect(",", position))
            self._expect('"', position)
            name, position = scanstring(self._text, position + 1, True)
            position = self._skip(self._expect(":", self._skip(position)))
            found[name] = position
            position = self._skip(self._decode(self._text, position)[1])
        return found

    def _list(self, position: int) -> Iterator[tuple[Any, int]]:
        self._line, self._counted = 1, 0
        position, first = self._skip(position + 1), True
        while self._text[position : position + 1] != "]":
            if not first:
                position = self._skip(self._expect(",", position))
            item, end = self._decode(self._text, position)
            yield item, self._line_of(position)
            position, first = self._skip(end), False

    def _expect(self, character: str, position: int) -> int:
        if self._text[position : position + 1] != character:
            raise json.JSONDecodeError(f"expected {character!r}", self._text, position)
        return position + 1

    def _line_of(self, position: int) -> int:
        self._line += self._text.count("\n", self._counted, position)
        self._counted = position
        return self._line
