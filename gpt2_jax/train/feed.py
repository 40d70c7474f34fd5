"""Batches put on the devices ahead of their need, and signals turned into a question."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import jax
import numpy as np

DEPTH = 2  # batches on the devices before their step is dispatched


class Prefetch:
    """Yields `put(batch(step))` for step = first, first + 1, … last - 1, made in a thread."""

    def __init__(
        self,
        batch: Callable[[int], np.ndarray],
        put: Callable[[np.ndarray], jax.Array],
        first: int,
        last: int,
    ) -> None:
        self._queue: queue.Queue[jax.Array | BaseException] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self._steps = range(first, last)
        self._make = lambda step: put(batch(step))
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[jax.Array]:
        for _ in self._steps:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for step in self._steps:
                if not self._offer(self._make(step)):
                    return
        except BaseException as error:  # raised again where the batch is waited for
            self._offer(error)

    def _offer(self, item: jax.Array | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class StopSignal:
    """While it is entered, SIGTERM and Ctrl-C set `requested`; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        # Not print(): a handler may interrupt one.
        os.write(2, f"\n{self.requested}: saving after the update in progress\n".encode())
