"""Graceful shutdown of all processes of a run at the same step, when one receives a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from jax.experimental import multihost_utils

from gpt2_jax.train.distributed.processes import Processes
from gpt2_jax.train.distributed.signals import SIGNALS, StopSignal

NOTICE = signal.SIGTERM  # jax has a handler for it, and passes it on to all processes


class SharedStop(StopSignal):
    """A stop signal that all processes see at the same call of `poll`.

    All processes must call `poll` and `check` at the same points. Work inside `immediate` is not
    interrupted, since the other processes would wait for this one.
    """

    signals = tuple(number for number in SIGNALS if number != NOTICE)

    def __init__(self) -> None:
        super().__init__()
        self._n_polls = 0
        self._is_interrupted = False

    def poll(self) -> str | None:
        """Returns the name of the signal once all processes know of it."""
        if self.requested is None:
            self._n_polls += 1
            if multihost_utils.reached_preemption_sync_point(self._n_polls):
                self.requested = NOTICE.name
        return self.requested

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Changes nothing."""
        yield

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._is_interrupted = True
        os.kill(os.getpid(), NOTICE)


def shared_by(processes: Processes, stop: StopSignal) -> AbstractContextManager[StopSignal]:
    """Returns a context with a stop signal for all processes.

    Args:
      stop: the entered stop signal of this process, which may have seen a signal already.
    """
    if processes.count == 1:
        return nullcontext(stop)
    if stop.requested is not None:
        os.kill(os.getpid(), NOTICE)
    return SharedStop()
