r"""Runs an ablation study: trains all of its trials, and writes results.json and a report.

gpt2-jax ablate --config=configs/ablations/placement.py --workdir=runs/placement

The same command continues a stopped study. Processes and machines that share the directory share
the work (--shard=1/4 to 4/4 only determines where each starts), and --submit=slurm submits them as
a job array.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from gpt2_jax import cli
from gpt2_jax.ablation.study.definition import Definition, check_same, check_workdir, load, write
from gpt2_jax.ablation.study.submit import CLUSTERS, parse_resources, submit
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED, UserError, counted
from gpt2_jax.track.console import forgiving_output

if TYPE_CHECKING:
    from gpt2_jax.ablation.study.worker import Worker
    from gpt2_jax.train.distributed.signals import StopSignal

_CONFIG = cli.define_config("study file; --config.section.field=value changes a field of its base")
_WORKDIR = flags.DEFINE_string("workdir", None, "study directory, created if missing")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "print the overview and stop")
_SHARD = flags.DEFINE_string("shard", "1/1", "i/n: start with the i-th of n parts")
_SUBMIT = flags.DEFINE_enum("submit", None, CLUSTERS, "submit a job array and return")
_ELEMENTS = flags.DEFINE_integer(
    "elements", None, "number of jobs in the array; default: one per variant", 1, 10_000
)
_RESOURCES = flags.DEFINE_list(
    "resources", [], "of each job: timeout_min=240,slurm_partition=gpu,gpus_per_node=1"
)
_RETRY = flags.DEFINE_boolean("retry_failed", False, "retry failed trials")

REPORT = "gpt2-jax report --workdir="


def main(argv: list[str]) -> None:
    """Prints the overview and runs the study."""
    del argv
    if _CONFIG.value is None:
        raise UserError("pass --config, for example --config=configs/ablations/placement.py")
    if not _WORKDIR.value:
        raise UserError("pass --workdir, for example --workdir=runs/placement")
    shard = parse_shard(_SHARD.value)
    if _SUBMIT.value is None and (_ELEMENTS.value or _RESOURCES.value):
        raise UserError("--elements and --resources require --submit=slurm or --submit=local")
    parse_resources(_RESOURCES.value)  # raises before anything is written
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    with forgiving_output():
        sys.exit(run_study(load(file, cli.read_config(_CONFIG)), Path(_WORKDIR.value), shard))


def job_arguments(words: Sequence[str]) -> list[str]:
    """Returns the command-line arguments for the jobs of an array: all but the submission flags."""
    once = ("submit", "elements", "resources", "shard", "retry_failed", "noretry_failed")
    out, drop_next = [], False  # drop_next: the next word is the value of a dropped flag
    for word in words:
        name, has_value, _ = word.lstrip("-").partition("=")
        if word.startswith("-") and name in once:
            drop_next = not has_value and "retry" not in name
        elif drop_next:
            drop_next = False
        else:
            out.append(word)
    return out


def submit_all(cluster: str, definition: Definition, workdir: Path) -> None:
    """Submits the study and prints the ids of its jobs."""
    elements = _ELEMENTS.value or len(definition.study.variants)
    words, resources = job_arguments(sys.argv[2:]), parse_resources(_RESOURCES.value)
    jobs = submit(cluster, words, workdir, elements, resources)
    print(f"submitted {len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}")
    print(f"their output is in {workdir}/jobs; for a report at any time: {REPORT}{workdir}")


def parse_shard(text: str) -> tuple[int, int]:
    """Parses `i/n`, with i from 1 to n, and returns (i - 1, n).

    Raises:
      UserError: if it does not have that form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard={text} is not of the form 1/4 or 4/4")
    return int(found[1]) - 1, int(found[2])


def run_study(definition: Definition, workdir: Path, shard: tuple[int, int]) -> int:
    """Runs or submits a study, and returns the process's exit code."""
    # Imported after the flags are validated: jax takes a second to load.
    import jax

    from gpt2_jax.ablation.study.worker import Worker
    from gpt2_jax.train.distributed.mesh import configure_devices, cores
    from gpt2_jax.train.distributed.signals import Stopped, StopSignal
    from gpt2_jax.train.malloc import keep_freed_memory

    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores())
    base = definition.base
    configure_devices(base.train, base.mesh)
    check_workdir(workdir)
    check_same(workdir, definition)
    on_one_device = dataclasses.replace(base.mesh, data=1)  # each trial, where they are small
    keep_freed_memory(base.model, base.data, base.train, on_one_device)
    worker = Worker(base, definition.study, workdir, shard)
    try:
        with StopSignal() as stop:
            code = _work(worker, definition, stop)
    except Stopped as signal:
        print(f"stopped by {signal} before training began; the same command starts it again")
        return EXIT_STOPPED
    if stop.requested:
        print(f"stopped by {stop.requested}, saved; the same command continues")
    elif code is not None:
        _report(workdir, definition)
    return code or EXIT_FINISHED


def _work(worker: Worker, definition: Definition, stop: StopSignal) -> int | None:
    """Prints the overview and trains; returns None if this process is not to train."""
    from gpt2_jax.ablation.study.overview import overview
    from gpt2_jax.track.progress import StudyProgress

    cluster = _SUBMIT.value
    with stop.immediate():
        known = worker.check()
        print(overview(worker, known, timed=cluster is None), flush=True)
    if _DRY_RUN.value:
        return None
    write(worker.workdir, definition)
    if _RETRY.value and (n := worker.store.forget_failures(known)):
        print(f"{counted(n, 'failed trial')} will be retried")
    if cluster is not None:
        submit_all(cluster, definition, worker.workdir)
        return None
    display = StudyProgress()
    code = worker.work(display, stop)
    display.close()
    return code


def _report(workdir: Path, definition: Definition) -> None:
    from gpt2_jax.ablation.report.page import write_report
    from gpt2_jax.ablation.report.wandb_report import log_report, offline_hint

    found = write_report(workdir)
    problem = log_report(workdir, definition, found)
    print(f"written to {workdir}: report.html report.md report/ results.json trials/")
    if problem is not None:
        print(f"report: {problem}")
    if hint := offline_hint(workdir):
        print(hint)
    if found.n_failed:
        print(
            f"failed: {counted(found.n_failed, 'trial')} (see logs/); --retry_failed retries them"
        )
