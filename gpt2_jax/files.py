"""Files that are whole or absent: atomic writes, hashes, the cache folder."""

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

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # of files that `write_atomic` writes
HASH = re.compile("[0-9a-f]{64}")
ABANDONED_SECONDS = 600.0  # age at which no process is still writing a temporary file
PLAIN = re.compile(r"[\w./ ,:=+@%-]+", re.ASCII)
# How tensorstore and safetensors quote the operating system's error.
SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'|\(os error (\d+)\)|\bOs \{ code: (\d+)")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes a file that a reader, or a kill at any moment, finds either old or new."""
    # Not the process's number: on machines that share the folder it may be the same.
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
    """Deletes what `write_atomic` left in a folder when it was killed.

    Args:
      older_than: time of the last change, in seconds since the epoch, for a folder that other
        processes may be writing to.
    """
    for path in folder.iterdir():
        with suppress(OSError):  # another process may delete it as well
            if TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < older_than:
                path.unlink()


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
      UserError: if it cannot be read, or is not a regular file: reading a pipe may never end.
    """
    check_regular(path)
    with read_errors(path):
        return path.read_bytes()


def check_regular(path: Path) -> None:
    """Refuses what is not a regular file: reading a pipe or a device may never end.

    Raises:
      UserError: if it is something else, or cannot be looked at.
    """
    with read_errors(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(None, "it is not a regular file", str(path))


def open_lock(path: Path) -> IO[str]:
    """Opens a file that is only locked; its content, if any, is left alone.

    Raises:
      UserError: if it is not a regular file: opening a pipe may never end.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "r+", encoding="utf-8")
    os.close(number)
    raise UserError(f"{path} is not a regular file; remove it")


def to_json(value: Any, indent: int | None = None, ascii_only: bool = True) -> str:
    """Returns JSON in which a number that is not finite is `null`: JSON has no such numbers."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomic(path, to_json(value, indent=2) + "\n")


def text_lines(text: str) -> list[str]:
    """Returns the lines of a text; unlike `str.splitlines`, only line feeds separate them.

    A carriage return before the line feed is not part of a line, and the text's last line feed
    does not begin another line.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_fields(path: Path, largest: int | None = None) -> dict[str, Any]:
    """Returns the fields of a file that holds one JSON object.

    Args:
      largest: bytes that it may have; None for any number.

    Raises:
      UserError: if it is missing, cannot be read, or is too large.
      Damaged: if it holds something else.
    """
    with read_errors(path):
        if largest is not None and path.is_file() and (size := path.stat().st_size) > largest:
            raise UserError(f"{path} has {size:,} bytes; the most is {largest:,}")
    content = read_file(path)
    try:
        fields = json.loads(content.decode("utf-8-sig"))
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
    except RecursionError:
        raise Damaged(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}; bring it back from a copy") from None
    return fields


def check_format(fields: Mapping[str, Any], path: Path, newest: int) -> None:
    """Refuses a file whose `format_version` this program does not know.

    Args:
      newest: version that this program writes; a file without one is of version 1.

    Raises:
      Damaged: if it is not a version.
      UserError: if a newer version of this program wrote the file.
    """
    version = fields.get("format_version", 1)
    if type(version) is not int or version < 1:
        raise Damaged(f"{path} is damaged: format_version={version!r}")
    if version > newest:
        raise UserError(
            f"{path} has format_version {version}, and this program reads up to {newest}; use the "
            "version of gpt2_jax that wrote it, or a newer one"
        )


def sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/gpt2_jax` (default `~/.cache/gpt2_jax`), created if missing.

    Without a home directory it is in the folder for temporary files.
    """
    ensure_home()
    base = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    with disk_errors("the cache (set XDG_CACHE_HOME)"):
        path = base / "gpt2_jax"
        path.mkdir(parents=True, exist_ok=True)
    return path


def ensure_home() -> None:
    """Gives a user without a home directory one in the folder for temporary files, by `$HOME`.

    Libraries would make a folder named `~` in the current one for their caches.
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
    """Returns the hexadecimal sha256 of fields, whatever their order, as JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def remembered_sha256(path: Path) -> str:
    """Returns a file's sha256, hashed again only if its size or time of change is new."""
    stat = path.stat()
    state = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    memo = cache_dir() / "hashes" / hashlib.sha256(os.fsencode(state)).hexdigest()
    with suppress(OSError, UserError, ValueError):
        if HASH.fullmatch(known := read_file(memo).decode()):
            return known
    digest = sha256(path)
    # Not atomically: a torn memo is not a hash, and a killed process leaves no temporary file.
    with suppress(OSError):  # a cache that cannot be written only costs the hash again
        memo.parent.mkdir(exist_ok=True)
        memo.write_text(digest, encoding="utf-8")
    return digest


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `target` at the end; a failure leaves nothing.

    `target` must be empty or not exist.
    """
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(str(target)):
        made = missing_folders(target.parent)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            if target.exists():
                target.rmdir()
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty(made)
            raise


def check_creatable(path: Path) -> None:
    """Creates a folder and its parents where they are missing, and removes them again.

    Raises:
      OSError: if that is not possible; then nothing is left, either.
    """
    missing = missing_folders(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    finally:
        remove_empty(missing)


def missing_folders(path: Path) -> list[Path]:
    """Returns the folders that do not exist yet of a path and its parents, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Deletes folders, innermost first, except those that another process has put something in."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yields a path to a folder in which every character stands for itself.

    orbax treats the path of a checkpoint as a pattern when it merges its files, so that a `[`, `*`
    or `?` in any parent folder makes it find none. Such a folder is reached through a link.
    """
    if PLAIN.fullmatch(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gpt2_jax_") as place:
        link = Path(place) / "link"
        link.symlink_to(folder, target_is_directory=True)
        if not PLAIN.fullmatch(str(link)):
            raise UserError(f"set TMPDIR to a folder without special characters (it is {place})")
        yield link


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turns a full, missing or read-only disk into one line that names what was being written."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise DiskError(_cannot(f"{doing}{where}", error.strerror or str(error))) from None
    except UserError:
        raise
    except Exception as error:  # libraries raise ValueError, or exceptions of their own
        code = SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        reason = os.strerror(int(next(filter(None, code.groups()))))
        raise DiskError(_cannot(doing, reason)) from None


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns a file or folder that cannot be read into one line that names it.

    Raises:
      UserError: for any error of the operating system, such as missing permission.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}; fix this and "
            "run the same command again"
        ) from None


def _cannot(doing: str, reason: str) -> str:
    return (
        f"cannot write {doing}: {reason}; make room or choose another place, and start the same "
        "command again"
    )
