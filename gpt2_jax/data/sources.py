"""Where text comes from: files, the shipped Shakespeare, the standard library, `datasets`.

A source gives its documents as a stream of pieces, so that neither a corpus nor one of its
documents needs to fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import sysconfig
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from gpt2_jax.data.hub import find_hub_fault
from gpt2_jax.data.listing import Listing, list_files
from gpt2_jax.data.readers import kind, read_documents
from gpt2_jax.data.text import Piece, readable, row_text, text_field
from gpt2_jax.errors import UserError, without_credentials
from gpt2_jax.files import remembered_sha256

_TEST_FOLDERS = ("test", "tests", "idle_test")


class Source(Protocol):
    """A corpus.

    Attributes:
      name: as `data.source` gives it.
      summary: what is read and what is left out, in a line, or nothing if that is plain.
      size: bytes on disk, for a progress bar; None if unknown.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def fingerprint(self) -> str:
        """Returns a hash that changes with the content."""

    def pieces(self) -> Iterator[Piece]:
        """Yields the documents in a fixed order, in pieces."""


class Files:
    """Documents in local files, each read by what its name ends in, compressed or not."""

    def __init__(self, name: str, paths: list[Path], summary: str = "") -> None:
        self.name, self.paths, self.summary = name, paths, summary
        self.size = sum(path.stat().st_size for path in paths)

    def fingerprint(self) -> str:
        with readable("the source cannot be read"):
            facts = [[kind(p), p.suffix, remembered_sha256(p)] for p in self.paths]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        for path in self.paths:
            yield from read_documents(path)


class Shakespeare:
    """Tiny Shakespeare, which the package ships: 1,115,394 bytes, one document."""

    name, size, summary = "shakespeare", 1_115_394, ""
    _SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def fingerprint(self) -> str:
        return self._SHA256

    def pieces(self) -> Iterator[Piece]:
        packed = resources.files("gpt2_jax.data").joinpath("tiny_shakespeare.txt.xz")
        with readable("the text of source shakespeare cannot be read; reinstall gpt2_jax"):
            content = lzma.decompress(packed.read_bytes())
        if hashlib.sha256(content).hexdigest() != self._SHA256:
            raise UserError("the text of source shakespeare is damaged; reinstall gpt2_jax")
        yield Piece(content.decode())


class Rows:
    """Rows of a dataset of the `datasets` library, opened by `open_hub` or `open_saved`.

    Args:
      version: changes with the content.
    """

    size, summary = None, ""

    def __init__(self, name: str, rows: Any, version: list[Any]) -> None:
        self.name, self._rows, self._version = name, rows, version
        self._field = text_field(rows.column_names, name)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._version).encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        for number, row in enumerate(self._rows.select_columns([self._field])):
            yield from row_text(row[self._field], f"{self.name} row {number}")


def open_hub(spec: str) -> Rows:
    """Opens anything that `datasets.load_dataset` loads, `name[:config]@split`.

    Raises:
      UserError: if the library cannot load it.
    """
    import datasets

    path, _, split = spec.partition("@")
    path, _, config = path.partition(":")
    if not split:
        raise UserError(f"source hf:{spec} names no split; write hf:{spec}@train")
    datasets.disable_progress_bars()
    if not os.path.exists(path) and (fault := find_hub_fault()):
        raise UserError(
            f"source hf:{spec}: {fault}; try again, or set HF_HUB_OFFLINE=1 to use what was "
            "downloaded before"
        )
    try:
        rows = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # the library raises many kinds, with many lines
        raise UserError(f"source hf:{spec}: datasets cannot load it: {_first(error)}") from None
    sums = rows.info.download_checksums or {}
    version = [f"hf:{spec}", rows.num_rows, rows.info.dataset_size, sorted(sums.items())]
    return Rows(f"hf:{spec}", rows, [*version, rows._fingerprint])


def open_saved(folder: Path) -> Rows:
    """Opens a folder that `Dataset.save_to_disk` wrote.

    Raises:
      UserError: if it holds several splits, or cannot be loaded.
    """
    import datasets

    if (folder / "dataset_dict.json").is_file():
        raise UserError(
            f"source {folder} holds several splits; name one, such as {folder / 'train'}, and "
            "set data.val_source if another one validates"
        )
    try:
        rows = datasets.load_from_disk(str(folder))
        content = [[p.name, remembered_sha256(p)] for p in sorted(folder.iterdir()) if p.is_file()]
    except Exception as error:  # the library raises many kinds, with many lines
        raise UserError(f"source {folder}: datasets cannot load it: {_first(error)}") from None
    return Rows(str(folder), rows, content)


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def open_source(spec: str) -> Source:
    """Returns the corpus that `data.source` names.

    Raises:
      UserError: if nothing is there, or it is not text.
    """
    if spec == "stdlib":
        return _stdlib()
    if spec == "shakespeare":
        return Shakespeare()
    if spec.startswith("hf:"):
        return open_hub(spec.removeprefix("hf:"))
    if "://" in spec:
        raise UserError(
            f"source {without_credentials(spec)} is a remote path; copy it to a local disk, or "
            "use hf:name@split"
        )
    if _is_saved(spec):
        return open_saved(Path(spec))
    listing: Listing = list_files(spec)
    return Files(spec, listing.paths, listing.summary)


def _is_saved(folder: str) -> bool:
    """Returns whether a folder holds what `save_to_disk` writes."""
    has = lambda name: os.path.isfile(os.path.join(folder, name))
    return has("dataset_dict.json") or (has("dataset_info.json") and has("state.json"))


def _stdlib() -> Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {*_TEST_FOLDERS, "site-packages", "dist-packages", "__pycache__"}
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - skipped)
        paths += [Path(folder, n) for n in sorted(names) if n.endswith((".py", ".txt", ".rst"))]
    with readable("source stdlib cannot be read whole"):
        kept = [path for path in paths if path.stat().st_size and _is_utf8(path)]
    if not kept:
        raise UserError(f"source stdlib: no sources under {root}; give another data.source")
    return Files("stdlib", kept)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
