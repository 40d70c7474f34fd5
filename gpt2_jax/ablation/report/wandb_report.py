"""Logs the report's table and figures as a separate wandb run in the study's group."""

from __future__ import annotations

import re
import secrets
import shlex
from contextlib import suppress
from pathlib import Path

from gpt2_jax.ablation.report.variant import Analysis, Variant
from gpt2_jax.ablation.study.definition import Definition
from gpt2_jax.ablation.study.store import TRIALS
from gpt2_jax.ablation.study.trials import wandb_group
from gpt2_jax.config import words
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, read_file, write_atomic
from gpt2_jax.track.wandb_log import WandbLog, WandbOptions, sync_command

COLUMNS = (
    *("variant", "learning_rate", "loss", "low", "high", "broken", "difference"),
    *("difference_low", "difference_high", "p", "verdict", "broken_verdict", "parameters", "flops"),
    *("tokens_per_sec", "sensitivity"),
)


def log_report(workdir: Path, definition: Definition, analysis: Analysis) -> str | None:
    """Logs the report to wandb; failures are reported, not raised.

    Returns:
      What went wrong, if anything.
    """
    wandb = definition.base.track.wandb
    options = WandbOptions(
        run_id=_run_id(workdir),
        workdir=workdir,
        mode=wandb.mode,
        project=wandb.project,
        entity=wandb.entity,
        name="report",
        group=wandb_group(wandb, workdir),
        tags=words(wandb.tags),
        job_type="report",
    )
    log = WandbLog(options, {"study": definition.file}, [], lambda line: None)
    table = (COLUMNS, [_row(variant, analysis) for variant in analysis.variants])
    pictures = {path.stem: path for path in sorted((workdir / "report").glob("*.png"))}
    log.report({"verdict": table}, pictures)
    log.close(0)
    return log.problem


def offline_hint(workdir: Path) -> str | None:
    """Returns how to upload the study's offline wandb runs, None if there are none."""
    folders = (workdir, *workdir.glob(f"{TRIALS}/*"))
    if not any(True for folder in folders for _ in folder.glob("wandb/offline-run-*")):
        return None
    folder = shlex.quote(str(workdir))
    parts = f"{folder}/wandb/offline-run-* {folder}/{TRIALS}/*/wandb/offline-run-*"
    return f"wandb: offline; to upload: {sync_command(parts)}"


def _row(variant: Variant, analysis: Analysis) -> list[float | str | None]:
    median = variant.median or (None, None, None)
    compared = variant.comparison
    difference = compared.difference if compared else (None, None, None)
    return [
        variant.name,
        variant.learning_rate,
        *median,
        variant.n_broken,
        *difference,
        compared.adjusted_p if compared else None,
        variant.verdict,
        compared.broken_verdict if compared else None,
        variant.info.get("parameters"),
        variant.info.get("flops"),
        variant.tokens_per_sec,
        analysis.sensitivities.get(variant.name),
    ]


def _run_id(workdir: Path) -> str:
    """Returns the report's wandb id, which stays the same when the report is written again."""
    path = workdir / ".wandb_id"
    with suppress(UserError):
        known = read_file(path).decode(errors="replace")
        if re.fullmatch("[0-9a-f]{8}", known):
            return known
    new = secrets.token_hex(4)
    with disk_errors(str(path)):
        write_atomic(path, new)
    return new
