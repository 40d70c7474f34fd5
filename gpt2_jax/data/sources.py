"""Sources of text: files, Tiny Shakespeare, the Python standard library, and `datasets`.

A source yields its documents in pieces, so that neither a corpus nor a document has to fit into
memory.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from gpt2_jax.data.file_list import list_files
from gpt2_jax.data.hub import hub_error
from gpt2_jax.data.readers import file_format, read_documents
from gpt2_jax.data.text import Piece, reader_errors, row_text, text_field
from gpt2_jax.errors import UserError, without_credentials
from gpt2_jax.files import cached_sha256

_TEST_FOLDERS = ("test", "tests", "idle_test")


class Source(Protocol):
    """A sequence of documents.

    Attributes:
      name: as in `data.source`.
      summary: the files that are read and skipped, on one line; may be empty.
      size: bytes on disk, for the progress bar; None if unknown.
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
    """The documents in local files, each read in the format of its suffix."""

    def __init__(self, name: str, paths: list[Path], summary: str = "") -> None:
        self.name, self.paths, self.summary = name, paths, summary
        self.size = sum(path.stat().st_size for path in paths)

    def fingerprint(self) -> str:
        with reader_errors("the source cannot be read"):
            facts = [[file_format(p), p.suffix, cached_sha256(p)] for p in self.paths]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        for path in self.paths:
            yield from read_documents(path)


class Shakespeare:
    """Tiny Shakespeare, included in the package: one document of 1,115,394 bytes."""

    name, size, summary = "shakespeare", 1_115_394, ""
    _SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def fingerprint(self) -> str:
        return self._SHA256

    def pieces(self) -> Iterator[Piece]:
        packed = resources.files("gpt2_jax.data").joinpath("tiny_shakespeare.txt.xz")
        with reader_errors("the text of source shakespeare cannot be read; reinstall gpt2_jax"):
            content = lzma.decompress(packed.read_bytes())
        if hashlib.sha256(content).hexdigest() != self._SHA256:
            raise UserError("the text of source shakespeare is damaged; reinstall gpt2_jax")
        yield Piece(content.decode())


class Rows:
    """The rows of a dataset of the `datasets` library.

    Args:
      version: JSON values that change with the content.
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
    """Opens a dataset with `datasets.load_dataset`.

    Args:
      spec: `name[:config]@split`.

    Raises:
      UserError: if the dataset cannot be loaded.
    """
    import datasets

    path, _, split = spec.partition("@")
    path, _, config = path.partition(":")
    if not split:
        raise UserError(f"source hf:{spec} names no split; write hf:{spec}@train")
    datasets.disable_progress_bars()
    if not os.path.exists(path) and (fault := hub_error()):
        raise UserError(
            f"source hf:{spec}: {fault}; try again, or set HF_HUB_OFFLINE=1 to use an earlier "
            "download"
        )
    with _datasets_errors(f"hf:{spec}"):
        rows = datasets.load_dataset(path, config or None, split=split)
    sums = rows.info.download_checksums or {}
    version = [f"hf:{spec}", rows.num_rows, rows.info.dataset_size, sorted(sums.items())]
    return Rows(f"hf:{spec}", rows, [*version, rows._fingerprint])


def open_saved(folder: Path) -> Rows:
    """Opens a folder written by `Dataset.save_to_disk`.

    Raises:
      UserError: if it has several splits or cannot be loaded.
    """
    import datasets

    if (folder / "dataset_dict.json").is_file():
        raise UserError(
            f"source {folder} has several splits; choose one, such as {folder / 'train'}, and set "
            "data.val_source to use another for validation"
        )
    with _datasets_errors(str(folder)):
        rows = datasets.load_from_disk(str(folder))
        files = [[p.name, cached_sha256(p)] for p in sorted(folder.iterdir()) if p.is_file()]
    return Rows(str(folder), rows, files)


@contextmanager
def _datasets_errors(source: str) -> Iterator[None]:
    """Turns any exception of the `datasets` library into a `UserError` with its first line."""
    try:
        yield
    except Exception as error:  # the library raises many types
        lines = str(error).strip().splitlines() or [repr(error)]
        raise UserError(f"source {source}: datasets cannot load it: {lines[0]}") from None


def open_source(spec: str) -> Source:
    """Opens the source named by a value of `data.source`.

    Raises:
      UserError: if it does not exist or has no text.
    """
    if spec == "stdlib":
        return _stdlib()
    if spec == "shakespeare":
        return Shakespeare()
    if spec.startswith("hf:"):
        return open_hub(spec.removeprefix("hf:"))
    if spec.startswith("mixture:"):
        raise UserError(f"{spec} is a mixture, which only data.source of a run can be")
    if "://" in spec:
        raise UserError(
            f"source {without_credentials(spec)} is remote, which only data.source of a run can "
            "be; copy it to a local disk, or use hf:name@split"
        )
    if _is_saved(spec):
        return open_saved(Path(spec))
    return Files(spec, *list_files(spec))


def _is_saved(folder: str) -> bool:
    has = lambda name: os.path.isfile(os.path.join(folder, name))
    return has("dataset_dict.json") or (has("dataset_info.json") and has("state.json"))


def _stdlib() -> Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {*_TEST_FOLDERS, "site-packages", "dist-packages", "__pycache__"}
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - skipped)
        paths += [Path(folder, n) for n in sorted(names) if n.endswith((".py", ".txt", ".rst"))]
    with reader_errors("source stdlib cannot be read"):
        valid = [path for path in paths if path.stat().st_size and _is_utf8(path)]
    if not valid:
        raise UserError(f"source stdlib: no files in {root}; choose another data.source")
    return Files("stdlib", valid)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
