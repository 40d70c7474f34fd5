"""What a prepared folder says about itself: `manifest.json`, written last and checked when read."""

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
FORMAT_VERSION = 2  # 1 had no checksum and no document_separator


@dataclass
class Shard:
    """One file of a split."""

    file: str
    tokens: int
    sha256: str


@dataclass
class Split:
    """Counts of a split and its files.

    `bytes` is the text's UTF-8 size, `words` are what white space separates; None if unknown.
    """

    tokens: int = 0
    documents: int | None = 0
    bytes: int | None = 0
    shards: list[Shard] = field(default_factory=list)
    words: int | None = None


@dataclass
class Manifest:
    """What a prepared folder holds.

    Attributes:
      key: hash of the source's content and of every option that changes a token.
      tokenizer: name, fingerprint, size and end-of-text id.
      document_separator: string at which documents were split, or None.
    """

    key: str
    source: str
    val_source: str | None
    val_fraction: float
    tokenizer: dict[str, Any]
    splits: dict[str, Split]
    document_separator: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the manifest as `manifest.json` holds it."""
        stored = {"format_version": FORMAT_VERSION, **asdict(self)}
        return stored | {"checksum": fields_sha256(stored)}

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Reads a prepared folder's manifest; one of format 1 is converted in memory.

        Raises:
          UserError: if it is not one, was changed by hand, or is of a newer version.
        """
        path = folder / MANIFEST
        try:
            if not path.is_file():
                raise ValueError("there is no such file")
            return _parsed(json.loads(path.read_text(encoding="utf-8")), path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a manifest of prepared data: {error}") from None

    def corpus_hash(self) -> str:
        """Returns a hash of every token in order: two corpora with one hash train alike."""
        sums = [[s.sha256 for s in split.shards] for _, split in sorted(self.splits.items())]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _parsed(stored: dict[str, Any], path: Path) -> Manifest:
    version = stored.get("format_version", stored.pop("format", None))
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version}, and this version of gpt2_jax reads up to "
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
    """Refuses counts that contradict each other; those of shards are compared on opening."""
    if set(manifest.splits) != {"train", "val"}:
        raise ValueError(f"its splits are {sorted(manifest.splits)}")
    for key, expected in (("name", str), ("fingerprint", str), ("size", int), ("end_of_text", int)):
        if not isinstance(manifest.tokenizer[key], expected):
            raise ValueError(f"tokenizer.{key} is {manifest.tokenizer[key]!r}")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if not re.fullmatch(rf"{name}_\d{{6}}\.bin", shard.file):
                raise ValueError(f"{shard.file!r} is not the name of a shard of {name}")
        counts = [split.tokens, split.documents, split.bytes, split.words or 0]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"the counts of {name} are {counts}")
        if split.tokens != sum(shard.tokens for shard in split.shards):
            raise ValueError(f"the shards of {name} do not add up to its {split.tokens} tokens")
