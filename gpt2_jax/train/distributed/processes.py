"""The processes of one run: values that they exchange, and errors that end all of them.

Values go through the key-value store of jax's coordinator, not through the devices. So they can be
exchanged before jax has devices, and from any thread: a collective on the devices in a background
thread would race with those of the train step.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import jax

from gpt2_jax.errors import EXIT_PEER_LOST, UserError

POLL_MS = 1000  # between looking for processes that have ended; signals are handled as often
ENDED, FAILED = "gpt2_jax/ended/", "gpt2_jax/failed/"
PREEMPTED = (
    "RECEIVED_PREEMPTION_NOTICE"  # a key that jaxlib sets; unknown, signals wait for training
)
LAST_WORDS_SECONDS = 5.0


class Store(Protocol):
    """The methods of jax's distributed client that are used here."""

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_delete(self, key: str) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...

    def key_value_try_get(self, key: str) -> str: ...


class PeerError(UserError):
    """A `UserError` of another process.

    Attributes:
      exit_code: that of the other process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerLost(UserError):
    """Another process of the run has ended."""

    exit_code = EXIT_PEER_LOST

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; to continue from the last checkpoint, start all processes again")


class Processes:
    """The processes of a run, as seen by one of them.

    All processes must make the same calls, in the same order for each `name`; different names may
    be used by different threads.

    Args:
      store: None if there is only this process.

    Attributes:
      index: number of this process. count: number of processes.
      heartbeat_seconds: after this long without a heartbeat, a process counts as lost.
    """

    def __init__(
        self, store: Store | None, index: int, count: int, heartbeat_seconds: int = 0
    ) -> None:
        self._store, self.index, self.count = store, index, count
        self.heartbeat_seconds = heartbeat_seconds
        self._rounds: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which writes all files except the state in checkpoints."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """Returns the value that each process passes, in their order; blocks until all have.

        Args:
          value: anything that JSON can represent.

        Raises:
          PeerLost: if another process ends first.
        """
        if self._store is None:
            return [value]
        with self._lock:
            self._rounds[name] += 1
            number = self._rounds[name]
        key = lambda number, index: f"gpt2_jax/values/{name}/{number}/{index}"
        self._store.key_value_set(key(number, self.index), json.dumps(value))
        found = [self._wait_for(key(number, index)) for index in range(self.count)]
        if number > 1:  # every process has set its next value, so all have read the last one
            self._store.key_value_delete(key(number - 1, self.index))
        return [json.loads(text) for text in found]

    def _wait_for(self, key: str) -> str:
        assert self._store is not None
        while True:
            try:
                return self._store.blocking_key_value_get(key, POLL_MS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            self.check_alive()

    def broadcast(self, name: str, value: Any) -> Any:
        """Returns the value that process 0 passes; the others' values are ignored."""
        return self.gather(name, value if self.is_main else None)[0]

    def barrier(self, name: str) -> None:
        """Blocks until all processes have reached it."""
        self.gather(name, None)

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """Ends with an error on all processes if the context raises a `UserError` on any.

        Raises:
          UserError: this process's own.
          PeerError: that of another process, which it names.
        """
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            if self._store is None:
                raise
            failure = error
        mine = None if failure is None else [str(failure), failure.exit_code]
        others = self.gather(name, mine)
        if failure is not None:
            raise failure
        for index, other in enumerate(others):
            if other is not None:
                raise PeerError(f"process {index}: {other[0]}", other[1])

    def check_alive(self) -> None:
        """Raises `PeerLost` if another process has reported that it is ending."""
        if self._store is None:
            return
        for key, reason in self._store.key_value_dir_get(ENDED):
            index = int(key.removeprefix(ENDED))
            if index != self.index:
                raise PeerLost(f"process {index} has ended: {reason}")

    def is_preempted(self) -> bool:
        """Returns whether a process has received a SIGTERM, as jax tells all of them."""
        if self._store is None:
            return False
        try:
            self._store.key_value_try_get(PREEMPTED)
        except RuntimeError:  # there is none, or the coordinator is gone (std::bad_cast)
            return False
        return True

    def report_end(self, reason: str) -> None:
        """Tells the other processes that this one is ending early.

        Process 0, whose end closes the connections of all, waits a few seconds for processes that
        are ending for the same reason.
        """
        if self._store is None:
            return
        self._store.key_value_set(f"{ENDED}{self.index}", reason, allow_overwrite=True)
        deadline = time.monotonic() + (LAST_WORDS_SECONDS if self.is_main else 0)
        while time.monotonic() < deadline:
            if len(self._store.key_value_dir_get(ENDED)) == self.count:
                return
            time.sleep(0.1)

    def find_lost_peer(self) -> None:
        """Finds out whether an error of jax is due to a lost process; returns if it is not.

        If another process stays silent, the heartbeat ends this one in the meantime.

        Raises:
          PeerLost: if another process has reported its end.
        """
        if self._store is None:
            return
        deadline = time.monotonic() + 1.5 * self.heartbeat_seconds + LAST_WORDS_SECONDS
        try:
            self._store.key_value_set(f"{FAILED}{self.index}", "", allow_overwrite=True)
            while time.monotonic() < deadline:
                self.check_alive()
                if len(self._store.key_value_dir_get(FAILED)) == self.count:
                    return  # all of them are alive, with the same error
                time.sleep(0.1)
        except jax.errors.JaxRuntimeError:
            raise PeerLost("lost process 0, which coordinates the others") from None


ALONE = Processes(None, 0, 1)
