"""The manifest of a prepared folder: `manifest.json`, which is written last."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.files import fields_sha256

MANIFEST = "manifest.json"
FORMAT_VERSION = 2  # version 1 had no checksum and no document_separator


@dataclass
class Shard:
    """A file of tokens."""

    file: str
    tokens: int
    sha256: str


@dataclass
class Split:
    """The counts and shards of a split.

    `bytes` is the UTF-8 size of the text; `words` are separated by white space. None means unknown.
    """

    tokens: int = 0
    documents: int | None = 0
    bytes: int | None = 0
    shards: list[Shard] = field(default_factory=list)
    words: int | None = None


@dataclass
class Manifest:
    """The contents of a prepared folder and how they were made.

    Attributes:
      key: hash of the source's content and of all options that affect the shards.
      source, val_source, val_fraction, document_separator: as the fields of the `data` section.
      tokenizer: name, fingerprint, size and end-of-text id.
      splits: by name, `train` and `val`.
    """

    key: str
    source: str
    val_source: str | None
    val_fraction: float
    tokenizer: dict[str, Any]
    splits: dict[str, Split]
    document_separator: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `manifest.json`."""
        stored = {"format_version": FORMAT_VERSION, **asdict(self)}
        return stored | {"checksum": fields_sha256(stored)}

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Reads the manifest of a prepared folder, in format version 1 or 2.

        Raises:
          UserError: if it is missing or invalid, was edited, or has a newer version.
        """
        path = folder / MANIFEST
        try:
            if not path.is_file():
                raise ValueError("no such file")
            return _parse(json.loads(path.read_text(encoding="utf-8")), path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a manifest of prepared data: {error}") from None

    def corpus_hash(self) -> str:
        """Returns a hash of all tokens in order, which identifies the corpus for training."""
        sums = [[s.sha256 for s in split.shards] for _, split in sorted(self.splits.items())]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _parse(stored: dict[str, Any], path: Path) -> Manifest:
    version = stored.get("format_version", stored.pop("format", None))
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version}, but this version of gpt2_jax reads at most "
            f"{FORMAT_VERSION}; upgrade gpt2_jax, or prepare the data again"
        )
    if version not in (1, FORMAT_VERSION) or isinstance(version, bool):
        raise ValueError(f"format_version is {version!r}")
    if version == FORMAT_VERSION and stored.pop("checksum") != fields_sha256(stored):
        raise UserError(
            f"{path} was changed after it was written; restore it, or delete {path.parent} and "
            "prepare the data again"
        )
    stored.pop("format_version", None)
    splits = {
        name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
        for name, split in stored.pop("splits").items()
    }
    manifest = Manifest(**stored, splits=splits)
    _check_counts(manifest)
    return manifest


def _check_counts(manifest: Manifest) -> None:
    """Checks that the manifest is consistent; shards are compared with it when they are opened."""
    if set(manifest.splits) != {"train", "val"}:
        raise ValueError(f"its splits are {sorted(manifest.splits)}")
    for key, expected in (("name", str), ("fingerprint", str), ("size", int), ("end_of_text", int)):
        if not isinstance(manifest.tokenizer[key], expected):
            raise ValueError(f"tokenizer.{key} is {manifest.tokenizer[key]!r}")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if not re.fullmatch(rf"{name}_\d{{6}}\.bin", shard.file):
                raise ValueError(f"{shard.file!r} is not a shard name of split {name}")
        counts = [split.tokens, split.documents, split.bytes, split.words or 0]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"the counts of {name} are {counts}")
        if split.tokens != sum(shard.tokens for shard in split.shards):
            raise ValueError(f"the shards of {name} do not add up to its {split.tokens} tokens")
