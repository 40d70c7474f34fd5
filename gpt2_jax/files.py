"""Files that are whole or absent: atomic writes, hashes, the cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpt2_jax.errors import DiskError


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes a file that a reader, or a kill at any moment, finds either old or new."""
    # Not the process's number: on machines that share the folder it may be the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/gpt2_jax` (default `~/.cache/gpt2_jax`), made if it is not there.

    A user without a home directory has it in the folder for temporary files.
    """
    base = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    with disk_errors("the cache (set XDG_CACHE_HOME)"):
        if base.parts[:1] and base.parts[0].startswith("~"):  # there is no such home directory
            base = Path(tempfile.gettempdir(), f"gpt2_jax-{os.getuid()}")
            base.mkdir(mode=0o700, exist_ok=True)
            if base.stat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "it belongs to another user", str(base))
        path = base / "gpt2_jax"
        path.mkdir(parents=True, exist_ok=True)
    return path


def remembered_sha256(path: Path) -> str:
    """Returns a file's sha256, hashed again only if its size or time of change is new."""
    stat = path.stat()
    state = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    memo = cache_dir() / "hashes" / hashlib.sha256(state.encode()).hexdigest()
    if memo.exists():
        return memo.read_text()
    digest = sha256(path)
    with suppress(OSError):  # a cache that cannot be written only costs the hash again
        memo.parent.mkdir(exist_ok=True)
        write_atomic(memo, digest)
    return digest


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `target` at the end, and is gone if that fails.

    `target` must be empty or not there.
    """
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(str(target)):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if target.exists():
                target.rmdir()
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turns a full, missing or read-only disk into one line that names what was being written."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise DiskError(_cannot(f"{doing}{where}", error.strerror or str(error))) from None
    except ValueError as error:
        # tensorstore, beneath orbax, raises these for the system's errors
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise DiskError(_cannot(doing, os.strerror(int(code[1])))) from None


def _cannot(doing: str, reason: str) -> str:
    return (
        f"cannot write {doing}: {reason}; make room or choose another place, and start the same "
        "command again"
    )
