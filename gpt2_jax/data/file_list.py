"""Lists the files of a path, a folder or a glob."""

from __future__ import annotations

import glob
import os
from collections import Counter
from pathlib import Path

from gpt2_jax.data.decompress import COMPRESSED
from gpt2_jax.data.readers import file_format
from gpt2_jax.data.text import short_list
from gpt2_jax.errors import UserError, counted
from gpt2_jax.files import read_errors

CORPORA = (
    "`shakespeare`, `stdlib`, a path or glob of text, jsonl, json, parquet, csv or arrow files, a "
    "prepared folder, or hf:name@split"
)
_DOCUMENTATION = (".md", ".rst", ".txt")


def list_files(spec: str, readable: str = CORPORA) -> tuple[list[Path], str]:
    """Returns the files of a path, a folder or a glob in order, and a summary on one line.

    The summary, empty for a single file, counts the files and lists those of a folder that are
    skipped: hidden files, unknown formats, linked folders and a README.

    Args:
      readable: what `spec` may be, for errors.

    Raises:
      UserError: if there are no files, or the path is a device or a pipe.
    """
    if os.path.isdir(spec):
        paths, skipped = _list_folder(Path(spec))
        if not paths and skipped:
            raise UserError(f"source {spec} has no file in a known format; {skipped}")
    else:
        paths, skipped = glob_files(spec), ""
    if not paths:
        raise UserError(f"source {spec} matches no file; use {readable}")
    if len(paths) == 1 and not skipped:
        return paths, ""
    summary = f"source {spec}: reading {counted(len(paths), 'file')} ({_count_suffixes(paths)})"
    return paths, f"{summary}; {skipped}" if skipped else summary


def glob_files(spec: str) -> list[Path]:
    """Returns the files that match a path or a glob, sorted; an existing path is not a glob.

    Raises:
      UserError: if the path is a device or a pipe, which cannot be read twice.
    """
    if os.path.lexists(spec):
        if not os.path.isfile(spec) and not os.path.isdir(spec):
            raise UserError(f"{spec} is a device, a pipe or a broken link; copy it to a file")
        return [Path(spec)] if os.path.isfile(spec) else []
    folder, pattern = _split_glob(spec)
    try:
        found = glob.glob(pattern, root_dir=folder, recursive=True)
    except (OSError, ValueError):  # an invalid name, such as one with a zero byte
        return []
    names = [os.path.join(folder, name) for name in sorted(found)]
    return [Path(name) for name in names if os.path.isfile(name)]


def _split_glob(spec: str) -> tuple[str, str]:
    """Splits a glob into its longest existing folder, which is taken literally, and the rest."""
    parts = spec.split("/")
    for n in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:n]) or "/"
        if os.path.isdir(folder):
            return folder, "/".join(parts[n:])
    return "", spec


def _list_folder(folder: Path) -> tuple[list[Path], str]:
    """Returns the files of a folder to read, and a description of those that are skipped."""
    found, linked = _walk(folder)
    hidden = {p for p in found if any(q.startswith(".") for q in p.relative_to(folder).parts)}
    visible = [path for path in found if path not in hidden]
    readmes = _find_readmes(visible)
    unknown = [path for path in visible if file_format(path) is None]
    skipped = [
        *([f"{len(hidden)} hidden"] if hidden else []),
        *([counted(linked, "linked folder")] if linked else []),
        *(str(path.relative_to(folder)) for path in readmes),
        *([f"{len(unknown)} of unknown format ({_count_suffixes(unknown)})"] if unknown else []),
    ]
    paths = [path for path in visible if path not in readmes and file_format(path) is not None]
    return paths, f"skipping {short_list(skipped)}" if skipped else ""


def _walk(folder: Path) -> tuple[list[Path], int]:
    """Returns all files below a folder, sorted, and the number of linked folders."""
    found: list[Path] = []
    linked = 0

    def fail(error: OSError) -> None:
        raise UserError(f"source {folder}: cannot read {error.filename}: {error.strerror}")

    for here, folders, names in os.walk(folder, onerror=fail):
        linked += sum(os.path.islink(os.path.join(here, name)) for name in folders)
        for path in (Path(here, name) for name in names):
            with read_errors(path):  # a link may point into an inaccessible folder
                found += [path] if path.is_file() else []
    return sorted(found), linked


def _find_readmes(paths: list[Path]) -> list[Path]:
    """Returns the READMEs that describe the corpus: no other file to read has their suffix."""
    readmes = [
        p for p in paths if p.stem.lower() == "readme" and p.suffix.lower() in _DOCUMENTATION
    ]
    others = [path for path in paths if path not in readmes and file_format(path) is not None]
    suffixes = {path.suffix.lower() for path in others}
    return [path for path in readmes if others and path.suffix.lower() not in suffixes]


def _count_suffixes(paths: list[Path]) -> str:
    """Returns the number of paths by suffix, such as `2 .txt, 1 .jsonl.gz`."""
    suffixes = Counter(
        "".join(path.suffixes[-2 if path.suffix.lower() in COMPRESSED else -1 :]) or "no suffix"
        for path in paths
    )
    return short_list([f"{count} {suffix}" for suffix, count in sorted(suffixes.items())])
