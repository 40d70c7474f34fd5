"""Parses JSON, and finds the records in a parsed JSON file."""

from __future__ import annotations

import json
from typing import Any

from gpt2_jax.data.text import TEXT_FIELDS, short_list
from gpt2_jax.errors import UserError


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
      ValueError: if it is not valid, or an object has its text field more than once.
    """
    return json.loads(text, object_pairs_hook=_object)


def parse_json_line(line: str | bytes, where: str) -> Any:
    """Parses a line of JSON.

    Raises:
      UserError: if it is not valid, naming its file and line, and the column.
    """
    try:
        return parse_json(line)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        for name in TEXT_FIELDS if len(fields) > 1 else fields:
            if names.count(name) > 1:
                raise ValueError(f"an object has the field '{name}' {names.count(name)} times")
    return fields


def find_records(parsed: object, where: str) -> list[Any]:
    """Returns the records of a JSON file: objects with a text field, or strings.

    A list is a list of records. An object with a text field (`text`, `content` or `body`) is one
    record or a table of columns. Any other object has its records in its only list of objects, or
    in its only field.

    Raises:
      UserError: if the records are ambiguous or not found.
    """
    if isinstance(parsed, list):
        return parsed
    if not isinstance(parsed, dict):
        return [parsed]
    fields = [name for name in TEXT_FIELDS if name in parsed]
    tables = [name for name, value in parsed.items() if _is_table(value)]
    if fields:
        tables = [name for name in tables if any(f in parsed[name][0] for f in TEXT_FIELDS)]
    if len(fields[:1] + tables) > 1:
        raise UserError(
            f"{where} has text in several fields ({short_list(fields[:1] + tables)}); save the one "
            "to train on as a separate file"
        )
    if fields:
        return _column(parsed, fields[0])
    if tables:
        return list(parsed[tables[0]])
    if len(parsed) == 1:
        return _column(parsed, next(iter(parsed)))
    raise UserError(
        f"{where} is an object without a field {' or '.join(TEXT_FIELDS)} or a list of records; "
        f"its fields are {short_list(list(parsed))}"
    )


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _column(parsed: dict[str, Any], name: str) -> list[Any]:
    """Returns the values of a column, or the object itself if it is a record."""
    value = parsed[name]
    if isinstance(value, dict) and list(value) == [str(i) for i in range(len(value))]:
        return list(value.values())  # pandas writes a column as {"0": first, "1": second}
    return value if isinstance(value, list) else [parsed]
