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
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from gpt2_jax import cli
from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.definition import Definition, load, write
from gpt2_jax.ablate.campaign.design import describe
from gpt2_jax.ablate.campaign.submit import CLUSTERS, parse_resources, submit
from gpt2_jax.errors import EXIT_FINISHED, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "campaign file; --config.section.field=value changes a field of its base"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "where the campaign is, or is to be")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "stop at the plan")
_SHARD = flags.DEFINE_string("shard", "1/1", "i/n: begin with the i-th of n parts")
_SUBMIT = flags.DEFINE_enum("submit", None, CLUSTERS, "submit an array of jobs and return")
_ELEMENTS = flags.DEFINE_integer("elements", None, "of the array; unset: one a variant", 1)
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
    file = next(m[1] for arg in sys.argv if (m := re.fullmatch(r"--?config=(.*)", arg)))
    definition = load(file, _CONFIG.value)
    if _SUBMIT.value is not None:
        submit_all(_SUBMIT.value, definition, Path(_WORKDIR.value))
        return
    sys.exit(run(definition, Path(_WORKDIR.value), shard, _DRY_RUN.value, _RETRY.value))


def submit_all(cluster: str, definition: Definition, workdir: Path) -> None:
    """Submits the campaign and says where its jobs are."""
    own = ("--submit", "--elements", "--resources", "--shard")
    arguments = [word for word in sys.argv[1:] if not word.startswith(own)]
    elements = _ELEMENTS.value or len(definition.campaign.variants)
    write(workdir, definition)
    jobs = submit(cluster, arguments, workdir, elements, parse_resources(_RESOURCES.value))
    print(f"submitted {len(jobs)} jobs: {jobs[0].job_id} to {jobs[-1].job_id}")
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


def run(
    definition: Definition, workdir: Path, shard: tuple[int, int], dry: bool, retry: bool
) -> int:
    """Carries a campaign out, and returns the process's exit code."""
    # Imported once the flags are known to be right: jax takes a second to load.
    import jax

    from gpt2_jax.ablate.campaign.worker import Worker
    from gpt2_jax.ablate.report.page import write_report
    from gpt2_jax.ablate.report.tracked import track
    from gpt2_jax.data.tokenizer import load_tokenizer
    from gpt2_jax.track.display import Display
    from gpt2_jax.train.feed import StopSignal
    from gpt2_jax.train.memory import keep_freed_memory
    from gpt2_jax.train.mesh import configure_devices, cores

    base = definition.base
    keep_freed_memory(configs.resolve(base, load_tokenizer(base.data.tokenizer).size))
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores())
    configure_devices(base)
    worker = Worker(base, definition.campaign, workdir, shard)
    known = worker.check()
    print(plan_text(worker, known), flush=True)
    if dry:
        return EXIT_FINISHED
    write(workdir, definition)
    if retry and (n := worker.cells.forget_failures(known)):
        print(f"{n} cells that failed are tried again")
    display = Display()
    with StopSignal() as stop:
        code = worker.work(display, stop)
    display.close()
    if stop.requested:
        print(f"stopped by {stop.requested}, saved; the same command goes on")
    else:
        track(workdir, definition, write_report(workdir))
        print(f"left in {workdir}: report.html report.md report/ results.json cells/")
    return code


def plan_text(worker: Any, known: list[Any]) -> str:
    """Returns the lines that say what is to be trained and how long it takes here."""
    campaign, search = worker.campaign, worker.campaign.search
    n_variants, n_seeds = len(campaign.variants), len(campaign.seeds)
    firsts = {cell.variant: worker.config(cell) for cell in known}
    rates = f"{search.n} rates x {len(search.seeds)} seed(s)" if search else "no search"
    n_cells = n_variants * (n_seeds + (search.n * len(search.seeds) if search else 0))
    more = ", and 2 rates more wherever the best one is an edge" if search else ""
    lines = {
        "variants": "; ".join(describe(variant) for variant in campaign.variants),
        "compared": f"with {describe(campaign.baseline)}",
        "cells": f"{n_variants} variants x ({rates} + {n_seeds} fresh seeds) = {n_cells}{more}",
        "budget": _range("updates", [c.train.steps for c in firsts.values()])
        + " = "
        + _range("tokens", [_tokens(c) for c in firsts.values()])
        + " each",
        "together": _range("cells", [worker.width(c) for c in firsts.values()]) + " at a time",
        "expected": _expected(worker, firsts, n_cells // n_variants),
    }
    done = sum(worker.cells.outcome(cell.name) is not None for cell in known)
    if done:
        lines["so far"] = f"{done} of {len(known)} cells known are done"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _tokens(config: ConfigDict) -> int:
    return config.train.steps * config.train.batch_size * config.data.seq_len


def _range(unit: str, values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"


def _expected(worker: Any, firsts: dict[int, ConfigDict], cells: int) -> str:
    """Returns the time of all cells by a short trial of one variant, others by their FLOPs."""
    from gpt2_jax.ablate.population import Lanes
    from gpt2_jax.model.structure import structure
    from gpt2_jax.train.program import compile_program

    i = next((i for i, c in firsts.items() if worker.width(c) > 1), 0)
    tried = firsts[i]
    width, started = worker.width(tried), time.monotonic()
    if width > 1:
        lanes: Lanes = worker.lanes(tried)
        seconds = lanes.trial_seconds() / width
    else:
        import numpy as np

        shape = (tried.train.batch_size, tried.data.seq_len + 1)
        seconds = compile_program(tried).trial_seconds(np.zeros(shape, np.int32))
    compiling = time.monotonic() - started
    flops = lambda c: structure(c.model).flops_per_token(c.data.seq_len) * _tokens(c)
    per_flop = seconds * tried.train.steps / flops(tried)
    training = sum(cells * flops(c) * per_flop for c in firsts.values())
    whole = timedelta(seconds=round(training + compiling * len(firsts)))
    return (
        f"about {whole} on this machine alone ({seconds * 1e3:.1f} ms an update of "
        f"{describe(worker.campaign.variants[i])} by a short trial, the others by their FLOPs; "
        "evaluations not counted)"
    )


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
