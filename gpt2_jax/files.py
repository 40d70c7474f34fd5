"""Reads and writes files: atomic writes, JSON, hashes, the cache folder, and disk errors."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from gpt2_jax.errors import Damaged, DiskError, UserError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # names of temporary files of `write_atomic`
HASH = re.compile("[0-9a-f]{64}")
ABANDONED_SECONDS = 600.0  # age at which a temporary file is no longer being written
GLOB_SAFE = re.compile(r"[\w./ ,:=+@%-]+", re.ASCII)
# How tensorstore and safetensors report the operating system's error number.
SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'|\(os error (\d+)\)|\bOs \{ code: (\d+)")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes a file atomically: readers see the old or the new content, even after a crash."""
    # Random, because process ids are not unique on machines that share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporary(folder: Path, older_than: float = math.inf) -> None:
    """Deletes the temporary files that a killed `write_atomic` left in a folder.

    Args:
      older_than: deletes only files last modified before this time, in seconds since the epoch,
        for folders that other processes may be writing to.
    """
    for path in folder.iterdir():
        with suppress(OSError):  # another process may have deleted it
            if TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < older_than:
                path.unlink()


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
      UserError: if it cannot be read or is not a regular file.
    """
    check_regular(path)
    with read_errors(path):
        return path.read_bytes()


def check_regular(path: Path) -> None:
    """Checks that a path is a regular file: reading a pipe or a device may never end.

    Raises:
      UserError: if it is not, or its type cannot be read.
    """
    with read_errors(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(None, "it is not a regular file", str(path))


def open_lock(path: Path) -> IO[str]:
    """Opens a lock file without changing its content, creating it if missing.

    Raises:
      UserError: if it is not a regular file: opening a pipe may never end.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "r+", encoding="utf-8")
    os.close(descriptor)
    raise UserError(f"{path} is not a regular file; remove it")


def to_json(value: Any, indent: int | None = None, ascii_only: bool = True) -> str:
    """Returns JSON with `null` for NaN and infinity, which JSON cannot represent."""
    return json.dumps(_nan_to_null(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nan_to_null(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_null(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomic(path, to_json(value, indent=2) + "\n")


def text_lines(text: str) -> list[str]:
    """Splits a text into lines at LF and CRLF only, unlike `str.splitlines`.

    A line ending at the end of the text does not start another line.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_fields(path: Path, max_bytes: int | None = None) -> dict[str, Any]:
    """Returns the fields of a JSON file that contains one object.

    Args:
      max_bytes: limit on the file size; None for no limit.

    Raises:
      UserError: if the file is missing, cannot be read, or is too large.
      Damaged: if it is not a JSON object.
    """
    with read_errors(path):
        if max_bytes is not None and path.is_file() and (size := path.stat().st_size) > max_bytes:
            raise UserError(f"{path} has {size:,} bytes; the limit is {max_bytes:,}")
    content = read_file(path)
    try:
        fields = json.loads(content.decode("utf-8-sig"))
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
    except RecursionError:
        raise Damaged(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}; restore it from a backup") from None
    return fields


def check_format(fields: Mapping[str, Any], path: Path, newest: int) -> None:
    """Checks the `format_version` of a file; the default is 1.

    Args:
      newest: the latest version that this program can read.

    Raises:
      Damaged: if the version is not a positive integer.
      UserError: if the version is newer than this program.
    """
    version = fields.get("format_version", 1)
    if type(version) is not int or version < 1:
        raise Damaged(f"{path} is damaged: format_version={version!r}")
    if version > newest:
        raise UserError(
            f"{path} has format_version {version}, but this version of gpt2_jax reads at most "
            f"{newest}; use the version that wrote it, or a newer one"
        )


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/gpt2_jax` (default `~/.cache/gpt2_jax`), created if missing."""
    ensure_home()
    base = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    with disk_errors("the cache (set XDG_CACHE_HOME)"):
        path = base / "gpt2_jax"
        path.mkdir(parents=True, exist_ok=True)
    return path


def ensure_home() -> None:
    """Sets `$HOME` to a temporary folder if the user has no home directory.

    Otherwise libraries would create a folder named `~` for their caches.
    """
    if not os.path.expanduser("~").startswith("~"):
        return
    home = Path(tempfile.gettempdir(), f"gpt2_jax-{os.getuid()}")
    with disk_errors("the home directory (set HOME)"):
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(home))
    os.environ["HOME"] = str(home)


def fields_sha256(fields: Mapping[str, Any]) -> str:
    """Returns the hexadecimal SHA-256 of fields as JSON, independent of their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def cached_sha256(path: Path) -> str:
    """Returns a file's SHA-256, cached by its path, size and modification time."""
    stat = path.stat()
    state = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    entry = cache_dir() / "hashes" / hashlib.sha256(os.fsencode(state)).hexdigest()
    with suppress(OSError, UserError, ValueError):
        if HASH.fullmatch(known := read_file(entry).decode()):
            return known
    digest = sha256(path)
    # Need not be atomic: a partially written entry is not a valid hash.
    with suppress(OSError):  # the cache may be read-only
        entry.parent.mkdir(exist_ok=True)
        entry.write_text(digest, encoding="utf-8")
    return digest


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `target` on success and deleted on failure.

    `target` must be empty or not exist.
    """
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(str(target)):
        created = missing_folders(target.parent)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            if target.exists():
                target.rmdir()
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty_folders(created)
            raise


def check_empty(folder: Path, flag: str) -> None:
    """Checks that an output folder is empty or does not exist.

    Raises:
      UserError: naming the flag if it is not.
    """
    with read_errors(folder):
        is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_used:
        raise UserError(f"{flag} is not empty; choose a folder that does not exist yet")


def check_creatable(path: Path) -> None:
    """Checks that a folder can be created, by creating it and deleting it again.

    Raises:
      OSError: if it cannot.
    """
    missing = missing_folders(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    finally:
        remove_empty_folders(missing)


def missing_folders(path: Path) -> list[Path]:
    """Returns the missing folders among a path and its parents, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty_folders(folders: list[Path]) -> None:
    """Deletes folders in the given order, skipping those that are not empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yields a path to a folder without glob characters, through a symbolic link if necessary.

    orbax globs a checkpoint's path when it merges the files, and finds none if a parent folder has
    `[`, `*` or `?` in its name.
    """
    if GLOB_SAFE.fullmatch(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gpt2_jax_") as temporary:
        link = Path(temporary) / "link"
        link.symlink_to(folder, target_is_directory=True)
        if not GLOB_SAFE.fullmatch(str(link)):
            raise UserError(f"set TMPDIR to a path without special characters (it is {temporary})")
        yield link


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns errors of a full, missing or read-only disk into a `DiskError` naming `what`."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise DiskError(_cannot_write(f"{what}{where}", error.strerror or str(error))) from None
    except UserError:
        raise
    except Exception as error:  # libraries raise ValueError or their own exceptions
        code = SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        reason = os.strerror(int(next(filter(None, code.groups()))))
        raise DiskError(_cannot_write(what, reason)) from None


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns an OSError, such as a missing permission, into a `UserError` naming the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}; fix this and "
            "run the same command again"
        ) from None


def _cannot_write(what: str, reason: str) -> str:
    return (
        f"cannot write {what}: {reason}; free disk space or choose another place, and run the same "
        "command again"
    )
