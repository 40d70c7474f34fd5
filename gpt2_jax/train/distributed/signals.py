"""Graceful shutdown on SIGTERM, SIGHUP and SIGINT."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the work. A BaseException, so that `except Exception` does not catch it."""


class StopSignal:
    """Context in which a signal sets `requested`; a further Ctrl-C raises KeyboardInterrupt.

    Long-running work calls `check` where it can stop, or runs inside `immediate`.

    Attributes:
      signals: the signals that are handled.
      requested: name of the signal that has arrived, None if there is none.
    """

    signals: tuple[signal.Signals, ...] = SIGNALS

    def __init__(self) -> None:
        self.requested: str | None = None
        self._immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def poll(self) -> str | None:
        """Returns the name of the signal that has arrived, None if there is none."""
        return self.requested

    def check(self) -> None:
        """Raises `Stopped` if a signal has arrived."""
        if (name := self.poll()) is not None:
            raise Stopped(name)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Makes a signal raise `Stopped` immediately, for work that may be abandoned anywhere."""
        self._immediate = True
        try:
            self.check()
            yield
        finally:
            self._immediate = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        with suppress(OSError):  # the terminal may be closed
            # Not print(): a handler may interrupt one.
            os.write(2, f"\n{self.requested}: stopping at the next safe point\n".encode())
        if self._immediate:
            self._immediate = False
            raise Stopped(self.requested)
