"""Prepares batches in a thread and puts them on the devices before they are needed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Self

from gpt2_jax.data.batch import Batch

DEPTH = 2  # batches on the devices before their step is dispatched
POLL_SECONDS = 0.5
JOIN_SECONDS = 5.0  # then the thread is left waiting for a remote file


class Prefetch:
    """Yields `prepare(step)` for step = first, ..., last - 1, called in a thread.

    While a batch is not ready, `stopped` is called from time to time; if true, no more follow.
    """

    def __init__(
        self,
        prepare: Callable[[int], Batch],
        first: int,
        last: int,
        stopped: Callable[[], object] = lambda: False,
    ) -> None:
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self._steps, self._stopped = range(first, last), stopped
        self._prepare = prepare
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def __iter__(self) -> Iterator[Batch]:
        for _ in self._steps:
            item = self._next()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _next(self) -> Batch | BaseException | None:
        while True:
            try:
                return self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stopped():
                    return None

    def _work(self) -> None:
        try:
            for step in self._steps:
                if not self._offer(self._prepare(step)):
                    return
        except BaseException as error:  # re-raised in __iter__
            self._offer(error)

    def _offer(self, item: Batch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
