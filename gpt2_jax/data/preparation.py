"""Text to verified shards, once, also when it is killed on the way.

A folder becomes a prepared one by its manifest, which is written last. Until then a journal says
how much of the text is safely in the shards, so that a killed preparation goes on from there.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt2_jax.data import shards
from gpt2_jax.data.shards import Manifest, Shard, Split
from gpt2_jax.data.split import Marked, Plan
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, remembered_sha256, write_json

JOURNAL = "progress.json"
SHARD_TOKENS = 100_000_000
BATCH_CHARS = 1 << 20
JOURNAL_CHARS = 64 << 20
PARALLEL_BYTES = 32 << 20  # below this, starting processes costs more than they bring


def plan_key(plan: Plan, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS) -> str:
    """Returns a hash of all that decides the shards: the content, the tokenizer, the split."""
    facts = [
        1,
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
    """Writes shards and a manifest into `out`, going on where a killed call stopped.

    Raises:
      UserError: if `out` holds another corpus, or the text is empty or not text.
    """
    key = plan_key(plan, tokenizer, shard_tokens)
    with disk_errors(f"the prepared data in {out}"):
        out.mkdir(parents=True, exist_ok=True)
        with _only_one(out):
            if (out / shards.MANIFEST).exists():
                return _finished(out, key)
            strange = [p.name for p in out.iterdir() if not p.name.startswith(".")]
            if strange and not (out / JOURNAL).exists():
                raise UserError(
                    f"{out} is not empty and holds no prepared data ({sorted(strange)[0]}); "
                    "choose another --out"
                )
            return _Preparation(plan, tokenizer, out, shard_tokens, processes, key).run()


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Lets one process at a time prepare a folder; the kernel frees the lock of a dead one."""
    with open(out / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {out}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _finished(out: Path, key: str) -> Manifest:
    manifest = Manifest.read(out)
    if manifest.key != key:
        raise UserError(f"{out} holds another corpus or other options; choose another --out")
    return manifest


class _Writer:
    """Appends ids to the shards of one split. The journal knows what of them is safe."""

    def __init__(
        self, out: Path, name: str, dtype: np.dtype, limit: int, split: Split, opened: int
    ):
        self.out, self.name, self.dtype, self.limit, self.split = out, name, dtype, limit, split
        self.in_open = opened
        self._file: Any = None
        if opened and not self._path("partial").exists():
            # Completed after the journal's last entry: open again, and cut below.
            os.replace(self._path("bin"), self._path("partial"))
        known = {shard.file for shard in split.shards}
        for path in out.glob(f"{name}_*"):  # begun after the journal's last entry
            ours = re.fullmatch(rf"{name}_\d{{6}}\.(bin|partial)", path.name)
            if ours and path.name not in known and path != self._path("partial"):
                path.unlink()
        if opened:
            self._file = open(self._path("partial"), "r+b")
            self._file.truncate(shards.HEADER_BYTES + opened * dtype.itemsize)
            self._file.seek(0, os.SEEK_END)

    def _path(self, suffix: str) -> Path:
        return self.out / f"{self.name}_{len(self.split.shards):06d}.{suffix}"

    def append(self, ids: np.ndarray) -> None:
        ids = ids.astype(self.dtype)
        while len(ids):
            if self._file is None:
                self._file = open(self._path("partial"), "wb")
                self._file.write(b"\0" * shards.HEADER_BYTES)
            now, ids = np.split(ids, [self.limit - self.in_open])
            self._file.write(now.tobytes())
            self.in_open += len(now)
            self.split.tokens += len(now)
            if self.in_open == self.limit:
                self.close_shard()

    def sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close_shard(self) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(shards.header(self.in_open, self.dtype))
        self.sync()
        self._file.close()
        final = self._path("bin")
        os.replace(self._path("partial"), final)
        digest = remembered_sha256(final)
        self.split.shards.append(Shard(final.name, self.in_open, digest))
        self._file, self.in_open = None, 0


@dataclass
class _Preparation:
    plan: Plan
    tokenizer: Tokenizer
    out: Path
    shard_tokens: int
    processes: int
    key: str

    def run(self) -> Manifest:
        journal = self._read_journal()
        done = journal["pieces"]
        dtype = np.dtype(np.uint16 if self.tokenizer.size <= 2**16 else np.uint32)
        writers = {}
        for name in ("train", "val"):
            stored = dict(journal["splits"].get(name, {}))
            opened = stored.pop("open", 0)
            stored["shards"] = [Shard(**s) for s in stored.get("shards", [])]
            split = Split(**stored)
            writers[name] = _Writer(self.out, name, dtype, self.shard_tokens, split, opened)
        self._write_journal(writers, done, journal["ended"])  # from now on the folder is ours
        self._write_all(writers, done, journal["ended"])
        return self._finish(writers)

    def _read_journal(self) -> dict[str, Any]:
        try:
            journal = json.loads((self.out / JOURNAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            journal = {}
        if journal.get("key") == self.key:
            if journal["pieces"]:
                print(f"going on with {self.out} after {journal['pieces']} texts", file=sys.stderr)
            return journal
        return {"pieces": 0, "splits": {}, "ended": {}}

    def _write_journal(self, writers: dict[str, _Writer], pieces: int, ended: dict) -> None:
        splits = {}
        for name, writer in writers.items():
            writer.sync()
            splits[name] = {**asdict(writer.split), "open": writer.in_open}
        state = {"key": self.key, "pieces": pieces, "ended": ended, "splits": splits}
        write_json(self.out / JOURNAL, state)

    def _write_all(self, writers: dict[str, _Writer], done: int, ended: dict[str, bool]) -> None:
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
                    n_bytes = len(piece.text.encode())
                    assert writer.split.bytes is not None and writer.split.documents is not None
                    writer.split.bytes += n_bytes
                    writer.split.documents += piece.last
                    writer.split.words = (writer.split.words or 0) + len(piece.text.split())
                    ended[name] = piece.last
                    bar.update(n_bytes)
                    since += len(piece.text)
                pieces += len(batch)
                if since >= JOURNAL_CHARS:
                    self._write_journal(writers, pieces, ended)
                    since = 0

    def _bar(self, writers: dict[str, _Writer]) -> Any:
        done = sum(writer.split.bytes or 0 for writer in writers.values())
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
        with ProcessPoolExecutor(self.processes, get_context("spawn")) as pool:
            waiting: deque[tuple[list[Marked], Future[list[np.ndarray]]]] = deque()
            for batch in batches:
                texts = [piece.text for _, piece in batch]
                named = self.tokenizer.name, self.tokenizer.fingerprint
                waiting.append((batch, pool.submit(_encode, *named, texts)))
                if len(waiting) > 2 * self.processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()

    def _skip(self, done: int) -> Iterator[Marked]:
        for number, marked in enumerate(self.plan.pieces()):
            if number >= done:
                yield marked

    def _finish(self, writers: dict[str, _Writer]) -> Manifest:
        needed = ["train", "val"] if self.plan.source else ["val"]
        for name, writer in writers.items():
            writer.close_shard()
            if name in needed and writer.split.tokens == 0:
                own = self.plan.val_source if name == "val" else None
                source = own or self.plan.source
                raise UserError(f"source {source.name if source else ''} holds no text")
        tokenizer = self.tokenizer
        manifest = Manifest(
            key=self.key,
            source=self.plan.source.name if self.plan.source else "",
            val_source=self.plan.val_source.name if self.plan.val_source else None,
            val_fraction=self.plan.val_fraction,
            tokenizer={
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint,
                "size": tokenizer.size,
                "end_of_text": tokenizer.end_of_text,
            },
            splits={n: dataclasses.replace(w.split) for n, w in writers.items()},
        )
        write_json(self.out / shards.MANIFEST, manifest.to_dict())
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


def _encode(tokenizer_name: str, fingerprint: str, texts: list[str]) -> list[np.ndarray]:
    return load_tokenizer(tokenizer_name, fingerprint).encode(texts)
