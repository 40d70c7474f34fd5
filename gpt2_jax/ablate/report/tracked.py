"""A report's table and figures on a wandb run of their own, in the campaign's group."""

from __future__ import annotations

import re
import secrets
import shlex
from contextlib import suppress
from pathlib import Path

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.definition import Definition
from gpt2_jax.ablate.report.variant import Analysis, Variant
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, read_file, write_atomic
from gpt2_jax.track.wandb_log import WandbLog, WandbOptions, sync_command

COLUMNS = (
    *("variant", "rate", "loss", "low", "high", "broken", "difference", "difference_low"),
    *("difference_high", "p", "verdict", "broken_verdict", "parameters", "flops"),
    *("tokens_per_sec", "sensitivity"),
)


def group(base: ConfigDict, workdir: Path) -> str:
    """Returns the wandb group of a campaign's cells and of its report."""
    return base.track.wandb.group or workdir.absolute().name


def track(workdir: Path, definition: Definition, found: Analysis) -> str | None:
    """Logs the report to wandb; without wandb, or a network, nothing is lost but that.

    Returns:
      What went wrong, if anything.
    """
    given = definition.base.track.wandb
    options = WandbOptions(
        run_id=_run_id(workdir),
        workdir=workdir,
        mode=given.mode,
        project=given.project,
        entity=given.entity,
        name="report",
        group=group(definition.base, workdir),
        tags=configs.words(given.tags),
        job_type="report",
    )
    log = WandbLog(options, {"campaign": definition.file}, [], lambda line: None)
    table = (COLUMNS, [_row(variant, found) for variant in found.variants])
    pictures = {path.stem: path for path in sorted((workdir / "report").glob("*.png"))}
    log.report({"verdict": table}, pictures)
    log.close(0)
    return log.problem


def offline_hint(workdir: Path) -> str | None:
    """Returns how to upload what wandb kept here, None where there is nothing."""
    places = (workdir, *workdir.glob("cells/*"))
    if not any(True for place in places for _ in place.glob("wandb/offline-run-*")):
        return None
    folder = shlex.quote(str(workdir))
    parts = f"{folder}/wandb/offline-run-* {folder}/cells/*/wandb/offline-run-*"
    return f"wandb: offline; to upload: {sync_command(parts)}"


def _row(variant: Variant, found: Analysis) -> list[float | str | None]:
    median = variant.median or (None, None, None)
    compared = variant.comparison
    difference = compared.difference if compared else (None, None, None)
    return [
        variant.name,
        variant.rate,
        *median,
        variant.n_broken,
        *difference,
        compared.corrected if compared else None,
        variant.word,
        compared.broken_verdict if compared else None,
        variant.info.get("parameters"),
        variant.info.get("flops"),
        variant.tokens_per_sec,
        found.sensitivities.get(variant.name),
    ]


def _run_id(workdir: Path) -> str:
    """Returns the report's wandb id, the same for each of its versions."""
    path = workdir / ".wandb_id"
    with suppress(UserError):
        known = read_file(path).decode(errors="replace")
        if re.fullmatch("[0-9a-f]{8}", known):
            return known
    new = secrets.token_hex(4)
    with disk_errors(str(path)):
        write_atomic(path, new)
    return new
