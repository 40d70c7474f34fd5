"""The documents in one file, read as what its name ends in: text, JSON, CSV, Parquet, Arrow."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt2_jax.data import text as texts
from gpt2_jax.data.decompress import COMPRESSED, open_binary, open_text
from gpt2_jax.data.json_records import find_records, parse_json
from gpt2_jax.data.text import Piece, readable, row_text, shown, split_long, text_field
from gpt2_jax.errors import UserError

_DELIMITERS = ",;\t|"
_LONGEST_NAME_WORDS = 3  # in the header of a CSV file with one column
_ROWS = 1024
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream, since Arrow 0.15


def kind(path: Path) -> str | None:
    """Returns how a file is read, such as `.jsonl`, or None if its name does not say."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def read_documents(path: Path) -> Iterator[Piece]:
    """Yields the documents of a file in order, in pieces.

    Raises:
      UserError: naming the file, and the row if there are rows, if it cannot be read.
    """
    with readable(f"cannot read {path}"):
        yield from _READERS[kind(path) or ".txt"](path)


def _read_text(path: Path) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held = ""
    with open_text(path) as file:
        while chunk := file.read(texts.PIECE_CHARS):
            if b"\0" in chunk:
                raise UserError(f"{path} is binary, not text (it holds a zero byte)")
            held += _decode(decoder, chunk, path)
            pieces = list(split_long(held))
            held = pieces.pop().text if pieces else ""
            yield from pieces
    held += _decode(decoder, b"", path, final=True)
    if held:
        yield Piece(held)


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
        yield from _row_texts(_parsed_lines(file, path))


def _parsed_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield parse_json(line), f"{path} line {number}"
            except RecursionError:
                raise UserError(f"{path} line {number} is nested too deeply") from None
            except ValueError as error:
                raise UserError(f"{path} line {number} is not JSON: {error}") from None


def _read_json(path: Path) -> Iterator[Piece]:
    with open_text(path) as file:
        content = file.read()
    try:
        found = find_records(parse_json(content), str(path))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise UserError(f"{path} is not JSON: {error}") from None
        # JSON Lines are often named .json; each line must then be JSON of its own.
        yield from _row_texts(_parsed_lines(io.BytesIO(content), path))
        return
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    yield from _row_texts((row, f"{path} entry {n}") for n, row in enumerate(found, 1))


def _row_texts(rows: Iterable[tuple[Any, str]]) -> Iterator[Piece]:
    """Yields the texts of JSON rows, which are all strings or all have the first one's field."""
    field: str | None = None
    for number, (row, where) in enumerate(rows):
        if not isinstance(row, dict):
            if field is not None:
                raise UserError(f"{where} is not an object, as those before it are")
            yield from row_text(row, where)
            continue
        if field is None:
            if number:
                raise UserError(f"{where} is an object, unlike those before it")
            field = text_field(list(row), where)
        if field not in row:
            raise UserError(
                f"{where} has no field '{field}', which the text is read from; "
                f"its fields are {shown(list(row))}"
            )
        yield from row_text(row[field], f"{where} ('{field}')")


# -- CSV


def _read_csv(path: Path) -> Iterator[Piece]:
    """Reads RFC 4180 strictly: pyarrow and pandas each accept files that have lost a quote."""
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        lines = io.TextIOWrapper(file, "utf-8", newline="")
        head = lines.readline()
        delimiter = _delimiter(head, path)
        rows = _csv_rows(path, lines, head, delimiter)
        names, _ = next(rows, ([], ""))
        field = text_field(names, str(path))
        if len(names) == 1 and (field[:1] in "{[" or len(field.split()) > _LONGEST_NAME_WORDS):
            raise UserError(
                f"{path} row 1, {field[:40]!r}, does not look like a column's name; give the file "
                "a header such as 'text', or name it .txt"
            )
        column = names.index(field)
        for cells, where in rows:
            if len(cells) != len(names):
                raise UserError(
                    f"{where} has {len(cells)} cells, but the header has {len(names)}; "
                    "quote cells that hold the delimiter or a line break"
                )
            yield from row_text(cells[column], where)


def _csv_rows(
    path: Path, lines: Iterator[str], head: str, delimiter: str
) -> Iterator[tuple[list[str], str]]:
    """Yields the rows that are not blank, with the place of each for an error message."""
    reader = csv.reader(_all_lines(head, lines), delimiter=delimiter, strict=True)
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


def _all_lines(head: str, lines: Iterator[str]) -> Iterator[str]:
    if head:
        yield head
    yield from lines


def _delimiter(head: str, path: Path) -> str:
    """Returns the delimiter under which the header has a text column, or else most columns.

    A header of one column does not show it; then the name of the file decides.
    """
    named = "\t" if ".tsv" in map(str.lower, path.suffixes) else ","

    def fit(delimiter: str) -> tuple[bool, int]:
        names = next(csv.reader([head], delimiter=delimiter), [])
        return any(name in texts.TEXT_FIELDS for name in names), len(names)

    return max(named + _DELIMITERS, key=fit)  # of equal ones the first


# -- Parquet and Arrow


def _read_parquet(path: Path) -> Iterator[Piece]:
    import pyarrow.dataset as ds

    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)  # where there are any
    format_ = ds.ParquetFileFormat(default_fragment_scan_options=options)
    table = ds.dataset(path, format=format_)
    field = _text_column(table.schema, path)
    # An expression names the column itself: a plain name with a dot would mean a nested field.
    scanner = table.scanner(
        columns={"text": ds.field(field)}, batch_size=_ROWS, batch_readahead=1, fragment_readahead=1
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
    """Refuses an Arrow stream that was cut between two batches, or that another one follows.

    Arrow's reader takes the end of the file, too, for the end of the stream.
    """
    end = stream.tell()
    stream.seek(max(0, end - len(_ARROW_END)))
    if stream.read(len(_ARROW_END)) != _ARROW_END:
        raise UserError(f"{path} has no end-of-stream mark: it was cut short; write it again")
    if stream.read(1):
        raise UserError(f"{path} holds more after the end of its stream; write one stream per file")


def _text_column(schema: Any, path: Path) -> str:
    """Returns the name of the text column after checking its type."""
    import pyarrow.types as types

    field = text_field(schema.names, str(path))
    found = schema.field(field).type
    inner = found.value_type if types.is_dictionary(found) else found
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    if str(inner) not in (*kinds, "null"):
        raise UserError(f"{path} column '{field}' has no text, but {inner}")
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
_KINDS = {suffix: suffix for suffix in _READERS} | {
    **dict.fromkeys((".md", ".rst", ".py", ".raw", ".text"), ".txt"),
    **dict.fromkeys((".ndjson", ".jsonlines"), ".jsonl"),
    ".tsv": ".csv",
}
