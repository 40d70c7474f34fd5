r"""Trains all cells of a campaign, and leaves results.json and a report.

python -m gpt2_jax.ablate.campaign --config=configs/ablations/placement.py --workdir=runs/placement

Started again on the same directory it goes on where it was stopped; several processes and machines
that share the directory share the work (--shard=1/4 … 4/4 only says where each begins), and
--submit=slurm makes an array of jobs of them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import config_flags

from gpt2_jax import cli
from gpt2_jax.ablate.campaign.definition import Definition, check_place, check_same, load, write
from gpt2_jax.ablate.campaign.submit import CLUSTERS, parse_resources, submit
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED, UserError
from gpt2_jax.track.screen import forgiving_output

if TYPE_CHECKING:
    from gpt2_jax.ablate.campaign.worker import Worker
    from gpt2_jax.train.signals import StopSignal

_CONFIG = cli.define_config(
    "campaign file; --config.section.field=value changes a field of its base"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "where the campaign is, or is to be")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "stop at the plan")
_SHARD = flags.DEFINE_string("shard", "1/1", "i/n: begin with the i-th of n parts")
_SUBMIT = flags.DEFINE_enum("submit", None, CLUSTERS, "submit an array of jobs and return")
_ELEMENTS = flags.DEFINE_integer("elements", None, "of the array; unset: one a variant", 1, 10_000)
_RESOURCES = flags.DEFINE_list(
    "resources", [], "of each: timeout_min=240,slurm_partition=gpu,gpus_per_node=1"
)
_RETRY = flags.DEFINE_boolean("retry_failed", False, "try cells that failed again")


REPORT = "python -m gpt2_jax.ablate.report --workdir="


def main(argv: list[str]) -> None:
    """Prints the plan and carries it out."""
    del argv
    if _CONFIG.value is None:
        raise UserError("give --config, for example --config=configs/ablations/placement.py")
    if not _WORKDIR.value:
        raise UserError("give --workdir, for example --workdir=runs/placement")
    shard = parse_shard(_SHARD.value)
    if _SUBMIT.value is None and (_ELEMENTS.value or _RESOURCES.value):
        raise UserError("--elements and --resources are of --submit=slurm or --submit=local")
    parse_resources(_RESOURCES.value)  # refused before anything is written
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    with forgiving_output():
        sys.exit(run(load(file, _CONFIG.value), Path(_WORKDIR.value), shard))


def for_elements(words: Sequence[str]) -> list[str]:
    """Returns the command line's words for each worker of an array: less what is done once."""
    once = ("submit", "elements", "resources", "shard", "retry_failed", "noretry_failed")
    out, own = [], False  # whether the word before is a flag of these whose value follows
    for word in words:
        name, parted, _ = word.lstrip("-").partition("=")
        if word.startswith("-") and name in once:
            own = not parted and "retry" not in name
        elif own:
            own = False
        else:
            out.append(word)
    return out


def submit_all(cluster: str, definition: Definition, workdir: Path) -> None:
    """Submits the campaign and says where its jobs are."""
    elements = _ELEMENTS.value or len(definition.campaign.variants)
    words, resources = for_elements(sys.argv[1:]), parse_resources(_RESOURCES.value)
    jobs = submit(cluster, words, workdir, elements, resources)
    print(f"submitted {len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}")
    print(f"their output is in {workdir}/jobs; the report at any time: {REPORT}{workdir}")


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, n), i from 0, of `i/n`, i from 1.

    Raises:
      UserError: if it is no such part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard={text} is no part such as 1/4 or 4/4")
    return int(found[1]) - 1, int(found[2])


def run(definition: Definition, workdir: Path, shard: tuple[int, int]) -> int:
    """Carries a campaign out, or submits it, and returns the process's exit code."""
    # Imported once the flags are known to be right: jax takes a second to load.
    import jax

    from gpt2_jax.ablate.campaign.worker import Worker
    from gpt2_jax.train.mesh import configure_devices, cores
    from gpt2_jax.train.signals import Stopped, StopSignal

    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores())
    configure_devices(definition.base)
    check_place(workdir)
    check_same(workdir, definition)
    worker = Worker(definition.base, definition.campaign, workdir, shard)
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
    """Prints the plan and trains; returns None where nothing was to be trained here."""
    from gpt2_jax.ablate.campaign.plan import plan_text
    from gpt2_jax.track.display import Display
    from gpt2_jax.train.memory import keep_freed_memory

    cluster = _SUBMIT.value
    with stop.immediate():
        known = worker.check()
        keep_freed_memory(worker.config(known[0]))
        print(plan_text(worker, known, timed=cluster is None), flush=True)
    if _DRY_RUN.value:
        return None
    write(worker.workdir, definition)
    if _RETRY.value and (n := worker.cells.forget_failures(known)):
        print(f"{n} cells that failed are tried again")
    if cluster is not None:
        submit_all(cluster, definition, worker.workdir)
        return None
    display = Display()
    code = worker.work(display, stop)
    display.close()
    return code


def _report(workdir: Path, definition: Definition) -> None:
    from gpt2_jax.ablate.report.page import write_report
    from gpt2_jax.ablate.report.tracked import offline_hint, track

    found = write_report(workdir)
    problem = track(workdir, definition, found)
    print(f"left in {workdir}: report.html report.md report/ results.json cells/")
    if problem is not None:
        print(f"report: {problem}")
    if hint := offline_hint(workdir):
        print(hint)
    if found.n_failed:
        print(f"failed: {found.n_failed} cells (logs/ says why); --retry_failed tries again")


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
