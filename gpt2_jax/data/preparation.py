"""Text to verified shards, once, also when it is killed on the way.

A folder becomes a prepared one by its manifest, which is written last. Until then a journal says
how much of the text is safely in the shards, so that a killed preparation continues from there.
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
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt2_jax.data import shards
from gpt2_jax.data.manifest import MANIFEST, Manifest
from gpt2_jax.data.pool import ProcessKilled, encode_in_processes
from gpt2_jax.data.split import Marked, Plan
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.data.writer import ShardWriter, WriterState
from gpt2_jax.errors import DiskError, UserError, printable
from gpt2_jax.files import (
    disk_errors,
    fields_sha256,
    missing_folders,
    open_lock,
    remove_empty,
    remove_temporary,
    write_json,
)

JOURNAL = "progress.json"
SHARD_TOKENS = 100_000_000
BATCH_CHARS = 1 << 20
JOURNAL_CHARS = 64 << 20
PARALLEL_BYTES = 32 << 20  # below this, starting processes costs more than they bring
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
KEY_VERSION = 2  # raised when the same facts come to give other shards: readers, split


def plan_key(plan: Plan, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS) -> str:
    """Returns a hash of all that decides the shards: the content, the tokenizer, the split."""
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
    """Writes shards and a manifest into `out`, continuing where a killed call stopped.

    Raises:
      UserError: if `out` holds another corpus, or the text is empty or not text.
    """
    if not 1 <= shard_tokens <= shards.LARGEST_SHARD:
        raise UserError(
            f"shard_tokens={shard_tokens} must be between 1 and {shards.LARGEST_SHARD}: a shard's "
            "header counts its tokens in 32 bits"
        )
    key = plan_key(plan, tokenizer, shard_tokens)
    with disk_errors(f"the prepared data in {out}"):
        if (out / MANIFEST).exists():  # perhaps on a disk that cannot be written
            return _finished(out, key)
        made = missing_folders(out)
        out.mkdir(parents=True, exist_ok=True)
        _refuse_strange(out)  # before there is a lock, so that nothing is left behind
        with _only_one(out):
            if (out / MANIFEST).exists():
                return _finished(out, key)
            try:
                return _Preparation(plan, tokenizer, out, shard_tokens, processes, key).run()
            except (DiskError, ProcessKilled):
                raise  # the same call continues
            except UserError:
                _discard(out, made)  # other text or options begin anew
                raise


def _refuse_strange(out: Path) -> None:
    """Refuses a folder with files of somebody else's."""
    names = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if names and not {JOURNAL, MANIFEST} & set(names):
        raise UserError(
            f"{out} is not empty and holds no prepared data ({sorted(names)[0]}); "
            "choose another --out"
        )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Lets one process at a time prepare a folder; the kernel frees the lock of a dead one."""
    with open_lock(out / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {out}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_temporary(out)
        yield


def _discard(out: Path, made: list[Path]) -> None:
    """Deletes an unfinished preparation, and the folders that were made for it."""
    for path in out.iterdir():
        if path.name == JOURNAL or re.fullmatch(r"(train|val)_\d{6}\.(bin|partial)", path.name):
            path.unlink()
    if made:
        (out / ".lock").unlink()
        remove_empty(made)


def _finished(out: Path, key: str) -> Manifest:
    manifest = Manifest.read(out)
    if manifest.key != key:
        raise UserError(
            f"{out} holds another corpus, other options, or data that an earlier version of "
            "gpt2_jax prepared; choose another --out"
        )
    with suppress(OSError):  # left by a kill just before the end; the disk may be read-only
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
        done, ended, writers = self._continued() or (0, {}, self._writers({}))
        if done:
            print(f"preparing {self.out}: continuing after {done} texts", file=sys.stderr)
        self._write_journal(writers, done, ended)  # from now on the folder is ours
        self._write_all(writers, done, ended)
        return self._finish(writers)

    def _writers(self, splits: dict[str, Any]) -> dict[str, ShardWriter]:
        dtype = np.dtype(np.uint16 if self.tokenizer.size <= 2**16 else np.uint32)
        return {
            name: ShardWriter(
                self.out, name, dtype, self.shard_tokens, WriterState.parse(splits.get(name, {}))
            )
            for name in ("train", "val")
        }

    def _continued(self) -> tuple[int, dict[str, bool], dict[str, ShardWriter]] | None:
        """Returns what the journal says, or None if it is absent, another's or does not hold."""
        if not (self.out / JOURNAL).is_file():  # reading a pipe may never end
            return None
        try:
            journal = json.loads((self.out / JOURNAL).read_text(encoding="utf-8"))
            if journal["key"] != self.key or journal.pop("checksum") != fields_sha256(journal):
                return None
            return journal["pieces"], dict(journal["ended"]), self._writers(journal["splits"])
        except (*_MALFORMED, FileNotFoundError):  # any other OSError is no damage: it is reported
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
        """`ended[split]`: whether its last document is complete, so that the next needs an EOT."""
        separator = np.array([self.tokenizer.end_of_text])
        since = 0
        pieces = done
        with self._bar(writers) as bar:
            for batch, encoded in self._encoded(done):
                for (name, piece), ids in zip(batch, encoded, strict=True):
                    writer = writers[name]
                    if ended.get(name):
                        writer.append(separator)
                    writer.append(ids)
                    bar.update(writer.count(piece))
                    ended[name] = piece.last
                    since += len(piece.text)
                pieces += len(batch)
                if since >= JOURNAL_CHARS:
                    self._write_journal(writers, pieces, ended)
                    since = 0

    def _bar(self, writers: dict[str, ShardWriter]) -> Any:
        done = sum(writer.state.split.bytes or 0 for writer in writers.values())
        return tqdm(
            disable=None,
            unit="B",
            unit_scale=True,
            desc="preparing",
            total=self._total(),
            initial=done,
        )

    def _total(self) -> int | None:
        sizes = [s.size for s in (self.plan.source, self.plan.val_source) if s is not None]
        return sum(s for s in sizes if s is not None) if all(sizes) else None

    def _encoded(self, done: int) -> Iterator[tuple[list[Marked], list[np.ndarray]]]:
        """Yields batches of texts, from the one after the first `done`, with their ids."""
        batches = _batches(self._skip(done))
        total = self._total()
        if self.processes == 1 or (total is not None and total < PARALLEL_BYTES):
            for batch in batches:
                yield batch, self.tokenizer.encode([piece.text for _, piece in batch])
            return
        yield from encode_in_processes(self.tokenizer, batches, self.processes)

    def _skip(self, done: int) -> Iterator[Marked]:
        for number, marked in enumerate(self.plan.pieces()):
            if number >= done:
                yield marked

    def _finish(self, writers: dict[str, ShardWriter]) -> Manifest:
        for writer in writers.values():
            writer.close_shard()
        splits = {name: dataclasses.replace(w.state.split) for name, w in writers.items()}
        plan, tokenizer = self.plan, self.tokenizer
        plan.check_result(splits["train"], splits["val"])
        if note := plan.share_note(splits["train"], splits["val"]):
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


def _batches(marked: Iterable[Marked]) -> Iterator[list[Marked]]:
    batch: list[Marked] = []
    size = 0
    for one in marked:
        batch.append(one)
        size += len(one[1].text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
