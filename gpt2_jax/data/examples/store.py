"""Stores examples as ragged columns: token shards, and where in them each example starts.

A folder has for each split and column `SPLIT.COLUMN_000000.bin`, ... in the format of token shards,
and for a ragged column `SPLIT.COLUMN.offsets.npy`. `SPLIT.jsonl` has the records as text. The
manifest, `examples.json`, is written last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt2_jax.data import shards
from gpt2_jax.data.examples.encode import SCALARS, SEQUENCES, Columns
from gpt2_jax.data.examples.records import Record, record_from_json, record_to_json
from gpt2_jax.data.manifest import Shard
from gpt2_jax.data.pieces import Frame
from gpt2_jax.data.writer import ShardWriter, WriterState
from gpt2_jax.errors import UserError, counted
from gpt2_jax.files import cached_sha256, fields_sha256, read_fields, write_json

EXAMPLES = "examples.json"
FORMAT_VERSION = 1
SHARD_VALUES = 100_000_000
_BUFFER = 4096  # examples that are written at once


@dataclass
class SplitFacts:
    """The files and counts of a split.

    Attributes:
      examples: number of examples.
      columns: shards of each column.
      counts: what was repaired or cut, by name.
    """

    examples: int = 0
    columns: dict[str, list[Shard]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class ExampleManifest:
    """The contents of a folder of examples and how they were made.

    Attributes:
      key: hash of the sources and of all options that affect the examples.
      task: as in `task.name`.
      tokenizer: name, fingerprint and size.
      labels: label names by id.
      splits: by name, such as `train`, `val` and `test`.
    """

    key: str
    task: str
    tokenizer: dict[str, Any]
    labels: list[str]
    splits: dict[str, SplitFacts]

    def write(self, folder: Path) -> None:
        """Writes the manifest."""
        stored = {"format_version": FORMAT_VERSION, **asdict(self)}
        write_json(folder / EXAMPLES, stored | {"checksum": fields_sha256(stored)})

    @staticmethod
    def read(folder: Path) -> ExampleManifest:
        """Reads the manifest of a folder.

        Raises:
          UserError: if it is missing, changed, or of a newer version.
        """
        path = folder / EXAMPLES
        stored = read_fields(path)
        try:
            if stored.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another format_version")
            checksum = stored.pop("checksum")
            if checksum != fields_sha256({"format_version": FORMAT_VERSION, **stored}):
                raise ValueError("it was changed")
            splits = {name: _parse_split(split) for name, split in stored.pop("splits").items()}
            return ExampleManifest(**stored, splits=splits)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is not a manifest of examples ({error}); delete {folder} and run again"
            ) from None


def _parse_split(stored: dict[str, Any]) -> SplitFacts:
    columns = {
        name: [Shard(**shard) for shard in listed] for name, listed in stored["columns"].items()
    }
    return SplitFacts(stored["examples"], columns, stored["counts"])


class Sequences(Protocol):
    """A column of sequences."""

    @property
    def lengths(self) -> np.ndarray:
        """The length of each sequence (n,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray:
        """Returns sequence `i` as int32."""


class Ragged:
    """A column of stored sequences.

    Args:
      values: all sequences, one after another.
      offsets: where each starts, and the end of the last (n + 1,).
    """

    def __init__(self, values: shards.Tokens, offsets: np.ndarray) -> None:
        self._values, self.offsets = values, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __getitem__(self, i: int) -> np.ndarray:
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        if start == end:
            return np.zeros(0, np.int32)
        return self._values.window(start, end - start)


@dataclass(frozen=True)
class Examples:
    """The examples of a split, memory-mapped.

    Attributes:
      task: as in `task.name`.
      ragged: columns of sequences, by name (`encode.py` lists them).
      scalars: columns of integers (n,), by name.
      counts: what was repaired or cut, by name.
      kept: the records, if they are in memory.
    """

    task: str
    ragged: Mapping[str, Sequences]
    scalars: Mapping[str, np.ndarray]
    counts: Mapping[str, int]
    records_path: Path | None = None
    kept: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.ragged.values())))

    @cached_property
    def lengths(self) -> np.ndarray:
        """The positions that each example takes in a batch (n, sides)."""
        found = np.stack([self.ragged[side[0]].lengths for side in SEQUENCES[self.task]], axis=1)
        return found - (self.task == "sft")  # inputs and targets are one token shorter

    @cached_property
    def windows(self) -> list[range]:
        """The examples of each record: several for a question whose context is cut into windows."""
        if "window" not in self.scalars:
            return [range(i, i + 1) for i in range(len(self))]
        firsts = np.flatnonzero(self.scalars["window"] == 0).tolist()
        return [range(a, b) for a, b in pairwise([*firsts, len(self)])]

    @cached_property
    def records(self) -> Sequence[Any]:
        """The records as text, in order; the examples of each are in `windows`.

        Raises:
          UserError: if the file was deleted.
        """
        if self.kept is not None:
            return self.kept
        if self.records_path is None or not self.records_path.is_file():
            raise UserError(f"{self.records_path} is missing; delete its folder and run again")
        with open(self.records_path, encoding="utf-8") as file:
            return [record_from_json(json.loads(line)) for line in file]

    def label_counts(self, n_labels: int) -> np.ndarray:
        """Returns how often each label is a target (n_labels,), for class weights."""
        if "label" in self.scalars:
            return np.bincount(self.scalars["label"], minlength=n_labels)
        counts = np.zeros(n_labels + 1, np.int64)
        for i in range(len(self)):
            counts += np.bincount(self.ragged["targets"][i], minlength=n_labels + 1)
        return counts[1:]

    @cached_property
    def folder(self) -> Path | None:
        """Where the examples are stored; None if they are in memory."""
        return self.records_path.parent if self.records_path else None


