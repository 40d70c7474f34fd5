"""results.json: what a campaign found, without times, so that it repeats to the bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2_jax.ablate.campaign.cells import Cell, Cells, Outcome, Plan, all_cells
from gpt2_jax.ablate.campaign.design import describe
from gpt2_jax.files import disk_errors, write_json
from gpt2_jax.track.metrics import read_rows

FORMAT_VERSION = 2  # 1 had none, no contenders and no smallest_difference


def collect(plan: Plan, cells: Cells) -> dict[str, Any]:
    """Returns what is known so far, as results.json holds it."""
    known, outcomes = all_cells(plan, cells)
    variants = []
    for i, values in enumerate(plan.campaign.variants):
        searched = plan.searched(i, outcomes)
        variants.append(
            {
                "name": describe(values),
                "values": values,
                "baseline": describe(plan.campaign.baseline_of(values)),
                "rate": _rate(plan, searched.best),
                "settled": searched.settled,
                "contenders": [_rate(plan, k) for k in searched.contenders],
                "unresolved": list(searched.unresolved),
                "scores": [
                    {"rate": _rate(plan, k), "loss": score if math.isfinite(score) else None}
                    for k, score in sorted(searched.scores.items())
                ],
            }
        )
    listed = [_of_cell(cell, outcomes.get(cell.name), cells) for cell in known]
    missing = [cell.name for cell in known if cell.name not in outcomes]
    settled = all(v["settled"] for v in variants)
    complete = settled and not missing
    return {
        "format_version": FORMAT_VERSION,
        "complete": complete,
        "smallest_difference": plan.campaign.smallest_difference,
        "variants": variants,
        "cells": listed,
    }


def _rate(plan: Plan, k: int | None) -> float | None:
    search = plan.campaign.search
    return None if search is None or k is None else search.rate(k)


def _of_cell(cell: Cell, outcome: Outcome | None, cells: Cells) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": cell.name,
        "variant": cell.variant,
        "purpose": cell.purpose,
        "values": dict(cell.values),
        "status": "missing",
    }
    if outcome is None or not outcome.is_final:
        return found
    found |= {k: v for k, v in asdict(outcome).items() if k != "attempts"}
    rows = read_rows(cells.path(cell.name) / "metrics.jsonl")
    found["curve"] = [[row["step"], row["val/loss"]] for row in rows if "val/loss" in row]
    return found


def write_results(workdir: Path, plan: Plan, cells: Cells) -> None:
    """Writes results.json if it is to change."""
    path, found = workdir / "results.json", collect(plan, cells)
    if not path.exists() or json.loads(path.read_text()) != json.loads(json.dumps(found)):
        with disk_errors("results.json"):
            write_json(path, found)
