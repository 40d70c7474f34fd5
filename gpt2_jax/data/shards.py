"""Token shards in the format of llm.c, opened as one sequence of token ids.

A shard is a header of 256 int32 (magic, version, number of tokens), then the ids: uint16 for magic
20240520 version 1, uint32 for magic 20240801 version 7 (karpathy/llm.c dev/data/data_common.py).
Shards written by llm.c and modded-nanogpt can be opened without a manifest.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_jax.data.file_list import glob_files
from gpt2_jax.data.manifest import MANIFEST, Manifest, Shard, Split
from gpt2_jax.data.tokenizer import gpt2_ranks
from gpt2_jax.errors import UserError
from gpt2_jax.files import cached_sha256, read_errors, sha256

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
FORMATS: dict[tuple[int, int], type] = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}
MAX_SHARD_TOKENS = 2**31 - 1  # the header stores the number of tokens as int32
GPT2_END_OF_TEXT = 50256
CHUNK = 1 << 20  # tokens


def shard_header(n_tokens: int, dtype: np.dtype) -> bytes:
    """Returns the header of a shard with `n_tokens` ids of type uint16 or uint32."""
    ((magic, version),) = [key for key, value in FORMATS.items() if np.dtype(value) == dtype]
    values = np.zeros(HEADER_INTS, np.int32)
    values[:3] = magic, version, n_tokens
    return values.tobytes()


def open_shard(path: Path) -> np.ndarray:
    """Returns the ids of a shard (n_tokens,), memory-mapped.

    Raises:
      UserError: if the file cannot be read, is not a shard, or its size does not match its header.
    """
    with read_errors(path), open(path, "rb") as file:
        values = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), np.int32)
    if (values[0], values[1]) not in FORMATS:
        raise UserError(f"{path} is not a token shard (no llm.c header)")
    dtype, n_tokens = np.dtype(FORMATS[values[0], values[1]]), int(values[2])
    if n_tokens < 0 or path.stat().st_size != HEADER_BYTES + n_tokens * dtype.itemsize:
        raise UserError(f"{path} is damaged: its size does not match its {n_tokens} tokens")
    return np.memmap(path, dtype, "r", HEADER_BYTES, (n_tokens,))


class Tokens:
    """The ids of one or more shards as a sequence, optionally restricted to `start:stop`."""

    def __init__(self, arrays: list[np.ndarray], start: int = 0, stop: int | None = None) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(a) for a in arrays]).tolist()
        self._start = start
        self._stop = self._ends[-1] if stop is None else stop

    @staticmethod
    def joined(parts: Sequence[Tokens], before: int) -> Tokens:
        """Returns whole sequences as one, with an id before each."""
        return Tokens(
            [ids for part in parts for ids in (np.array([before], np.uint32), *part._arrays)]
        )

    def __len__(self) -> int:
        return self._stop - self._start

    def window(self, start: int, length: int) -> np.ndarray:
        """Returns ids start .. start+length-1 as int32 (length,), across shards if necessary."""
        position, parts = self._start + start, []
        shard = bisect.bisect_right(self._ends, position)
        while length > 0:
            offset = position - (self._ends[shard] - len(self._arrays[shard]))
            part = self._arrays[shard][offset : offset + length]
            parts.append(part)
            position, length, shard = position + len(part), length - len(part), shard + 1
        return np.concatenate(parts).astype(np.int32)


@dataclass(frozen=True)
class Corpus:
    """Training and validation tokens, and the manifest that describes them."""

    manifest: Manifest
    train: Tokens | None
    val: Tokens

    def check_validation(self) -> None:
        """Checks that the validation text has at least one token to predict.

        Raises:
          UserError: naming the fields to change.
        """
        if len(self.val) < 2:
            raise UserError(
                f"the validation text of data.source={self.manifest.source} has fewer than two "
                "tokens; increase data.val_fraction, or set data.val_source to more text"
            )

    def content_hash(self) -> str:
        """Returns a hash of all tokens in order."""
        return self.manifest.corpus_hash()

    def n_tokens(self, split: str) -> int:
        """Returns the number of tokens of a split."""
        return len({"train": self.train, "val": self.val}[split] or ())

    def bytes_per_token(self, split: str) -> float | None:
        """Returns the UTF-8 bytes per token of a split, or None if they were not counted."""
        counts = self.manifest.splits[split]
        return counts.bytes / counts.tokens if counts.bytes else None

    def words_per_token(self, split: str) -> float | None:
        """Returns the words per token of a split, or None if they were not counted."""
        counts = self.manifest.splits[split]
        return counts.words / counts.tokens if counts.words else None


def open_prepared(folder: Path) -> Corpus:
    """Opens a prepared folder, after comparing each shard with the manifest.

    Sizes and headers are compared each time; hashes are cached by size and modification time.

    Raises:
      UserError: naming a shard that is missing, damaged, or differs from the manifest.
    """
    manifest = Manifest.read(folder)
    tokens: dict[str, Tokens] = {}
    for name, split in manifest.splits.items():
        arrays = [_open_checked(folder, s, cached_sha256) for s in split.shards]
        if arrays:
            tokens[name] = Tokens(arrays)
    if "val" not in tokens:
        raise UserError(f"{folder / MANIFEST} lists no validation tokens; prepare the data again")
    return Corpus(manifest, tokens.get("train"), tokens["val"])


def verify_prepared(folder: Path) -> Manifest:
    """Checks the hash and the range of ids of every shard of a prepared folder.

    Raises:
      UserError: naming a shard that is missing, damaged, or differs from the manifest.
    """
    manifest = Manifest.read(folder)
    size = manifest.tokenizer["size"]
    for split in manifest.splits.values():
        for shard in split.shards:
            ids = Tokens([_open_checked(folder, shard, sha256)])
            largest = max((int(chunk.max()) for chunk in _chunks(ids, 0)), default=0)
            if largest >= size:
                raise UserError(
                    f"{folder / shard.file} has id {largest}, but its tokenizer has {size} ids; "
                    "prepare the data again"
                )
    return manifest


def _open_checked(folder: Path, shard: Shard, digest: Callable[[Path], str]) -> np.ndarray:
    path = folder / shard.file
    fix = f"delete {folder} and prepare the data again"
    if not path.is_file():
        raise UserError(f"{path} is missing; {fix}")
    ids = open_shard(path)
    if len(ids) != shard.tokens or digest(path) != shard.sha256:
        raise UserError(f"{path} differs from its manifest; {fix}")
    return ids


def open_bin_shards(source: str, val_source: str | None, val_fraction: float) -> Corpus:
    """Opens `.bin` shards of GPT-2 tokens as written by llm.c or modded-nanogpt.

    Args:
      source, val_source: paths or globs. Without `val_source`, the last `val_fraction` of the
        tokens is for validation, starting at the next document if there is one.

    Raises:
      UserError: naming a shard that is missing, damaged, or of another vocabulary.
    """
    paths = _find_bin_shards(source)
    train = Tokens([open_shard(p) for p in paths])
    val_paths = _find_bin_shards(val_source) if val_source else []
    if val_paths:
        val = Tokens([open_shard(p) for p in val_paths])
    else:
        cut = _document_start(train, int(len(train) * (1 - val_fraction)))
        arrays = [open_shard(p) for p in paths]
        train, val = Tokens(arrays, 0, cut), Tokens(arrays, cut)
    splits = {
        "train": Split(len(train), None, None, [_describe(p) for p in paths]),
        "val": Split(len(val), None, _count_bytes(val), [_describe(p) for p in val_paths]),
    }
    manifest = Manifest("bins", source, val_source, val_fraction, {"name": "gpt2"}, splits)
    return Corpus(manifest, train, val)


def _find_bin_shards(pattern: str) -> list[Path]:
    paths = glob_files(pattern)
    if not paths:
        raise UserError(f"{pattern} matches no .bin shard")
    for path in paths:
        ids = open_shard(path)
        if ids.dtype != np.uint16 or ids[:1_000_000].max(initial=0) > GPT2_END_OF_TEXT:
            raise UserError(f"{path} has tokens of another vocabulary than GPT-2's")
    return paths


def _describe(path: Path) -> Shard:
    return Shard(str(path), len(open_shard(path)), cached_sha256(path))


def _count_bytes(tokens: Tokens) -> int:
    lengths = np.array([len(token) for token in gpt2_ranks()] + [0])
    total = 0
    for chunk in _chunks(tokens, 0):
        if chunk.max() > GPT2_END_OF_TEXT:
            raise UserError(f"a .bin shard has id {chunk.max()}, beyond GPT-2's vocabulary")
        total += int(lengths[chunk].sum())
    return total


def _chunks(tokens: Tokens, first: int) -> Iterator[np.ndarray]:
    for start in range(first, len(tokens), CHUNK):
        yield tokens.window(start, min(CHUNK, len(tokens) - start))


def _document_start(tokens: Tokens, first: int) -> int:
    """Returns the position of the first end-of-text id from `first` on, or `first` if none."""
    for start, chunk in zip(range(first, len(tokens), CHUNK), _chunks(tokens, first), strict=True):
        found = np.flatnonzero(chunk == GPT2_END_OF_TEXT)
        if len(found) and start + found[0] > 0:
            return int(start + found[0])
    return first
