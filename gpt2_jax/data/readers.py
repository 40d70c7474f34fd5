"""Reads the documents of a file: text, JSON, JSON Lines, CSV, Parquet or Arrow."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from gpt2_jax.data import text as texts
from gpt2_jax.data.decompress import COMPRESSED, open_binary, open_text
from gpt2_jax.data.json_records import find_records, parse_json, parse_json_line
from gpt2_jax.data.text import Piece, reader_errors, row_text, short_list, split_long, text_field
from gpt2_jax.errors import UserError, counted

_DELIMITERS = ",;\t|"
_MAX_NAME_WORDS = 3  # in the column name of a CSV file with one column
_BATCH_ROWS = 1024
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # end-of-stream marker, since Arrow 0.15


def file_format(path: Path) -> str | None:
    """Returns the format of a file, such as `.jsonl`, from its name; None if it is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def read_documents(path: Path) -> Iterator[Piece]:
    """Yields the documents of a file in order, in pieces. A file of unknown format is read as text.

    Raises:
      UserError: if the file cannot be read, naming the file and the row.
    """
    with reader_errors(f"cannot read {path}"):
        yield from _READERS[file_format(path) or ".txt"](path)


def _read_text(path: Path) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    with open_text(path) as file:
        while chunk := file.read(texts.PIECE_CHARS):
            if b"\0" in chunk:
                raise UserError(f"{path} is binary, not text (it has a zero byte)")
            pending += _decode(decoder, chunk, path)
            pieces = list(split_long(pending))
            pending = pieces.pop().text if pieces else ""
            yield from pieces
    pending += _decode(decoder, b"", path, final=True)
    if pending:
        yield Piece(pending)


def _decode(decoder: Any, chunk: bytes, path: Path, final: bool = False) -> str:
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason}); convert it, for example with iconv"
        ) from None


# -- JSON


def _read_jsonl(path: Path) -> Iterator[Piece]:
    with open_text(path) as file:
        yield from _row_texts(parse_lines(file, path))


def parse_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[Any, str]]:
    """Yields the value of each line of JSON Lines that is not blank, and its location.

    Raises:
      UserError: if a line is not JSON.
    """
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path} line {number}"
            yield parse_json_line(line, where), where


def _read_json(path: Path) -> Iterator[Piece]:
    with open_text(path) as file:
        content = file.read()
    try:
        found = find_records(parse_json(content), str(path))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise UserError(f"{path} is not JSON: {error}") from None
        # JSON Lines files are often named .json.
        yield from _row_texts(parse_lines(io.BytesIO(content), path))
        return
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    yield from _row_texts((row, f"{path} entry {n}") for n, row in enumerate(found, 1))


def _row_texts(rows: Iterable[tuple[Any, str]]) -> Iterator[Piece]:
    """Yields the texts of JSON rows: all strings, or objects with the text field of the first."""
    field: str | None = None
    for number, (row, where) in enumerate(rows):
        if not isinstance(row, dict):
            if field is not None:
                raise UserError(f"{where} is not an object, unlike those before it")
            yield from row_text(row, where)
            continue
        if field is None:
            if number:
                raise UserError(f"{where} is an object, unlike those before it")
            field = text_field(list(row), where)
        if field not in row:
            raise UserError(
                f"{where} has no field '{field}', unlike those before it; "
                f"its fields are {short_list(list(row))}"
            )
        yield from row_text(row[field], f"{where} ('{field}')")


# -- CSV


def _read_csv(path: Path) -> Iterator[Piece]:
    """Reads RFC 4180 strictly: pyarrow and pandas accept some files with unbalanced quotes."""
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        lines = io.TextIOWrapper(file, "utf-8", newline="")
        header = lines.readline()
        delimiter = _delimiter(header, path)
        rows = csv_rows(path, chain([header] if header else [], lines), delimiter)
        names, _ = next(rows, ([], ""))
        field = text_field(names, str(path))
        if len(names) == 1 and (field[:1] in "{[" or len(field.split()) > _MAX_NAME_WORDS):
            raise UserError(
                f"{path} row 1, {field[:40]!r}, does not look like a column name; add a header "
                "such as 'text', or rename the file to .txt"
            )
        column = names.index(field)
        for cells, where in rows:
            if len(cells) != len(names):
                raise UserError(
                    f"{where} has {counted(len(cells), 'cell')}, but the header has {len(names)}; "
                    "quote cells that contain the delimiter or a line break"
                )
            yield from row_text(cells[column], where)


