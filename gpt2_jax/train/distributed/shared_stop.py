"""Graceful shutdown of all processes of a run at the same step, when one receives a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Self

from jax.experimental import multihost_utils

from gpt2_jax.train.distributed.connection import end_process
from gpt2_jax.train.distributed.processes import Processes
from gpt2_jax.train.distributed.signals import SIGNALS, Stopped, StopSignal

NOTICE = signal.SIGTERM  # jax has a handler for it, and passes it on to all processes
LOOK_SECONDS = 1.0  # between looking for a signal before training


class SharedStop(StopSignal):
    """A stop signal that all processes see at the same call of `poll`.

    All processes must call `poll` and `check` at the same points. Work inside `immediate` is not
    interrupted, since the other processes would wait for this one.

    Until the first call of `poll`, nothing needs to be saved: all processes end with exit code 75 a
    few seconds after the signal, whatever they are doing.
    """

    signals = tuple(number for number in SIGNALS if number != NOTICE)

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes
        self._n_polls = 0
        self._is_interrupted = False
        self._is_training = threading.Event()
        self._lock = threading.Lock()  # held to start training, or to end the process before it

    def __enter__(self) -> Self:
        threading.Thread(target=self._end_early, name="stop", daemon=True).start()
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        self._begin_training()
        super().__exit__(*exception)

    def poll(self) -> str | None:
        """Returns the name of the signal once all processes know of it."""
        if not self._is_training.is_set():
            self._processes.barrier("training")
            self._begin_training()
        if self.requested is None:
            self._n_polls += 1
            if multihost_utils.reached_preemption_sync_point(self._n_polls):
                self.requested = NOTICE.name
        return self.requested

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Changes nothing."""
        yield

    def _begin_training(self) -> None:
        with self._lock:
            self._is_training.set()

    def _end_early(self) -> None:
        """Ends the process if there is a signal before training begins.

        Every process sees the notice within `LOOK_SECONDS`. None ends before all have seen it, or
        the others would take it for lost.
        """
        while not self._is_training.wait(LOOK_SECONDS):
            if self._processes.is_preempted():
                if not self._is_training.wait(2 * LOOK_SECONDS):
                    with self._lock:
                        if not self._is_training.is_set():
                            end_process(Stopped(NOTICE.name), self._processes)
                return

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
    return SharedStop(processes)
