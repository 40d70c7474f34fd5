"""A study as an array of jobs (SLURM, or processes of this machine), through submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_jax.errors import EXIT_STOPPED, UserError

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

CLUSTERS = ("slurm", "local")
MAX_RESTARTS = 1000  # after a time-out; an element ends by itself once no trial is left


def submit(
    cluster: str, arguments: Sequence[str], workdir: Path, elements: int, resources: dict[str, Any]
) -> list[Job[int]]:
    """Submits one array whose elements are workers of the same study, and returns its jobs.

    An element runs until no trial is left, so that the others take over the share of one that
    waits in the queue or dies. One that runs out of time or is preempted saves and is queued again.

    Args:
      arguments: of the study's command line.
      elements: number of elements of the array.
      resources: as `submitit.AutoExecutor.update_parameters` takes them.

    Raises:
      UserError: if submitit is not installed, or refuses.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--submit needs submitit: pip install 'gpt2_jax[slurm]'") from None
    commands = [
        [sys.executable, "-m", "gpt2_jax", "ablate", *arguments, f"--shard={i}/{elements}"]
        for i in range(1, elements + 1)
    ]
    try:
        executor = submitit.AutoExecutor(
            folder=workdir / "jobs", cluster=cluster, slurm_max_num_timeout=MAX_RESTARTS
        )
        executor.update_parameters(name=workdir.absolute().name, **resources)
        return executor.map_array(Element(), commands)
    except (RuntimeError, TypeError, NameError, ValueError, OSError) as error:
        raise UserError(f"--submit={cluster}: {' '.join(str(error).split())[:300]}") from None


class Element:
    """Runs a command under submitit's signals; its output goes to the job's log."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def __call__(self, command: Sequence[str]) -> int:
        """Runs the command to its end and returns its exit code.

        Raises:
          RuntimeError: if it ended in an error.
        """
        process = subprocess.Popen(command, preexec_fn=_ignore_warnings)
        self._pid = process.pid
        process.returncode = _await(process.pid)
        if process.returncode not in (0, EXIT_STOPPED):
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
        return process.returncode

    def checkpoint(self, command: Sequence[str]) -> DelayedSubmission:
        """Makes the command save and stop, and returns what to queue in its place."""
        from submitit.helpers import DelayedSubmission

        if self._pid is not None:
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended
                os.kill(self._pid, signal.SIGTERM)
                _await(self._pid)
        return DelayedSubmission(Element(), command)


def _ignore_warnings() -> None:
    """Leaves submitit's signal, which SLURM sends to every process of a job, to submitit."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _await(pid: int) -> int:
    """Returns a child's exit code when it ends; unlike `Popen.wait`, also in a signal handler."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def parse_resources(words: Sequence[str]) -> dict[str, Any]:
    """Returns {name: value} for `timeout_min=240`, `slurm_partition=gpu`; numbers as numbers.

    Raises:
      UserError: if one does not have that form.
    """
    out: dict[str, Any] = {}
    for word in words:
        name, has_value, value = word.partition("=")
        if not has_value or not name.isidentifier():
            raise UserError(f"--resources has {word!r}, which is not name=value")
        out[name] = int(value) if value.isdecimal() else value
    return out