def csv_rows(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[list[str], str]]:
    """Yields the cells of each row that is not blank, and its location for error messages."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        number, line = number + 1, reader.line_num + 1
        where = f"{path} row {number}" + (f" (line {line})" if line != number else "")
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote is never closed" if "end of data" in str(error) else str(error)
            raise UserError(f"{where} is not valid CSV: {reason}") from None
        if cells:
            yield cells, where


def _delimiter(header: str, path: Path) -> str:
    """Returns the delimiter that splits the header into a text column, or else most columns.

    In a tie, such as a single column, the suffix of the file decides.
    """
    by_suffix = "\t" if ".tsv" in map(str.lower, path.suffixes) else ","

    def score(delimiter: str) -> tuple[bool, int]:
        names = next(csv.reader([header], delimiter=delimiter), [])
        return any(name in texts.TEXT_FIELDS for name in names), len(names)

    return max(by_suffix + _DELIMITERS, key=score)


# -- Parquet and Arrow


def _read_parquet(path: Path) -> Iterator[Piece]:
    import pyarrow.dataset as ds

    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    format_ = ds.ParquetFileFormat(default_fragment_scan_options=options)
    table = ds.dataset(path, format=format_)
    field = _text_column(table.schema, path)
    # An expression, because a plain column name with a dot would refer to a nested field.
    scanner = table.scanner(
        columns={"text": ds.field(field)},
        batch_size=_BATCH_ROWS,
        batch_readahead=1,
        fragment_readahead=1,
    )
    yield from _column_texts((batch.column(0) for batch in scanner.to_batches()), path, field)


def _read_arrow(path: Path) -> Iterator[Piece]:
    import pyarrow as pa

    if path.suffix.lower() in COMPRESSED:
        with open_binary(path) as file:
            source = pa.BufferReader(file.read())
    else:
        source = pa.memory_map(str(path))
    with source:
        try:
            batches: Any = pa.ipc.open_stream(source)
            schema, is_stream = batches.schema, True
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(source)
            schema, is_stream = opened.schema, False
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        field = _text_column(schema, path)
        column = schema.get_field_index(field)
        yield from _column_texts((batch.column(column) for batch in batches), path, field)
        if is_stream:
            _check_end(source, path)


def _check_end(stream: Any, path: Path) -> None:
    """Checks that an Arrow stream ends with its marker, at the end of the file.

    Arrow's reader mistakes the end of a truncated file for the end of the stream.
    """
    end = stream.tell()
    stream.seek(max(0, end - len(_ARROW_END)))
    if stream.read(len(_ARROW_END)) != _ARROW_END:
        raise UserError(f"{path} has no end-of-stream marker: it is truncated; write it again")
    if stream.read(1):
        raise UserError(f"{path} has data after the end of its stream; write one stream per file")


def _text_column(schema: Any, path: Path) -> str:
    """Returns the name of the text column, after checking its type."""
    import pyarrow.types as types

    field = text_field(schema.names, str(path))
    found = schema.field(field).type
    inner = found.value_type if types.is_dictionary(found) else found
    text_types = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    if str(inner) not in (*text_types, "null"):
        raise UserError(f"{path} column '{field}' is not text but {inner}")
    return field


def _column_texts(columns: Iterable[Any], path: Path, field: str) -> Iterator[Piece]:
    number = 0
    for column in columns:
        for value in column:
            number += 1
            yield from row_text(value.as_py(), f"{path} row {number} ('{field}')")


_READERS: dict[str, Callable[[Path], Iterator[Piece]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".arrow": _read_arrow,
}
_FORMATS = {suffix: suffix for suffix in _READERS} | {
    **dict.fromkeys((".md", ".rst", ".py", ".raw", ".text"), ".txt"),
    **dict.fromkeys((".ndjson", ".jsonlines"), ".jsonl"),
    ".tsv": ".csv",
}
