"""Opens the records of a task's source: one file, or several, in one of the supported formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2_jax.data.examples.aligned import aligned_paths, check_pair, read_aligned
from gpt2_jax.data.examples.chat import chat_record
from gpt2_jax.data.examples.columns import COLUMNS, SPANS, Form, given_columns
from gpt2_jax.data.examples.conll import read_conll, tagged_row
from gpt2_jax.data.examples.fields import Row, is_number, parse_fields
from gpt2_jax.data.examples.lines import read_lines
from gpt2_jax.data.examples.records import Counts, LabeledText, Pair, PlainText, Record
from gpt2_jax.data.examples.rows import read_rows
from gpt2_jax.data.examples.spans import (
    is_squad,
    question_of,
    span_tags,
    span_text,
    squad_questions,
)
from gpt2_jax.data.examples.toy import is_toy, toy_fingerprint, toy_records
from gpt2_jax.data.file_list import list_files
from gpt2_jax.data.readers import file_format
from gpt2_jax.data.text import reader_errors
from gpt2_jax.errors import UserError, suggestion, without_credentials
from gpt2_jax.files import cached_sha256

TEXTS = ("shakespeare", "stdlib")  # sources of language modeling
# What `data.source` may be, by task.
READABLE = {
    "translate": "PATH.{source,target} for two aligned files, a path or glob of jsonl, json, csv "
    "or tab-separated files, toy:reverse or toy:language",
    "mlm": "a path or glob of text, jsonl, json, csv or tab-separated files",
    "classify": "a path or glob of jsonl, json, csv or tab-separated files",
    "tag": "a path or glob of column files (CoNLL), jsonl or json files, or toy:tags",
    "answer": "a path or glob of json files (SQuAD, or a list of rows) or jsonl files",
    "sft": "a path or glob of jsonl, json, csv or tab-separated files",
}


@dataclass(frozen=True)
class RecordSource:
    """The records of one split.

    Attributes:
      task: `translate`, `mlm`, `classify`, `tag`, `answer` or `sft`.
      spec: a path, folder or glob; `PATH.{source,target}` for aligned files; `PATH.json#key+key`
        for lists in a JSON file; `toy:NAME` for generated records.
      columns: as in `data.columns`.
      tag_scheme: `iob1` or `iob2`, of the tags in the files.
    """

    task: str
    spec: str
    columns: str = ""
    tag_scheme: str = "iob2"

    def _fields(self) -> dict[str, str]:
        if self.task not in COLUMNS:
            raise UserError(f"unknown task {self.task}{suggestion(self.task, COLUMNS)}")
        return parse_fields(self.columns, COLUMNS[self.task])

    def _files(self) -> tuple[list[Path], str]:
        """Returns the files, and the keys of the lists to read in them.

        Raises:
          UserError: if there are none, or the source is not local.
        """
        if self.spec.startswith(("hf:", "mixture:")) or "://" in self.spec:
            raise UserError(
                f"source {without_credentials(self.spec)}: examples of task.name={self.task} are "
                "read from local files; save it as JSON Lines"
            )
        path, _, keys = self.spec.partition("#")
        if path in TEXTS and not Path(path).exists():
            raise UserError(
                f"data.source={path} is text without targets; set it to the examples for "
                f"task.name={self.task}"
            )
        if Path(self.spec).exists() or not keys:
            return list_files(self.spec, READABLE[self.task])[0], ""
        files = list_files(path, READABLE[self.task])[0]
        for file in files:
            if file_format(file) != ".json":
                raise UserError(f"{file}#{keys}: only .json files have keys; remove #{keys}")
        return files, keys

    def paths(self) -> list[Path]:
        """Returns the files of this source.

        Raises:
          UserError: if there are none.
        """
        if pair := self._aligned():
            for path in pair:
                if not path.is_file():
                    raise UserError(f"source {self.spec}: {path} does not exist")
            return list(pair)
        return self._files()[0]

    def _aligned(self) -> tuple[Path, Path] | None:
        return aligned_paths(self.spec) if self.task == "translate" else None

    def fingerprint(self) -> str:
        """Returns a hash of everything that determines the records.

        Raises:
          UserError: if a file cannot be read.
        """
        if is_toy(self.spec):
            return toy_fingerprint(self.spec)
        keys = "" if self._aligned() else self._files()[1]
        with reader_errors(f"source {self.spec} cannot be read"):
            files = [[path.suffixes, cached_sha256(path)] for path in self.paths()]
        facts = [self.task, sorted(self._fields().items()), self.tag_scheme, keys, files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def records(self, counts: Counts) -> Iterator[Record]:
        """Yields the records in order.

        Args:
          counts: where repairs are counted.

        Raises:
          UserError: if a record is not valid, naming its file and line.
        """
        columns = self._fields()
        if is_toy(self.spec):
            yield from toy_records(self.spec, self.task)
            return
        if pair := self._aligned():
            self.paths()
            yield from read_aligned(*pair)
            return
        files, keys = self._files()
        for path in files:
            if self._is_column_file(path):
                words, tags = columns["words"] or "0", columns["tags"] or "-1"
                yield from read_conll(path, words, tags, self.tag_scheme, counts)
            elif self._is_text(path):
                lines = read_lines(path)
                yield from (PlainText(t, f"{path} line {n}") for n, t in lines if t.strip())
            else:
                for row in self._rows(path, keys):
                    yield from _READERS[self.task](row, columns, self.tag_scheme, counts)

    def _is_column_file(self, path: Path) -> bool:
        return self.task == "tag" and not self._fields()["spans"] and not _is_json(path)

    def _is_text(self, path: Path) -> bool:
        return self.task == "mlm" and file_format(path) in (".txt", None)

    def _rows(self, path: Path, keys: str) -> Iterator[Row]:
        named = given_columns(self.task, self.columns).values()
        has_header = not named or not all(is_number(column) for column in named)
        if self.task == "answer" and _is_json(path) and not keys and _has_data(path):
            keys = "data"  # SQuAD
        for row in read_rows(path, keys, has_header):
            if self.task == "translate" and not _is_json(path) and len(row.value) == 1:
                raise UserError(
                    f"{row.where} has one cell, but a pair needs two; to read two aligned files, "
                    "name both as in --config.data.source='DIR/train.{en,de}', in quotes"
                )
            yield row

    def forms(self) -> Iterator[Form]:
        """Yields the form of each file.

        Raises:
          UserError: if a file cannot be read.
        """
        if is_toy(self.spec):
            yield Form("is generated", ())
        elif self._aligned():
            yield Form("is a pair of aligned files", ())
        else:
            files, keys = self._files()
            yield from (self._form(path, keys) for path in files)

    def _form(self, path: Path, keys: str) -> Form:
        if self._is_column_file(path):
            return Form("is a column file of words and tags", ("words", "tags"))
        if self._is_text(path):
            return Form("is text", ())
        if self.task not in ("tag", "answer"):
            return Form("has rows", tuple(COLUMNS[self.task]))
        if self._fields()["spans"]:
            return Form("is read as texts with labeled spans", ("text", "context", *SPANS))
        if self.task == "tag":
            return Form("has lists of words and tags", ("words", "tags"))
        first = next(self._rows(path, keys), None)
        if first is not None and is_squad(first):
            return Form("is in SQuAD's format", ())
        return Form(
            "has a question per row, without labeled spans",
            ("id", "question", "context", "answers"),
        )


def _is_json(path: Path) -> bool:
    return file_format(path) in (".json", ".jsonl")


def _has_data(path: Path) -> bool:
    """Returns whether a JSON file is an object with its rows in `data`, as SQuAD's is."""
    if file_format(path) != ".json":
        return False
    try:
        next(iter(read_rows(path, "data", False)), None)
    except UserError:
        return False
    return True


