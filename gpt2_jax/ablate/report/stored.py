"""Verdicts from a results.json alone, that of another version included, without its runs.

They are conditional on the learning rates that the study chose. What its search does not support by
the present rules is listed next to each.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gpt2_jax.ablate.campaign.cells import Outcome
from gpt2_jax.ablate.campaign.design import RATE, SEED, Campaign, count
from gpt2_jax.ablate.campaign.search import Search, score
from gpt2_jax.ablate.campaign.stored import read_stored
from gpt2_jax.ablate.report.markup import NONE, escaped, signed, table
from gpt2_jax.ablate.statistics import (
    LEVEL,
    Arm,
    Comparison,
    compare,
    median_interval,
    seeds_to_reject,
)
from gpt2_jax.errors import Damaged, UserError

Cell = dict[str, Any]
ENDED = ("finished", "diverged")  # statuses of runs that have a result


def verdicts(path: Path) -> list[str]:
    """Returns the verdicts of a results.json as Markdown.

    Raises:
      UserError: if it is not such a file, or of a version that is not known.
    """
    stored = _read(path)
    try:
        return _verdicts(stored)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {error})") from None


def _verdicts(stored: dict[str, Any]) -> list[str]:
    variants = stored["variants"]
    smallest = stored.get("smallest_difference", Campaign.smallest_difference)  # format 1 has none
    arms = [_arm(stored, i) for i in range(len(variants))]
    names = [variant["name"] for variant in variants]
    others = {v["name"]: names.index(v["baseline"]) for v in variants if v["name"] != v["baseline"]}
    seeds = [_seeds(stored, i) for i in range(len(variants))]
    guesses = [_guesses(stored, i) for i in range(len(variants))]
    pairs, why = {}, {}  # what can be compared, and why another cannot
    for name, base in others.items():
        own = names.index(name)
        if len(guesses[own] | guesses[base]) > 1:
            why[name] = "scored on other text or tokens"
        elif seeds[own] and seeds[own] == seeds[base]:
            pairs[name] = (arms[own], arms[base])
        else:
            why[name] = "not complete"
    found = compare(pairs, smallest, len(others))
    rows = [
        (escaped(v["name"]), *_row(v, arm, found.get(v["name"]), why.get(v["name"], "baseline")))
        for v, arm in zip(variants, arms, strict=True)
    ]
    return [
        "Medians over seeds of the losses, and of paired differences from the baseline, with exact "
        f"{LEVEL:.0%} intervals; p of the sign test, corrected for "
        f"{count(len(others), 'comparison')}, in which it takes {seeds_to_reject(len(others))} "
        f"seeds to show any difference. Differences of at most {smallest:g} nats do not matter.",
        "",
        *table(("variant", "rate", "seeds", "broken", "loss", "difference", "p", "verdict"), rows),
        "What the search does not support by the present rules:",
        "",
        *(_unsupported(stored, i) for i in range(len(variants))),
    ]


def _read(path: Path) -> dict[str, Any]:
    stored = read_stored(path)
    if not {"variants", "cells"} <= stored.keys():
        raise UserError(f"--results={path} is not a campaign's results.json")
    return stored


def _loss(cell: Cell) -> float:
    start, guess = cell["start_loss"], cell.get("guess_loss")
    return Outcome(cell["status"], cell["step"], cell["loss"], start, guess).score


def _cells(stored: dict[str, Any], variant: int, purpose: str) -> list[Cell]:
    """Returns a variant's runs that came to an end, in order of their seeds as they were given."""
    return [
        cell
        for cell in stored["cells"]
        if cell["variant"] == variant and cell["purpose"] == purpose and cell["status"] in ENDED
    ]


def _arm(stored: dict[str, Any], variant: int) -> Arm:
    """Returns a variant's losses at its chosen rate, and at the others with the verdict's seeds."""
    by_rate: dict[float | None, list[float]] = {}
    for cell in sorted(_cells(stored, variant, "verdict"), key=lambda c: c["values"][SEED]):
        by_rate.setdefault(cell["values"].get(RATE), []).append(_loss(cell))
    rate = stored["variants"][variant]["rate"]
    own = by_rate.pop(rate if rate in by_rate else next(iter(by_rate), None), [])
    return Arm(own, tuple(by_rate.values()))


def _seeds(stored: dict[str, Any], variant: int) -> list[int]:
    """Returns the verdict's seeds, in order; none where a run is missing or failed at any rate."""
    by_rate: dict[float | None, list[int]] = {}
    for cell in stored["cells"]:
        if cell["variant"] == variant and cell["purpose"] == "verdict":
            if cell["status"] not in ENDED:
                return []
            by_rate.setdefault(cell["values"].get(RATE), []).append(cell["values"][SEED])
    found = [sorted(seeds) for seeds in by_rate.values()]
    return found[0] if found and all(seeds == found[0] for seeds in found) else []


def _guesses(stored: dict[str, Any], variant: int) -> set[float]:
    """Returns the losses of guessing on a variant's validation texts; one, if they are one."""
    cells = [*_cells(stored, variant, "verdict"), *_cells(stored, variant, "search")]
    known = (cell.get("guess_loss") for cell in cells)
    return {loss for loss in known if loss is not None}


def _row(
    variant: dict[str, Any], arm: Arm, compared: Comparison | None, otherwise: str
) -> tuple[str, ...]:
    """Returns a row of the table, after its name.

    Args:
      otherwise: what to show where there is no comparison.
    """
    rate = NONE if variant["rate"] is None else f"{variant['rate']:.4g}"
    if not arm.losses:
        return (rate, "0", *[NONE] * 5)
    middle = median_interval(arm.losses).estimate
    own = (rate, str(len(arm.losses)), str(sum(map(math.isinf, arm.losses))), f"{middle:.4f}")
    if compared is None:
        return (*own, NONE, NONE, otherwise)
    return (
        *own,
        signed(compared.difference),
        f"{compared.corrected:.3g}",
        f"**{compared.verdict}**",
    )


def _unsupported(stored: dict[str, Any], variant: int) -> str:
    """Returns a line about what the search of one variant would still do, or could not rule out."""
    tried = _cells(stored, variant, "search")
    named = escaped(stored["variants"][variant]["name"])
    if not stored["variants"][variant]["settled"]:
        return f"- {named}: its search is not finished."
    if not tried:
        return f"- {named}: no learning rate was searched for."
    rates = sorted({cell["values"][RATE] for cell in tried})
    seeds = tuple(dict.fromkeys(cell["values"][SEED] for cell in tried))
    losses = {
        k: [_loss(cell) for cell in tried if cell["values"][RATE] == rate]
        for k, rate in enumerate(rates)
    }
    search = Search(rates[0], n=len(rates), ratio=rates[1] / rates[0], seeds=seeds)
    said = [f"{len(seeds)} search seed" + "s" * (len(seeds) != 1)]
    if more := sorted({k for k, _ in search.next(losses) if k not in losses}):
        said.append(f"losses still fall: {', '.join(f'{search.rate(k):.3g}' for k in more)} next")
    checked = {cell["values"].get(RATE) for cell in _cells(stored, variant, "verdict")}
    left = [k for k in search.in_contention(losses) if rates[k] not in checked]
    if left:
        shown = ", ".join(f"{rates[k]:.3g} ({score(losses[k]):.4f})" for k in left)
        said.append(f"not ruled out, and without fresh seeds: {shown}")
    return f"- {named}: {'; '.join(said)}."
