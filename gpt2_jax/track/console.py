"""Terminal output: streams that never raise, and a status line for each phase of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from tqdm import tqdm

_FAILURES = (OSError, ValueError)  # ValueError: the file is closed
_unfinished: str | None = None  # phase whose line `status` has not completed yet


class _Output:
    """A text stream that never raises.

    Text is silently lost if the pipe, file or terminal is closed or the disk is full. Characters
    that the stream's encoding lacks are written as backslash escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(*_FAILURES):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(*_FAILURES):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Replaces sys.stdout and sys.stderr by streams that never raise, within the context.

    On exit, a standard stream that cannot be written to is redirected to /dev/null: Python flushes
    both streams when it exits, and a failure would change the exit code.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    ours = [
        cast(TextIO, _Output(stream or open(os.devnull, "w", encoding="utf-8")))
        for stream in before
    ]
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        for stream in before:
            _flush_or_redirect(stream)
        if sys.stdout is ours[0]:
            sys.stdout = before[0]
        if sys.stderr is ours[1]:
            sys.stderr = before[1]


@contextmanager
def no_output() -> Iterator[None]:
    """Discards what Python prints within the context, as in processes that repeat another's."""
    null = open(os.devnull, "w", encoding="utf-8")
    with null, redirect_stdout(null), redirect_stderr(null):
        yield


@contextmanager
def status(doing: str) -> Iterator[None]:
    """Prints `doing…` on stderr, and when it is done, how many seconds it took."""
    global _unfinished
    started = time.monotonic()
    print(f"{doing}… ", end="", file=sys.stderr, flush=True)
    _unfinished = doing
    try:
        yield
    except BaseException:
        _end_line()
        raise
    again = "" if _unfinished == doing else f"{doing}… "  # another line was printed in between
    _unfinished = None
    print(f"{again}{time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Prints a line on stderr, above the progress bar if there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        _end_line()
        print(line, file=sys.stderr, flush=True)


def is_line_open() -> bool:
    """Returns whether `status` has printed the beginning of a line."""
    return _unfinished is not None


def _end_line() -> None:
    global _unfinished
    if _unfinished is not None:
        _unfinished = None
        print(file=sys.stderr, flush=True)


def _open_closed_descriptors() -> None:
    """Opens descriptors 1 and 2 if they are closed, so that no other file gets their numbers."""
    for descriptor in (1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def _flush_or_redirect(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except _FAILURES:
        with suppress(*_FAILURES):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
