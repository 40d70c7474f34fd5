"""A campaign as an array of jobs (SLURM's, or processes of this machine), through submitit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2_jax.errors import EXIT_STOPPED, UserError

CLUSTERS = ("slurm", "local")


def submit(
    cluster: str, arguments: Sequence[str], workdir: Path, elements: int, resources: dict[str, Any]
) -> list[Any]:
    """Submits one array whose elements are workers of the same campaign, and returns its jobs.

    An element goes on until no cell is left, so that one that waits long in the queue, or dies,
    leaves its part to the others.

    Args:
      arguments: of the campaign's command line.
      elements: of the array.
      resources: as `submitit.AutoExecutor.update_parameters` takes them.

    Raises:
      UserError: if submitit is not installed, or refuses.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--submit needs submitit: pip install 'gpt2_jax[slurm]'") from None
    commands = [
        [sys.executable, "-m", "gpt2_jax.ablate.campaign", *arguments, f"--shard={i}/{elements}"]
        for i in range(1, elements + 1)
    ]
    try:
        executor = submitit.AutoExecutor(folder=workdir / "jobs" / "%j", cluster=cluster)
        executor.update_parameters(name=workdir.absolute().name, **resources)
        return executor.map_array(work, commands)
    except (RuntimeError, TypeError, NameError, ValueError, OSError) as error:
        raise UserError(f"--submit={cluster}: {' '.join(str(error).split())[:300]}") from None


def work(command: Sequence[str]) -> int:
    """Runs one element, its output to the job's own.

    Raises:
      RuntimeError: if it ended in an error.
    """
    code = subprocess.run(command, check=False).returncode
    if code not in (0, EXIT_STOPPED):
        raise RuntimeError(f"exit code {code}: {' '.join(command)}")
    return code


def parse_resources(words: Sequence[str]) -> dict[str, Any]:
    """Returns {name: value} of `timeout_min=240`, `slurm_partition=gpu`, numbers as numbers.

    Raises:
      UserError: if one is not of that form.
    """
    out: dict[str, Any] = {}
    for word in words:
        name, parted, value = word.partition("=")
        if not parted or not name.isidentifier():
            raise UserError(f"--resources has {word!r}, which is not name=value")
        out[name] = int(value) if value.isdecimal() else value
    return out
