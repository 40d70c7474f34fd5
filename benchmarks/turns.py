"""Processes that take turns in doing work, so that their times can be compared on a busy machine.

Needs nothing but Python, so that the processes of other projects can use it as well.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Idle OpenMP threads would otherwise spin for a while after each turn.
QUIET = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}

Command = tuple[list[str], Path]  # with its working directory


class Times(NamedTuple):
    """Milliseconds per repeat: wall time, and CPU time summed over cores."""

    wall: float
    cpu: float


class Worker:
    """A process that does its work when asked, and reports `Times`.

    Attributes:
      ready: what it printed when it was ready.
    """

    def __init__(self, command: list[str], cwd: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=cwd, env=os.environ | QUIET, **pipes)
        self.ready = self._answer("ready")

    def turn(self, n: int) -> Times:
        """Does its work n times."""
        assert self._process.stdin is not None
        print(n, file=self._process.stdin, flush=True)
        return Times(*map(float, self._answer("ms").split()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        sys.exit(f"a worker ended with exit code {self._process.wait()}")


def take_turns(
    commands: Mapping[str, Command], rounds: int, n: int
) -> tuple[dict[str, list[Times]], dict[str, str]]:
    """Starts all workers, lets them take turns, and ends them.

    Args:
      commands: by name. n: repeats per turn.

    Returns the times of each round, and what the workers printed when they were ready.
    """
    workers = {}
    for name, command in commands.items():
        print(f"starting {name}", file=sys.stderr)
        workers[name] = Worker(*command)
    times: dict[str, list[Times]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            times[name].append(worker.turn(n))
            print(name, times[name][-1], file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return times, {name: worker.ready for name, worker in workers.items()}


def medians(found: Sequence[Times]) -> Times:
    """Returns the medians of wall time and of CPU time."""
    return Times(*map(statistics.median, zip(*found, strict=True)))


def serve(work: Callable[[], Any]) -> None:
    """The loop of a worker's process.

    It does its work twice, prints the second result as JSON, and then repeats it as often as each
    line of standard input says.
    """
    work()
    print("ready", json.dumps(work()), flush=True)
    for line in sys.stdin:
        n, started = int(line), (time.perf_counter(), time.process_time())
        for _ in range(n):
            work()
        ended = time.perf_counter(), time.process_time()
        print("ms", *((b - a) / n * 1e3 for a, b in zip(started, ended, strict=True)), flush=True)
