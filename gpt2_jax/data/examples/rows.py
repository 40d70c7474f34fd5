"""Reads rows with named columns: JSON Lines, JSON, CSV, and cells separated by tabs."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from gpt2_jax.data.decompress import open_text
from gpt2_jax.data.examples.fields import Row
from gpt2_jax.data.examples.json_file import read_json_rows
from gpt2_jax.data.examples.lines import read_lines
from gpt2_jax.data.readers import csv_rows, file_format, parse_lines
from gpt2_jax.data.text import reader_errors, short_list
from gpt2_jax.errors import UserError, counted


def read_rows(path: Path, keys: str, has_header: bool) -> Iterator[Row]:
    """Yields the rows of a file in order.

    Files named `.jsonl` and `.json` are read as such, and `.csv` by RFC 4180. All other files have
    cells separated by tabs, where quotes have no meaning.

    Args:
      keys: for `.json`, where the list of rows is, as `key` or `key+key`; empty if the file is a
        list.
      has_header: whether the first line of a table has the names of the columns.

    Raises:
      UserError: if the file cannot be read, naming the file and the line.
    """
    form = file_format(path)
    if form == ".json":
        yield from read_json_rows(path, keys)
        return
    if form == ".jsonl":
        with reader_errors(f"cannot read {path}"), open_text(path) as file:
            yield from (Row(value, where) for value, where in parse_lines(file, path))
    elif form == ".csv" and ".tsv" not in map(str.lower, path.suffixes):
        yield from _named(_read_csv(path), has_header)
    else:
        yield from _named(_read_tabs(path), has_header)


def _read_csv(path: Path) -> Iterator[tuple[list[str], str]]:
    csv.field_size_limit(sys.maxsize)
    with reader_errors(f"cannot read {path}"), open_text(path) as file:
        yield from csv_rows(path, io.TextIOWrapper(file, "utf-8", newline=""), ",")


def _read_tabs(path: Path) -> Iterator[tuple[list[str], str]]:
    for number, line in read_lines(path):
        if line:
            yield line.split("\t"), f"{path} line {number}"


def _named(rows: Iterator[tuple[list[str], str]], has_header: bool) -> Iterator[Row]:
    """Yields rows by name if there is a header, else by number."""
    names, header = next(rows, ([], "")) if has_header else ([], "")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{header} has two columns named {twice}; rename one")
    for cells, where in rows:
        if not has_header:
            yield Row(cells, where)
        elif len(cells) == len(names):
            yield Row(dict(zip(names, cells, strict=True)), where)
        else:
            raise UserError(
                f"{where} has {counted(len(cells), 'cell')}, but the header has {len(names)} "
                f"({short_list(names)}); correct the line"
            )
