"""Where text comes from: files of many kinds, the standard library, Hugging Face datasets.

A source gives its documents as a stream of pieces, so that neither a corpus nor one of its
documents needs to fit into memory.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from gpt2_jax.errors import UserError
from gpt2_jax.files import remembered_sha256

PIECE_CHARS = 1 << 24
TEXT_FIELDS = ("text", "content", "body")
_COMPRESSED = (".gz", ".xz", ".zst")
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".raw", ".text")
_TEST_FOLDERS = ("test", "tests", "idle_test")


@dataclass(frozen=True)
class Piece:
    """A stretch of text, and whether it is the last of its document."""

    text: str
    last: bool = True


class Source(Protocol):
    """A corpus.

    Attributes:
      name: as `data.source` gives it.
      size: bytes on disk, for a progress bar; None if unknown.
    """

    name: str

    @property
    def size(self) -> int | None: ...

    def fingerprint(self) -> str:
        """Returns a hash that changes with the content."""

    def pieces(self) -> Iterator[Piece]:
        """Yields the documents in a fixed order, in pieces."""


class Files:
    """Documents in local files, each read by what its name ends in, compressed or not."""

    def __init__(self, name: str, paths: list[Path]) -> None:
        self.name, self.paths = name, paths
        self.size = sum(path.stat().st_size for path in paths)

    def fingerprint(self) -> str:
        with _readable("the source cannot be read"):
            facts = [[_kind(p), p.suffix, remembered_sha256(p)] for p in self.paths]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        for path in self.paths:
            with _readable(f"cannot read {path}"):
                for piece in _reader(path)(path):
                    piece.text.encode()  # a lone surrogate has no bytes
                    yield piece


class HubDataset:
    """Rows of anything that `datasets.load_dataset` loads, `hf:name[:config]@split`."""

    def __init__(self, spec: str) -> None:
        import datasets

        self.name, self.size = f"hf:{spec}", None
        path, _, split = spec.partition("@")
        path, _, config = path.partition(":")
        if not split:
            raise UserError(f"source {self.name} names no split; write hf:{spec}@train")
        datasets.disable_progress_bars()
        try:
            self._rows = datasets.load_dataset(path, config or None, split=split)
        except Exception as error:  # the library raises many kinds, with many lines
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(f"source {self.name}: datasets cannot load it: {reason}") from None
        self._field = text_field(self._rows.column_names, self.name)

    def fingerprint(self) -> str:
        sums = self._rows.info.download_checksums or {}
        facts = [self.name, self._rows.num_rows, self._rows.info.dataset_size, sorted(sums.items())]
        return hashlib.sha256(json.dumps([*facts, self._rows._fingerprint]).encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        for number, row in enumerate(self._rows.select_columns([self._field])):
            yield from _text(row[self._field], f"{self.name} row {number}")


def open_source(spec: str) -> Source:
    """Returns the corpus that `data.source` names.

    Raises:
      UserError: if nothing is there, or it is not text.
    """
    if spec == "stdlib":
        return _stdlib()
    if spec.startswith("hf:"):
        return HubDataset(spec.removeprefix("hf:"))
    if "://" in spec:
        raise UserError(
            f"source {spec} is a remote path; copy it to a local disk, or use hf:name@split"
        )
    path = Path(spec)
    if path.is_dir():
        paths = [p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p) is not None]
    else:
        paths = [Path(p) for p in sorted(glob.glob(spec, recursive=True)) if os.path.isfile(p)]
    if not paths:
        raise UserError(
            f"source {spec} matches no file; give `stdlib`, a path or glob of text, jsonl, "
            "json, parquet, csv or arrow files, a prepared folder, or hf:name@split"
        )
    return Files(spec, paths)


def _stdlib() -> Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {*_TEST_FOLDERS, "site-packages", "dist-packages", "__pycache__"}
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - skipped)
        paths += [Path(folder, n) for n in sorted(names) if n.endswith((".py", ".txt", ".rst"))]
    kept = [path for path in paths if path.stat().st_size and _is_utf8(path)]
    if not kept:
        raise UserError(f"source stdlib: no sources under {root}; give another data.source")
    return Files("stdlib", kept)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


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


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns what any reader raises on a file that is not what its name says into one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, csv.Error) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
    except pa.ArrowException as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None


def _text(value: Any, where: str) -> Iterator[Piece]:
    """Yields the text of one row; no text at all is a row of nothing."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} has no text, but {type(value).__name__}")
    yield from split_long(value or "")


def text_field(columns: list[str], where: str) -> str:
    """Returns the column that holds the text: `text`, `content`, `body`, or the only one."""
    for name in TEXT_FIELDS:
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    raise UserError(
        f"{where} has no column named {' or '.join(TEXT_FIELDS)}; "
        f"its columns are {', '.join(columns)}"
    )


def _kind(path: Path) -> str | None:
    suffixes = [s for s in path.suffixes if s not in _COMPRESSED]
    suffix = suffixes[-1].lower() if suffixes else ""
    if suffix in (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".arrow"):
        return suffix
    return ".txt" if suffix in _TEXT_SUFFIXES else None


def _reader(path: Path) -> Callable[[Path], Iterator[Piece]]:
    return {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
        ".csv": _read_csv,
        ".arrow": _read_arrow,
    }.get(_kind(path) or "", _read_text)


def _open(path: Path) -> IO[bytes]:
    match path.suffix:
        case ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        case _:
            return open(path, "rb")


def _read_text(path: Path) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held = ""
    with _open(path) as file:
        while chunk := file.read(PIECE_CHARS):
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


def _read_jsonl(path: Path) -> Iterator[Piece]:
    field = None
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path} line {number} is not JSON: {error}") from None
            field = field or _row_field(row, f"{path} line {number}")
            yield from _row_text(row, field, f"{path} line {number}")


def _read_json(path: Path) -> Iterator[Piece]:
    with _open(path) as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None
    if isinstance(rows, dict):  # {"data": [...]} and the like
        rows = next((value for value in rows.values() if isinstance(value, list)), [rows])
    if not isinstance(rows, list):
        rows = [rows]
    for number, row in enumerate(rows, 1):
        where = f"{path} entry {number}"
        yield from _row_text(row, _row_field(row, where), where)


def _row_field(row: Any, where: str) -> str:
    return text_field(list(row), where) if isinstance(row, dict) else ""


def _row_text(row: Any, field: str, where: str) -> Iterator[Piece]:
    text = row.get(field, 0) if isinstance(row, dict) else row
    yield from _text(text, f"{where} ('{field}')" if field else where)


def _read_csv(path: Path) -> Iterator[Piece]:
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
        field = text_field(list(reader.fieldnames or []), str(path))
        for row in reader:
            yield from _text(row[field], str(path))


def _read_parquet(path: Path) -> Iterator[Piece]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    field = text_field(file.schema_arrow.names, str(path))
    for batch in file.iter_batches(batch_size=1024, columns=[field]):
        for value in batch.column(0):
            yield from _text(value.as_py(), str(path))


def _read_arrow(path: Path) -> Iterator[Piece]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        try:
            batches: Any = pa.ipc.open_stream(mapped)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(mapped)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in batches:
            column = batch.column(text_field(batch.schema.names, str(path)))
            for value in column:
                yield from _text(value.as_py(), str(path))
