"""Writes the shards of one split, with a state from which writing can be resumed."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.data import shards
from gpt2_jax.data.manifest import Shard, Split
from gpt2_jax.data.text import Piece
from gpt2_jax.files import cached_sha256

HASH_CHUNK_BYTES = 1 << 20


@dataclass
class WriterState:
    """The data synced to disk: complete shards, counts, and the open shard.

    Attributes:
      split: the complete shards, and counts that include the open shard.
      open_tokens: number of ids in the open shard.
      open_sha256: hash of these ids.
    """

    split: Split = field(default_factory=Split)
    open_tokens: int = 0
    open_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.split), "open": self.open_tokens, "open_sha256": self.open_sha256}

    @staticmethod
    def parse(stored: dict[str, Any]) -> WriterState:
        """Parses the result of `to_dict`.

        Raises:
          TypeError, ValueError: if it is not valid.
        """
        stored = dict(stored)
        open_tokens, open_sha256 = stored.pop("open", 0), stored.pop("open_sha256", "")
        complete = [Shard(**shard) for shard in stored.pop("shards", [])]
        split = Split(**stored, shards=complete)
        if open_tokens < 0 or split.tokens != open_tokens + sum(shard.tokens for shard in complete):
            raise ValueError("the journal's counts do not add up")
        return WriterState(split, open_tokens, open_sha256)


class ShardWriter:
    """Appends ids to the shards of one split, starting from a stored state.

    Args:
      name: `train` or `val`.
      limit: tokens per shard.

    Raises:
      ValueError: if a shard differs from the state.
    """

    def __init__(
        self, out: Path, name: str, dtype: np.dtype, limit: int, state: WriterState
    ) -> None:
        self.out, self.name, self.dtype, self.limit, self.state = out, name, dtype, limit, state
        self._file: Any = None
        self._hash = hashlib.sha256()  # of the ids in the open shard
        for shard in state.split.shards:
            path = out / shard.file
            if not path.is_file() or cached_sha256(path) != shard.sha256:
                raise ValueError(f"{path} differs from the shard that was written")
        if state.open_tokens:
            self._reopen()
        known = {shard.file for shard in state.split.shards}
        for path in out.glob(f"{name}_*"):  # started after the journal was last written
            is_shard = re.fullmatch(rf"{name}_\d{{6}}\.(bin|partial)", path.name)
            is_open = self._file is not None and path == self._path("partial")
            if is_shard and path.name not in known and not is_open:
                path.unlink()

    def _reopen(self) -> None:
        partial = self._path("partial")
        if not partial.exists():
            # It was completed after the journal was last written.
            os.replace(self._path("bin"), partial)
        end = shards.HEADER_BYTES + self.state.open_tokens * self.dtype.itemsize
        if partial.is_symlink() or partial.stat().st_size < end:
            raise ValueError(f"{partial} is a link or too short")
        self._file = open(partial, "r+b")
        self._file.truncate(end)
        self._file.seek(shards.HEADER_BYTES)
        while block := self._file.read(HASH_CHUNK_BYTES):
            self._hash.update(block)
        if self._hash.hexdigest() != self.state.open_sha256:
            raise ValueError(f"{partial} differs from the ids that were written")

    def _path(self, suffix: str) -> Path:
        return self.out / f"{self.name}_{len(self.state.split.shards):06d}.{suffix}"

    def append(self, ids: np.ndarray) -> None:
        """Writes ids (n,), starting a new shard whenever one is full."""
        ids = ids.astype(self.dtype)
        while len(ids):
            if self._file is None:
                self._file = open(self._path("partial"), "xb")
                self._file.write(b"\0" * shards.HEADER_BYTES)
            chunk, ids = np.split(ids, [self.limit - self.state.open_tokens])
            self._file.write(chunk.tobytes())
            self._hash.update(chunk.tobytes())
            self.state.open_tokens += len(chunk)
            self.state.split.tokens += len(chunk)
            if self.state.open_tokens == self.limit:
                self.close_shard()

    def count(self, piece: Piece) -> int:
        """Adds an appended piece to the counts and returns its size in UTF-8 bytes."""
        split, n_bytes = self.state.split, len(piece.text.encode())
        split.bytes = (split.bytes or 0) + n_bytes
        split.documents = (split.documents or 0) + piece.last
        split.words = (split.words or 0) + len(piece.text.split())
        return n_bytes

    def sync(self) -> None:
        """Flushes the open shard to disk and updates its hash in the state."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self.state.open_sha256 = self._hash.hexdigest()

    def close_shard(self) -> None:
        """Completes the open shard, if any: writes its header, renames and hashes it."""
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(shards.shard_header(self.state.open_tokens, self.dtype))
        self.sync()
        self._file.close()
        final = self._path("bin")
        os.replace(self._path("partial"), final)
        digest = cached_sha256(final)
        self.state.split.shards.append(Shard(final.name, self.state.open_tokens, digest))
        self._file, self.state.open_tokens, self._hash = None, 0, hashlib.sha256()
