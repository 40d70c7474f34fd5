"""Local files as data of the harness's tasks, for use without a network.

Each file is converted to a cached folder that `datasets` can read: JSON Lines, and a README that
lists them under the task's configuration names (the format of repositories on the hub).
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2_jax.errors import UserError, shortened
from gpt2_jax.files import (
    atomic_folder,
    cache_dir,
    cached_sha256,
    check_regular,
    text_lines,
    to_json,
    write_atomic,
)

# (name of the configuration, split, lines)
Part = tuple[str, str, list[str]]


@dataclass(frozen=True)
class LocalTask:
    """A kind of task whose data can be local.

    Attributes:
      kind: prefix of the task's name in the harness.
      pattern: glob of its file in the data folder.
      parts: reads that file.
      absent: fields of the harness's task for splits that the file does not have.
    """

    kind: str
    pattern: str
    parts: Callable[[Path], Iterator[Part]]
    absent: tuple[str, ...] = ()

    @staticmethod
    def of(name: str) -> LocalTask:
        """Returns the kind that a task's name belongs to.

        Raises:
          UserError: if its data cannot be local.
        """
        for task in LOCAL_TASKS:
            if name == task.kind or (task.kind == "blimp" and name.startswith("blimp_")):
                return task
        known = ", ".join(task.kind for task in LOCAL_TASKS)
        raise UserError(f"--task_data has no data for {name}, only for {known}; leave it unset")


def local_folder(task: LocalTask, source: Path) -> Path:
    """Returns a folder that `datasets` can read, made from the task's file in `source`.

    Raises:
      UserError: if the file is missing or invalid.
    """
    found = sorted(source.glob(task.pattern))
    if not found:
        raise UserError(f"--task_data={source} has no {task.pattern} for {task.kind}")
    check_regular(found[0])
    digest = hashlib.sha256(f"2 {task.kind} {cached_sha256(found[0])}".encode()).hexdigest()
    folder = cache_dir() / "tasks" / f"{task.kind}-{digest[:16]}"
    if folder.exists():
        return folder
    with atomic_folder(folder) as partial:
        names = []
        for name, split, lines in task.parts(found[0]):
            _check_lines(lines, f"--task_data: {found[0]} ({name})")
            write_atomic(partial / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
            files = f"  data_files:\n  - split: {split}\n    path: {name}.jsonl"
            names.append(f"- config_name: {name}\n{files}")
        write_atomic(partial / "README.md", "---\nconfigs:\n" + "\n".join(names) + "\n---\n")
    return folder


def _check_lines(lines: list[str], where: str) -> None:
    """Checks JSON Lines, because the errors of `datasets` name neither the file nor the line."""
    if not lines:
        raise UserError(f"{where} is empty; restore it")
    for number, line in enumerate(lines, 1):
        try:
            valid = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise UserError(f"{where} line {number} is not a JSON object")


def parts_of_blimp(folder: Path) -> list[str]:
    """Returns the harness's names for the BLiMP tasks in a folder."""
    return [f"blimp_{path.stem}" for path in sorted(folder.glob("*.jsonl"))]


def _read(path: Path) -> str:
    with _named(path):
        return path.read_bytes().decode("utf-8-sig")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns errors in a file's content into a `UserError` that names the file."""
    try:
        yield
    except (ValueError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(
            f"--task_data: {path} is damaged, or not UTF-8 text: {shortened(error)}"
        ) from None


def _lambada(path: Path) -> Iterator[Part]:
    yield "default", "test", text_lines(_read(path))


def _hellaswag(path: Path) -> Iterator[Part]:
    yield "default", "validation", text_lines(_read(path))


def _blimp(path: Path) -> Iterator[Part]:
    with _named(path), tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".jsonl"):
                yield Path(member.name).stem, "train", text_lines(file.read().decode("utf-8-sig"))


def wikitext_pages(text: str) -> list[str]:
    """Returns WikiText's articles: each starts with a first-level heading."""
    starts = [
        match.start() for match in re.finditer(r"^ = [^=](?:.*[^=])? = $", text, re.MULTILINE)
    ]
    ends = [*starts[1:], len(text)]
    return [text[a:b] for a, b in zip(starts, ends, strict=False)]  # no headings: one extra end


def _wikitext(path: Path) -> Iterator[Part]:
    pages = wikitext_pages(_read(path))
    if not pages:
        raise UserError(f"--task_data: {path} has no article heading such as ` = Title = `")
    yield "wikitext-2-raw-v1", "test", [to_json({"page": page}) for page in pages]


LOCAL_TASKS = (
    LocalTask("lambada_openai", "lambada/*.jsonl", _lambada),
    LocalTask("hellaswag", "hellaswag/*.jsonl", _hellaswag, ("training_split",)),
    LocalTask("blimp", "blimp/*.tar.xz", _blimp),
    LocalTask("wikitext", "wikitext2_raw/*.raw", _wikitext, ("training_split", "validation_split")),
)
