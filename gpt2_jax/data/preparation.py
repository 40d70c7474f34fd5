"""Tokenizes text into shards; a killed preparation can be resumed.

The manifest is written last and marks a folder as complete. Until then a journal records how much
of the text has been synced to disk, which is where preparation resumes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt2_jax.data import shards
from gpt2_jax.data.manifest import MANIFEST, Manifest
from gpt2_jax.data.split import Plan, SplitPiece
from gpt2_jax.data.tokenizer_pool import ProcessKilled, encode_parallel
from gpt2_jax.data.tokenizer_protocol import Tokenizer, id_dtype
from gpt2_jax.data.writer import ShardWriter, WriterState
from gpt2_jax.errors import DiskError, UserError, counted, printable
from gpt2_jax.files import (
    disk_errors,
    fields_sha256,
    missing_folders,
    open_lock,
    remove_empty_folders,
    remove_temporary,
    write_json,
)

JOURNAL = "progress.json"
SHARD_TOKENS = 100_000_000
BATCH_CHARS = 1 << 20
JOURNAL_CHARS = 64 << 20  # between writes of the journal
PARALLEL_BYTES = 32 << 20  # smaller sources are tokenized faster without starting processes
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
KEY_VERSION = 2  # increment when a change of the code, such as a reader, changes the shards


def plan_key(plan: Plan, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS) -> str:
    """Returns a hash of everything that determines the shards."""
    facts = [
        KEY_VERSION,
        plan.source.fingerprint() if plan.source else None,
        plan.val_source.fingerprint() if plan.val_source else None,
        None if plan.val_source else plan.val_fraction,
        tokenizer.fingerprint,
        shard_tokens,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def prepare(
    plan: Plan,
    tokenizer: Tokenizer,
    out: Path,
    shard_tokens: int = SHARD_TOKENS,
    processes: int = os.cpu_count() or 1,
) -> Manifest:
    """Writes shards and a manifest to `out`, resuming an unfinished preparation.

    Args:
      out: a folder that is empty, does not exist, or has the same corpus.
      shard_tokens: tokens per shard.

    Raises:
      UserError: if `out` has other files or another corpus, or the text is empty or not valid.
    """
    if not 1 <= shard_tokens <= shards.MAX_SHARD_TOKENS:
        raise UserError(
            f"shard_tokens={shard_tokens} must be between 1 and {shards.MAX_SHARD_TOKENS}, the "
            "limit of the shard header"
        )
    key = plan_key(plan, tokenizer, shard_tokens)
    with disk_errors(f"the prepared data in {out}"):
        if (out / MANIFEST).exists():  # before the lock: the disk may be read-only
            return _read_finished(out, key)
        created = missing_folders(out)
        out.mkdir(parents=True, exist_ok=True)
        _check_no_other_files(out)  # before the lock creates a file
        with exclusive_lock(out):
            if (out / MANIFEST).exists():
                return _read_finished(out, key)
            try:
                return _Preparation(plan, tokenizer, out, shard_tokens, processes, key).run()
            except (DiskError, ProcessKilled):
                raise  # the next call resumes
            except UserError:
                _delete_unfinished(out, created)
                raise


def _check_no_other_files(out: Path) -> None:
    """Raises a `UserError` if a folder has files but no preparation, finished or not."""
    names = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if names and not {JOURNAL, MANIFEST} & set(names):
        raise UserError(
            f"{out} has files other than prepared data ({sorted(names)[0]}); choose another --out"
        )


@contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Locks the folder, waiting for any other process; the kernel frees a dead process's lock."""
    with open_lock(out / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {out}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_temporary(out)
        yield


def _delete_unfinished(out: Path, created: list[Path]) -> None:
    for path in out.iterdir():
        if path.name == JOURNAL or re.fullmatch(r"(train|val)_\d{6}\.(bin|partial)", path.name):
            path.unlink()
    if created:
        (out / ".lock").unlink()
        remove_empty_folders(created)


def _read_finished(out: Path, key: str) -> Manifest:
    """Returns the manifest of a finished preparation, which must have this key."""
    manifest = Manifest.read(out)
    if manifest.key != key:
        raise UserError(
            f"{out} was prepared from another corpus, with other options, or by an earlier version "
            "of gpt2_jax; choose another --out"
        )
    with suppress(OSError):  # the disk may be read-only
        (out / JOURNAL).unlink(missing_ok=True)
        remove_temporary(out)
    return manifest


@dataclass
class _Preparation:
    plan: Plan
    tokenizer: Tokenizer
    out: Path
    shard_tokens: int
    processes: int
    key: str

    def run(self) -> Manifest:
        for source in (self.plan.source, self.plan.val_source):
            if source is not None and source.summary:
                print(f"preparing {printable(source.summary)}", file=sys.stderr)
        done, ended, writers = self._read_journal() or (0, {}, self._open_writers({}))
        if done:
            print(
                f"preparing {self.out}: continuing after {counted(done, 'text')}", file=sys.stderr
            )
        self._write_journal(writers, done, ended)  # marks the folder as a preparation
        self._write_all(writers, done, ended)
        return self._finish(writers)

    def _open_writers(self, splits: dict[str, Any]) -> dict[str, ShardWriter]:
        dtype = np.dtype(id_dtype(self.tokenizer.size))
        return {
            name: ShardWriter(
                self.out, name, dtype, self.shard_tokens, WriterState.parse(splits.get(name, {}))
            )
            for name in ("train", "val")
        }

    def _read_journal(self) -> tuple[int, dict[str, bool], dict[str, ShardWriter]] | None:
        """Returns the state to resume from; None if the journal is missing, invalid or unrelated.

        It consists of the number of pieces written, whether each split ends with a complete
        document, and the writers.
        """
        if not (self.out / JOURNAL).is_file():  # reading a pipe may never end
            return None
        try:
            journal = json.loads((self.out / JOURNAL).read_text(encoding="utf-8"))
            if journal["key"] != self.key or journal.pop("checksum") != fields_sha256(journal):
                return None
            return journal["pieces"], dict(journal["ended"]), self._open_writers(journal["splits"])
        except (*_MALFORMED, FileNotFoundError):  # other OSErrors are reported
            return None

    def _write_journal(self, writers: dict[str, ShardWriter], pieces: int, ended: dict) -> None:
        for writer in writers.values():
            writer.sync()
        splits = {name: writer.state.to_dict() for name, writer in writers.items()}
        state = {"key": self.key, "pieces": pieces, "ended": ended, "splits": splits}
        write_json(self.out / JOURNAL, state | {"checksum": fields_sha256(state)})

    def _write_all(
        self, writers: dict[str, ShardWriter], done: int, ended: dict[str, bool]
    ) -> None:
        """Writes the text from piece `done` on, with an end-of-text id between documents.

        `ended[split]` is True if the last document of a split is complete.
        """
        end_of_text = np.array([self.tokenizer.end_of_text])
        chars = 0  # since the journal was written
        pieces = done
        with self._progress_bar(writers) as bar:
            for batch, encoded in self._encoded(done):
                for (name, piece), ids in zip(batch, encoded, strict=True):
                    writer = writers[name]
                    if ended.get(name):
                        writer.append(end_of_text)
                    writer.append(ids)
                    bar.update(writer.count(piece))
                    ended[name] = piece.last
                    chars += len(piece.text)
                pieces += len(batch)
                if chars >= JOURNAL_CHARS:
                    self._write_journal(writers, pieces, ended)
                    chars = 0

    def _progress_bar(self, writers: dict[str, ShardWriter]) -> Any:
        done = sum(writer.state.split.bytes or 0 for writer in writers.values())
        return tqdm(
            disable=None,
            unit="B",
            unit_scale=True,
            desc="preparing",
            total=self._total_bytes(),
            initial=done,
        )

    def _total_bytes(self) -> int | None:
        sizes = [s.size for s in (self.plan.source, self.plan.val_source) if s is not None]
        return sum(s for s in sizes if s is not None) if all(sizes) else None

    def _encoded(self, done: int) -> Iterator[tuple[list[SplitPiece], list[np.ndarray]]]:
        """Yields batches of pieces, skipping the first `done`, with the ids of their texts."""
        batches = _batches(islice(self.plan.pieces(), done, None))
        total = self._total_bytes()
        if self.processes == 1 or (total is not None and total < PARALLEL_BYTES):
            for batch in batches:
                yield batch, self.tokenizer.encode([piece.text for _, piece in batch])
            return
        yield from encode_parallel(self.tokenizer, batches, self.processes)

    def _finish(self, writers: dict[str, ShardWriter]) -> Manifest:
        for writer in writers.values():
            writer.close_shard()
        splits = {name: dataclasses.replace(w.state.split) for name, w in writers.items()}
        plan, tokenizer = self.plan, self.tokenizer
        plan.check_splits(splits["train"], splits["val"])
        if note := plan.val_fraction_note(splits["train"], splits["val"]):
            print(f"preparing {self.out}: {note}", file=sys.stderr)
        manifest = Manifest(
            key=self.key,
            source=plan.source.name if plan.source else "",
            val_source=plan.val_source.name if plan.val_source else None,
            val_fraction=plan.val_fraction,
            document_separator=plan.separator,
            tokenizer={
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint,
                "size": tokenizer.size,
                "end_of_text": tokenizer.end_of_text,
            },
            splits=splits,
        )
        write_json(self.out / MANIFEST, manifest.to_dict())
        (self.out / JOURNAL).unlink(missing_ok=True)
        return manifest


def _batches(pieces: Iterable[SplitPiece]) -> Iterator[list[SplitPiece]]:
    batch: list[SplitPiece] = []
    size = 0
    for split, piece in pieces:
        batch.append((split, piece))
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