def examples_in_memory(
    task: str, columns: Sequence[Columns], records: Sequence[Record] | None = None
) -> Examples:
    """Returns examples from the columns of each, and perhaps their records."""
    ragged = {}
    names = [name for side in SEQUENCES[task] for name in side if name in columns[0]]
    for name in names:
        sequences = [np.asarray(one[name], np.int64) for one in columns]
        offsets = np.cumsum([0, *map(len, sequences)])
        ragged[name] = Ragged(shards.Tokens([np.concatenate(sequences)]), offsets)
    scalars = {
        name: np.array([one[name] for one in columns], np.int64) for name in SCALARS.get(task, ())
    }
    if records is not None:
        records = [r for r, one in zip(records, columns, strict=True) if _is_first(one)]
    return Examples(task, ragged, scalars, {}, kept=records)


def _is_first(columns: Columns) -> bool:
    """Returns whether an example is the first of its record."""
    return columns.get("window", 0) == 0


class Windows:
    """A text cut into windows, each with special ids around it: the last, shorter one is dropped.

    Args:
      tokens: the ids of the text.
      seq_len: tokens per window, with special ids.
      frame: the special ids.
    """

    def __init__(self, tokens: shards.Tokens, seq_len: int, frame: Frame) -> None:
        self._tokens = tokens
        self._before = np.array(frame.prefix, np.int32)
        self._after = np.array(frame.single_suffix, np.int32)
        self._room = seq_len - len(frame.prefix) - len(frame.single_suffix)
        n = len(tokens) // self._room if self._room > 0 else 0
        if n == 0:
            raise UserError(
                f"the text has {counted(len(tokens), 'token')}, too few for "
                f"data.seq_len={seq_len}; lower data.seq_len, or use more text"
            )
        self.lengths = np.full(n, seq_len, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        ids = self._tokens.window(i * self._room, self._room)
        return np.concatenate([self._before, ids, self._after])


def window_examples(tokens: shards.Tokens, seq_len: int, frame: Frame) -> Examples:
    """Returns the windows of a text as examples for masked language modeling.

    Raises:
      UserError: if there are fewer tokens than a window has.
    """
    return Examples("mlm", {"inputs": Windows(tokens, seq_len, frame)}, {}, {})


def write_split(
    folder: Path, name: str, task: str, examples: Iterable[tuple[Record, Columns]], large_ids: bool
) -> SplitFacts:
    """Writes the examples of a split.

    Args:
      large_ids: whether ids need 32 bits.
    """
    ragged = [column for side in SEQUENCES[task] for column in side]
    writers = {
        column: _ColumnWriter(folder, f"{name}.{column}", column in ragged, large_ids)
        for column in (*ragged, *SCALARS.get(task, ()))
    }
    facts = SplitFacts()
    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as records:
        for record, columns in examples:
            for column, writer in writers.items():
                writer.append(columns[column])
            if _is_first(columns):
                records.write(json.dumps(record_to_json(record)) + "\n")
            facts.examples += 1
    facts.columns = {column: writer.close() for column, writer in writers.items()}
    return facts


class _ColumnWriter:
    """Writes one column of a split."""

    def __init__(self, folder: Path, name: str, is_ragged: bool, large: bool) -> None:
        # Positions in long texts exceed 16 bits.
        wide = large or name.rpartition(".")[2] in ("char_starts", "char_ends", "words")
        dtype = np.dtype(np.uint32 if wide else np.uint16)
        self._shards = ShardWriter(folder, name, dtype, SHARD_VALUES, WriterState())
        self._offsets_path = folder / f"{name}.offsets.npy" if is_ragged else None
        self._offsets, self._buffer = [0], list[Any]()

    def append(self, values: Any) -> None:
        values = np.atleast_1d(values)
        self._offsets.append(self._offsets[-1] + len(values))
        self._buffer.append(values)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            self._shards.append(np.concatenate(self._buffer))
        self._buffer = []

    def close(self) -> list[Shard]:
        self._flush()
        self._shards.close_shard()
        if self._offsets_path is not None:
            np.save(self._offsets_path, np.array(self._offsets, np.int64))
        return self._shards.state.split.shards


def open_split(folder: Path, name: str, manifest: ExampleManifest) -> Examples:
    """Opens a split of a folder, after comparing its shards with the manifest.

    Raises:
      UserError: naming a file that is missing or damaged.
    """
    facts = manifest.splits[name]
    ragged: dict[str, Ragged] = {}
    scalars: dict[str, np.ndarray] = {}
    for column, listed in facts.columns.items():
        values = _open_shards(folder, listed)
        offsets = folder / f"{name}.{column}.offsets.npy"
        if column in SCALARS.get(manifest.task, ()):
            scalars[column] = values.window(0, len(values)) if facts.examples else np.zeros(0, int)
        else:
            ragged[column] = Ragged(values, _open_offsets(offsets, facts.examples, len(values)))
    return Examples(manifest.task, ragged, scalars, facts.counts, folder / f"{name}.jsonl")


def _open_shards(folder: Path, listed: Sequence[Shard]) -> shards.Tokens:
    arrays = []
    for shard in listed:
        path = folder / shard.file
        fix = f"delete {folder} and run again"
        if not path.is_file():
            raise UserError(f"{path} is missing; {fix}")
        values = shards.open_shard(path)
        if len(values) != shard.tokens or cached_sha256(path) != shard.sha256:
            raise UserError(f"{path} differs from its manifest; {fix}")
        arrays.append(values)
    return shards.Tokens(arrays or [np.zeros(0, np.uint16)])


def _open_offsets(path: Path, n: int, total: int) -> np.ndarray:
    try:
        offsets = np.load(path, mmap_mode="r")
        if offsets.shape != (n + 1,) or offsets[-1] != total or (np.diff(offsets) < 0).any():
            raise ValueError("they do not match its shards")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete {path.parent} and run again"
        ) from None
    return offsets
