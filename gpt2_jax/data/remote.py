"""Files in object storage, on the hub or on a web server, listed and downloaded with `fsspec`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from gpt2_jax.data.readers import file_format
from gpt2_jax.errors import Unavailable, UserError, shortened, without_credentials
from gpt2_jax.files import disk_errors

ATTEMPTS, FIRST_DELAY = 6, 1.0  # of a download; the delay doubles: 31 s in total
LISTING_ATTEMPTS = 3  # fewer, because someone is waiting for the run to start
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}", re.ASCII)
_MAX_FILES = 1_000_000
_REQUESTS = 16  # at a time, while listing
# What storage systems call a value that changes with the content: a hash, else a time.
_VERSIONS = (
    *("ETag", "md5Hash", "etag", "blob_id", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime"),
)
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A remote file.

    Attributes:
      size: in bytes, None if the server does not report it.
      version: changes with the content; empty if the server reports nothing of the kind.
    """

    url: str
    size: int | None
    version: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.url.partition("?")[0]).name


def is_remote(spec: str) -> bool:
    """Returns whether a value of `data.source` is a URL, such as `s3://bucket/*.jsonl`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", spec) is not None


def list_remote(spec: str) -> list[RemoteFile]:
    """Returns the files of a URL, sorted by URL.

    Args:
      spec: the URL of a file, or with `*` or `[…]` where the storage can list its files, or with a
        range of numbers such as `{000..127}`.

    Raises:
      UserError: if there are none, or the storage cannot be reached.
    """
    with _remote_errors(spec):
        files = retried(lambda: _list(spec), LISTING_ATTEMPTS)
    readable = [file for file in files if file_format(Path(file.name)) is not None]
    if not readable:
        raise UserError(
            f"source {without_credentials(spec)} matches no remote file in a known format; use the "
            "URL of a file, or a pattern such as s3://bucket/folder/*.jsonl.zst"
        )
    return readable


def _list(spec: str) -> list[RemoteFile]:
    from fsspec.core import url_to_fs

    urls = _expand(spec)
    system, path = url_to_fs(urls[0])
    if len(urls) == 1 and re.search(r"[*\[]", path.partition("?")[0]):
        found = {p: i for p, i in system.glob(path, detail=True).items() if i["type"] == "file"}
    else:
        found = {url_to_fs(url)[1]: {} for url in urls}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        details = pool.map(lambda p: found[p] if _version(found[p]) else system.info(p), found)
    files = [_describe(system.unstrip_protocol(p), i) for p, i in zip(found, details, strict=True)]
    return sorted(files, key=lambda file: file.url)


def _expand(spec: str) -> list[str]:
    """Returns the URLs of a range of numbers, which keep its leading zeros."""
    found = _RANGE.search(spec)
    if found is None:
        return [spec]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MAX_FILES:
        raise UserError(f"source {spec}: {found[0]} must be a range of at most {_MAX_FILES} files")
    width = len(found[1])
    numbers = range(first, last + 1)
    return [f"{spec[: found.start()]}{n:0{width}d}{spec[found.end() :]}" for n in numbers]


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")


def _describe(url: str, info: dict[str, Any]) -> RemoteFile:
    return RemoteFile(url, info.get("size"), _version(info))


def download(file: RemoteFile, target: Path) -> None:
    """Downloads a file, after checking that it has not changed since it was listed.

    Raises:
      Unavailable: if it cannot be read.
      UserError: if it has changed.
    """
    from fsspec.core import url_to_fs

    def attempt() -> None:
        system, path = url_to_fs(file.url)
        system.invalidate_cache()
        if _describe(file.url, system.info(path)) != file:
            raise UserError(
                f"{without_credentials(file.url)} has changed since the run listed it; restore it, "
                "or start again in another --workdir"
            )
        target.unlink(missing_ok=True)
        with disk_errors(str(target)):
            target.touch()
        system.get_file(path, str(target))
        size = target.stat().st_size
        if file.size not in (None, size):
            raise OSError(f"received {size} of {file.size} bytes")

    with _remote_errors(file.url):
        retried(attempt, ATTEMPTS)


def retried(action: Callable[[], T], attempts: int) -> T:
    """Returns the result of an action, repeated a few times if it fails as a network may."""
    delay = FIRST_DELAY
    for _ in range(attempts - 1):
        try:
            return action()
        except (UserError, ImportError, PermissionError, ValueError):
            raise
        except Exception as error:  # each storage library has its own types
            if isinstance(_cause(error), FileNotFoundError):
                raise
            time.sleep(delay)
            delay *= 2
    return action()


def _cause(error: Exception) -> BaseException:
    """Returns why a request failed: for web servers, fsspec always reports a missing file."""
    cause = error.__cause__
    hidden = isinstance(error, FileNotFoundError) and getattr(cause, "status", None) != 404
    return cause if hidden and cause is not None else error


@contextmanager
def _remote_errors(spec: str) -> Iterator[None]:
    """Turns any exception of fsspec and of storage libraries into a `UserError`.

    It is `Unavailable` unless trying again would not help.
    """
    where = f"source {without_credentials(spec)}"
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{where} needs another package: {shortened(error)}") from None
    except ValueError as error:
        raise UserError(f"{where} is not a valid URL: {shortened(error)}") from None
    except PermissionError:
        raise UserError(f"{where} cannot be read: permission denied; log in first") from None
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, FileNotFoundError):
            raise UserError(f"{where} does not exist; check the URL") from None
        reason = without_credentials(shortened(cause) or type(cause).__name__)
        raise Unavailable(
            f"{where} cannot be read: {reason}; when it is available, run the same command again"
        ) from None
