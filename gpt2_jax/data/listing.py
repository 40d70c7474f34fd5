"""Which files a path, a folder or a glob means, and which ones are left out."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gpt2_jax.data.decompress import COMPRESSED
from gpt2_jax.data.readers import kind
from gpt2_jax.data.text import shown
from gpt2_jax.errors import UserError
from gpt2_jax.files import read_errors

_DOCUMENTATION = (".md", ".rst", ".txt")


@dataclass(frozen=True)
class Listing:
    """Files to read in order, and a line about them; the line is empty for a single file."""

    paths: list[Path]
    summary: str


def list_files(spec: str) -> Listing:
    """Returns the files that a path, a folder or a glob names.

    Raises:
      UserError: if there is none, or the path is a device or a pipe.
    """
    if os.path.isdir(spec):
        paths, skipped = _in_folder(Path(spec))
        if not paths and skipped:
            raise UserError(f"source {spec} has no file of a kind that is read; {skipped}")
    else:
        paths, skipped = matching_files(spec), ""
    if not paths:
        raise UserError(
            f"source {spec} matches no file; give `shakespeare`, `stdlib`, a path or glob of "
            "text, jsonl, json, parquet, csv or arrow files, a prepared folder, or hf:name@split"
        )
    if len(paths) == 1 and not skipped:
        return Listing(paths, "")
    count = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    listed = f"source {spec}: reading {count} ({_counted(paths)})"
    return Listing(paths, "; ".join(filter(None, [listed, skipped])))


def matching_files(spec: str) -> list[Path]:
    """Returns the files that a path or a glob names, in order; a path that exists is not a glob.

    Raises:
      UserError: if the path is a device or a pipe, which could not be read twice.
    """
    if os.path.lexists(spec):
        if not os.path.isfile(spec) and not os.path.isdir(spec):
            raise UserError(f"{spec} is a device, a pipe or a broken link; copy it into a file")
        return [Path(spec)] if os.path.isfile(spec) else []
    folder, pattern = _existing_folder(spec)
    try:
        found = glob.glob(pattern, root_dir=folder, recursive=True)
    except (OSError, ValueError):  # an impossible name, such as one with a zero byte
        return []
    names = [os.path.join(folder, name) for name in sorted(found)]
    return [Path(name) for name in names if os.path.isfile(name)]


def _existing_folder(spec: str) -> tuple[str, str]:
    """Returns the folder that a glob begins with, in which nothing is a wildcard, and the rest."""
    parts = spec.split("/")
    for n in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:n]) or "/"
        if os.path.isdir(folder):
            return folder, "/".join(parts[n:])
    return "", spec


def _in_folder(folder: Path) -> tuple[list[Path], str]:
    """Returns the files of a folder to read, and what is left out, in words."""
    found, linked = _walked(folder)
    hidden = {p for p in found if any(q.startswith(".") for q in p.relative_to(folder).parts)}
    seen = [path for path in found if path not in hidden]
    readmes = _descriptions(seen)
    other = [path for path in seen if kind(path) is None]
    left_out = [
        *([f"{len(hidden)} hidden"] if hidden else []),
        *([f"{linked} linked folder(s)"] if linked else []),
        *(str(path.relative_to(folder)) for path in readmes),
        *([f"{len(other)} of other kinds ({_counted(other)})"] if other else []),
    ]
    paths = [path for path in seen if path not in readmes and kind(path) is not None]
    return paths, f"leaving out {shown(left_out)}" if left_out else ""


def _walked(folder: Path) -> tuple[list[Path], int]:
    """Returns all files below a folder in order, and how many links to folders it holds."""
    found: list[Path] = []
    linked = 0

    def refuse(error: OSError) -> None:
        raise UserError(f"source {folder}: cannot read {error.filename}: {error.strerror}")

    for here, folders, names in os.walk(folder, onerror=refuse):
        linked += sum(os.path.islink(os.path.join(here, name)) for name in folders)
        for path in (Path(here, name) for name in names):
            with read_errors(path):  # a link may lead to where one may not look
                found += [path] if path.is_file() else []
    return sorted(found), linked


def _descriptions(paths: list[Path]) -> list[Path]:
    """Returns the READMEs that describe a corpus: no other file is of their kind."""
    readmes = [
        p for p in paths if p.stem.lower() == "readme" and p.suffix.lower() in _DOCUMENTATION
    ]
    others = [path for path in paths if path not in readmes and kind(path) is not None]
    suffixes = {path.suffix.lower() for path in others}
    return [path for path in readmes if others and path.suffix.lower() not in suffixes]


def _counted(paths: list[Path]) -> str:
    """Returns how many paths have each ending, such as `2 .txt, 1 .jsonl.gz`."""
    endings = Counter(
        "".join(path.suffixes[-2 if path.suffix.lower() in COMPRESSED else -1 :]) or "no suffix"
        for path in paths
    )
    return shown([f"{count} {ending}" for ending, count in sorted(endings.items())])
