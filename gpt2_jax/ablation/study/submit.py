"""Submits a study as a job array (SLURM, or processes on this machine) with submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_jax.errors import EXIT_STOPPED, UserError, shortened

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

CLUSTERS = ("slurm", "local")
MAX_RESTARTS = 1000  # after a timeout; a job ends by itself once no trial is left


def submit(
    cluster: str, arguments: Sequence[str], workdir: Path, elements: int, resources: dict[str, Any]
) -> list[Job[int]]:
    """Submits one array whose jobs are workers of the same study, and returns the jobs.

    A job runs until no trial is left, so the others take over the share of one that is still queued
    or has died. A job that runs out of time or is preempted saves its state and is requeued.

    Args:
      arguments: arguments of the study's command line.
      elements: number of jobs in the array.
      resources: arguments of `submitit.AutoExecutor.update_parameters`.

    Raises:
      UserError: if submitit is not installed or raises an error.
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
        return executor.map_array(ArrayJob(), commands)
    except (RuntimeError, TypeError, NameError, ValueError, OSError) as error:
        raise UserError(f"--submit={cluster}: {shortened(error, 300)}") from None


class ArrayJob:
    """Runs a command and handles submitit's signals; the command's output goes to the job's log."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def __call__(self, command: Sequence[str]) -> int:
        """Runs the command to its end and returns its exit code.

        Raises:
          RuntimeError: if the command fails.
        """
        process = subprocess.Popen(command, preexec_fn=_ignore_warnings)
        self._pid = process.pid
        process.returncode = _await(process.pid)
        if process.returncode not in (0, EXIT_STOPPED):
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
        return process.returncode

    def checkpoint(self, command: Sequence[str]) -> DelayedSubmission:
        """Makes the command save and stop, and returns the job to queue in its place."""
        from submitit.helpers import DelayedSubmission

        if self._pid is not None:
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended
                os.kill(self._pid, signal.SIGTERM)
                _await(self._pid)
        return DelayedSubmission(ArrayJob(), command)


def _ignore_warnings() -> None:
    """Ignores submitit's signal in this process: SLURM sends it to every process of a job."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _await(pid: int) -> int:
    """Returns a child's exit code when it ends; unlike `Popen.wait`, also in a signal handler."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def parse_resources(words: Sequence[str]) -> dict[str, Any]:
    """Parses words such as `timeout_min=240` and `slurm_partition=gpu`; integers become ints.

    Raises:
      UserError: if a word does not have that form.
    """
    out: dict[str, Any] = {}
    for word in words:
        name, has_value, value = word.partition("=")
        if not has_value or not name.isidentifier():
            raise UserError(f"--resources has {word!r}, which is not name=value")
        out[name] = int(value) if value.isdecimal() else value
    return out
