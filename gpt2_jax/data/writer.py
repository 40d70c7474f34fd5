"""Appends ids to the shards of one split, so that a killed preparation can continue."""

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
from gpt2_jax.files import remembered_sha256

HASH_BYTES = 1 << 20  # read at a time


@dataclass
class WriterState:
    """What is safely on disk: complete shards, counts, and the ids in the open shard.

    Attributes:
      in_open: number of ids in the open shard. open_sha256: of their bytes.
    """

    split: Split = field(default_factory=Split)
    in_open: int = 0
    open_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.split), "open": self.in_open, "open_sha256": self.open_sha256}

    @staticmethod
    def parse(stored: dict[str, Any]) -> WriterState:
        """Reads what `to_dict` returned.

        Raises:
          TypeError, ValueError: if the counts are not valid.
        """
        stored = dict(stored)
        in_open, open_sha256 = stored.pop("open", 0), stored.pop("open_sha256", "")
        complete = [Shard(**shard) for shard in stored.pop("shards", [])]
        split = Split(**stored, shards=complete)
        if in_open < 0 or split.tokens != in_open + sum(shard.tokens for shard in complete):
            raise ValueError("the journal's counts do not add up")
        return WriterState(split, in_open, open_sha256)


class ShardWriter:
    """Appends ids to the shards of one split, from a known state on.

    Raises:
      ValueError: if a shard does not hold the ids that the state says.
    """

    def __init__(
        self, out: Path, name: str, dtype: np.dtype, limit: int, state: WriterState
    ) -> None:
        self.out, self.name, self.dtype, self.limit, self.state = out, name, dtype, limit, state
        self._file: Any = None
        self._hash = hashlib.sha256()  # of the ids in the open shard
        for shard in state.split.shards:
            path = out / shard.file
            if not path.is_file() or remembered_sha256(path) != shard.sha256:
                raise ValueError(f"{path} is not the shard that was written")
        if state.in_open:
            self._open_again()
        known = {shard.file for shard in state.split.shards}
        for path in out.glob(f"{name}_*"):  # begun after the journal's last entry
            ours = re.fullmatch(rf"{name}_\d{{6}}\.(bin|partial)", path.name)
            open_now = self._file is not None and path == self._path("partial")
            if ours and path.name not in known and not open_now:
                path.unlink()

    def _open_again(self) -> None:
        partial = self._path("partial")
        if not partial.exists():
            # Completed after the journal's last entry: open again, and cut below.
            os.replace(self._path("bin"), partial)
        end = shards.HEADER_BYTES + self.state.in_open * self.dtype.itemsize
        if partial.is_symlink() or partial.stat().st_size < end:
            raise ValueError(f"{partial} is not the shard that was begun")
        self._file = open(partial, "r+b")
        self._file.truncate(end)
        self._file.seek(shards.HEADER_BYTES)
        while block := self._file.read(HASH_BYTES):
            self._hash.update(block)
        if self._hash.hexdigest() != self.state.open_sha256:
            raise ValueError(f"{partial} does not hold the ids that were written")

    def _path(self, suffix: str) -> Path:
        return self.out / f"{self.name}_{len(self.state.split.shards):06d}.{suffix}"

    def append(self, ids: np.ndarray) -> None:
        ids = ids.astype(self.dtype)
        while len(ids):
            if self._file is None:
                self._file = open(self._path("partial"), "xb")
                self._file.write(b"\0" * shards.HEADER_BYTES)
            now, ids = np.split(ids, [self.limit - self.state.in_open])
            self._file.write(now.tobytes())
            self._hash.update(now.tobytes())
            self.state.in_open += len(now)
            self.state.split.tokens += len(now)
            if self.state.in_open == self.limit:
                self.close_shard()

    def count(self, piece: Piece) -> int:
        """Counts the text that was appended, and returns its bytes."""
        split, n_bytes = self.state.split, len(piece.text.encode())
        split.bytes = (split.bytes or 0) + n_bytes
        split.documents = (split.documents or 0) + piece.last
        split.words = (split.words or 0) + len(piece.text.split())
        return n_bytes

    def sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self.state.open_sha256 = self._hash.hexdigest()

    def close_shard(self) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(shards.header(self.state.in_open, self.dtype))
        self.sync()
        self._file.close()
        final = self._path("bin")
        os.replace(self._path("partial"), final)
        digest = remembered_sha256(final)
        self.state.split.shards.append(Shard(final.name, self.state.in_open, digest))
        self._file, self.state.in_open, self._hash = None, 0, hashlib.sha256()
