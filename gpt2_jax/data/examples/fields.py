"""Names the columns of a file: `text=0,label=1`, `source=abstract,target=summary`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_jax.data.text import check_encodable, short_list
from gpt2_jax.errors import UserError, counted, quoted, suggestion

_MISSING: Any = object()
_NUMBER = re.compile(r"-?\d{1,6}", re.ASCII)


def parse_fields(spec: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """Parses a value of `data.columns`.

    Args:
      spec: `NAME=COLUMN,NAME=COLUMN`. A column is a name; a number, which counts cells from 0, or
        from -1 for the last; or a path in nested JSON, such as `valueSpan.startIndex`.
      defaults: the names that may be used, with the columns of those that `spec` leaves out; an
        empty column means none.

    Returns the column of each name.

    Raises:
      UserError: if it is not valid, or has an unknown name.
    """
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        name, equals, column = (part.strip() for part in entry.partition("="))
        if not equals or not column:
            raise UserError(
                f"data.columns: {quoted(entry)} is not NAME=COLUMN, as in text=0,label=1"
            )
        if name not in defaults:
            raise UserError(f"data.columns: unknown name {name}{suggestion(name, defaults)}")
        if name in found:
            raise UserError(f"data.columns sets {name} twice")
        found[name] = column
    return {**defaults, **found}


def is_number(column: str) -> bool:
    """Returns whether a column is the number of a cell instead of a name."""
    return _NUMBER.fullmatch(column) is not None


@dataclass(frozen=True)
class Row:
    """A row of a file: a JSON value, or the cells of a line.

    Attributes:
      value: an object, by name; or a list, by number.
      where: file and line.
    """

    value: Any
    where: str

    def get(self, column: str, default: Any = _MISSING) -> Any:
        """Returns the value of a column.

        Raises:
          UserError: if the row does not have the column and there is no default.
        """
        found = self.value
        parts = [column] if isinstance(found, dict) and column in found else column.split(".")
        for part in parts:
            found = _item(found, part)
            if found is _MISSING:
                if default is not _MISSING:
                    return default
                raise UserError(
                    f"{self.where} has no column {column}; {self._columns()}: set data.columns"
                )
        return found

    def text(self, column: str) -> str:
        """Returns the text of a column; a list of texts is joined by spaces.

        Raises:
          UserError: if it is missing or is not text.
        """
        return self.text_of(self.get(column), column)

    def text_of(self, value: Any, column: str) -> str:
        """Returns a value of a column as text.

        Raises:
          UserError: if it is not text, a number, or a list of texts.
        """
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = " ".join(value)
        if isinstance(value, bool | int | float):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(
                f"{self.where} column {column} is not text but {type(value).__name__}; "
                "set data.columns to a column of text"
            )
        if not value.isascii():
            check_encodable(value, f"{self.where} column {column}")
        return value

    def integer(self, column: str, default: Any = _MISSING) -> int:
        """Returns the integer in a column.

        Raises:
          UserError: if it is missing or is not an integer.
        """
        value = self.get(column, default)
        if isinstance(value, str) and is_number(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{self.where} column {column} is not an integer: {quoted(value)}")
        return value

    def rows(self, column: str, default: Any = _MISSING) -> list[Row]:
        """Returns the items of a list in a column as rows.

        Raises:
          UserError: if it is missing or is not a list.
        """
        value = self.get(column, default)
        if not isinstance(value, list):
            raise UserError(
                f"{self.where} column {column} is not a list but {type(value).__name__}"
            )
        return [Row(item, self.where) for item in value]

    def _columns(self) -> str:
        if isinstance(self.value, dict):
            return f"its columns are {short_list([str(name) for name in self.value])}"
        if isinstance(self.value, list):
            return f"it has {counted(len(self.value), 'cell')}, numbered from 0"
        return f"it is {type(self.value).__name__}, not an object"


def _item(value: Any, part: str) -> Any:
    """Returns one item of an object or list; `_MISSING` if there is none."""
    if isinstance(value, dict):
        return value.get(part, _MISSING)
    if isinstance(value, list) and is_number(part) and -len(value) <= int(part) < len(value):
        return value[int(part)]
    return _MISSING
