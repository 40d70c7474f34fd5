"""results.json: what a campaign found, without times, so that it repeats to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.cells import Cell, Cells, Outcome, Plan, all_cells
from gpt2_jax.ablate.campaign.design import count, describe
from gpt2_jax.ablate.campaign.stored import VERSION, read_stored
from gpt2_jax.errors import Damaged
from gpt2_jax.files import disk_errors, sha256, to_json, write_json
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.rundir import RunDirectory

RESULTS = "results.json"
CORPUS_FIELDS = ("source", "val_source", "val_fraction", "tokenizer")


def collect(plan: Plan, cells: Cells) -> dict[str, Any]:
    """Returns what is known so far, as results.json holds it."""
    known, outcomes = all_cells(plan, cells)
    campaign, variants = plan.campaign, list[dict[str, Any]]()
    own = campaign.names or [None] * len(campaign.variants)
    name_of = lambda values: own[campaign.variants.index(values)] or describe(values)
    for i, values in enumerate(campaign.variants):
        searched = plan.searched(i, outcomes)
        variants.append(
            {
                "name": name_of(values),
                "values": values,
                "baseline": name_of(campaign.baseline_of(values)),
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
    is_in = all(cell.name in outcomes and outcomes[cell.name].is_final for cell in known)
    return {
        "format_version": VERSION,
        "complete": is_in and all(v["settled"] for v in variants),
        "smallest_difference": campaign.smallest_difference,
        "corpora": corpora(cells.path(cell.name) for cell in known),
        "variants": variants,
        "cells": listed,
    }


def corpora(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns the texts that runs were trained on: hash of the tokens, and where they are from."""
    found: dict[str, dict[str, Any]] = {}
    for path in runs:
        directory = RunDirectory(str(path))
        digest = directory.read_info().get("corpus")
        if isinstance(digest, str) and digest not in found and directory.config_path.exists():
            data = configs.from_json(directory.config_path).data
            found[digest] = {"sha256": digest, **{name: data[name] for name in CORPUS_FIELDS}}
    return list(found.values())


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
    path = cells.path(cell.name) / "metrics.jsonl"
    rows = read_rows(path) if outcome.status == "failed" else cells.rows(cell.name)
    found["curve"] = [[row["step"], row["val/loss"]] for row in rows if "val/loss" in row]
    return found


def write_results(workdir: Path, plan: Plan, cells: Cells) -> str | None:
    """Writes results.json if it is to change, and never a poorer one than is there.

    A damaged one, or one with other losses, is kept next to it under another name.

    Returns:
      What the one that is there holds and the directory no longer does, if anything.
    """
    path, found = workdir / RESULTS, json.loads(to_json(collect(plan, cells)))
    with disk_errors(RESULTS):
        if path.exists():
            try:
                old = read_stored(path)
                if old == found:
                    return None
                if lost := _lost(old, found):
                    return (
                        f"{path} is kept as it is: it holds {count(len(lost), 'cell')} that "
                        f"{workdir} has no outcome of any more, such as {lost[0]}"
                    )
                is_kept = _changed(old, found)
            except (Damaged, KeyError, TypeError, AttributeError):
                is_kept = True
            if is_kept:
                path.rename(path.with_name(f"results.old-{sha256(path)[:8]}.json"))
        write_json(path, found)
    return None


def _final(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in results["cells"] if c["status"] in ("finished", "diverged")}


def _lost(old: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Returns the cells of both whose outcome, or a part of its curve, the old results alone have.

    Those that the campaign's file has dropped are not among them.
    """
    known = {cell["name"] for cell in found["cells"]}
    new = _final(found)
    return [
        name
        for name, cell in _final(old).items()
        if name in known and (name not in new or len(new[name]["curve"]) < len(cell["curve"]))
    ]


def _changed(old: dict[str, Any], found: dict[str, Any]) -> bool:
    """Returns whether any cell of both has another loss or curve."""
    new, figures = _final(found), ("status", "step", "loss", "start_loss", "guess_loss", "curve")
    return any(
        cell.get(figure) != new[name][figure]
        for name, cell in _final(old).items()
        if name in new
        for figure in figures
    )