def _read_pair(row: Row, columns: dict[str, str], scheme: str, counts: Counts) -> Iterator[Record]:
    target = row.get(columns["target"])
    several = target if isinstance(target, list) else [target]
    references = tuple(row.text_of(one, columns["target"]).strip() for one in several)
    pair = Pair(row.text(columns["source"]).strip(), references, row.where)
    check_pair(pair)
    yield pair


def _read_text(row: Row, columns: dict[str, str], scheme: str, counts: Counts) -> Iterator[Record]:
    yield PlainText(_filled(row, columns["text"]), row.where)


def _read_labeled(
    row: Row, columns: dict[str, str], scheme: str, counts: Counts
) -> Iterator[Record]:
    label = row.text(columns["label"]).strip()
    if not label:
        raise UserError(f"{row.where}: the label is empty; remove the line, or fill it in")
    second = row.text(columns["second"]) if columns["second"] else None
    yield LabeledText(_filled(row, columns["text"]), second, label, row.where)


def _filled(row: Row, column: str) -> str:
    text = row.text(column)
    if not text.strip():
        raise UserError(f"{row.where}: the text is empty; remove the line, or fill it in")
    return text


def _read_tagged(
    row: Row, columns: dict[str, str], scheme: str, counts: Counts
) -> Iterator[Record]:
    if columns["spans"]:
        yield span_tags(span_text(row, columns), counts)
    else:
        words, tags = columns["words"] or "words", columns["tags"] or "tags"
        yield tagged_row(row, words, tags, scheme, counts)


def _read_questions(
    row: Row, columns: dict[str, str], scheme: str, counts: Counts
) -> Iterator[Record]:
    if columns["spans"]:
        context = columns["context"] if columns["context"] != "context" else ""
        yield span_text(row, {**columns, "context": context})
    elif is_squad(row):
        yield from squad_questions(row)
    else:
        yield question_of(row, columns)


def _read_chat(row: Row, columns: dict[str, str], scheme: str, counts: Counts) -> Iterator[Record]:
    yield chat_record(row, columns)


_Reader = Callable[[Row, dict[str, str], str, Counts], Iterator[Record]]
_READERS: dict[str, _Reader] = {
    "translate": _read_pair,
    "mlm": _read_text,
    "classify": _read_labeled,
    "tag": _read_tagged,
    "answer": _read_questions,
    "sft": _read_chat,
}
