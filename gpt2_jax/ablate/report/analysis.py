"""A campaign's cells turned into what its report says of each variant."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpt2_jax.ablate.campaign.cells import Cell, Cells, Outcome, Plan, all_cells
from gpt2_jax.ablate.campaign.design import RATE, Campaign
from gpt2_jax.ablate.campaign.labels import labels
from gpt2_jax.ablate.report.caveats import caveats
from gpt2_jax.ablate.report.variant import Analysis, Run, Variant
from gpt2_jax.ablate.statistics import compare, median_interval, seeds_for, sensitivity
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.rundir import RunDirectory


def analyse(plan: Plan, cells: Cells) -> Analysis:
    """Returns what a campaign's directory tells, whole or not."""
    known, outcomes = all_cells(plan, cells)
    runs = {c.name: _run(c, outcomes[c.name], cells) for c in known if _is_in(c, outcomes)}
    every = range(len(plan.campaign.variants))
    variants = _compared(plan.campaign, [_variant(plan, i, known, outcomes, runs) for i in every])
    rates, sensitivities = _sensitivities(plan, variants)
    whole = len(runs) == len(known) and all(v.searched.settled for v in variants)
    found = Analysis(
        plan.campaign,
        variants,
        len(known),
        len(runs),
        whole,
        cells.others(known),
        rates,
        sensitivities,
    )
    found.warnings.extend(caveats(found))
    return found


def _is_in(cell: Cell, outcomes: dict[str, Outcome]) -> bool:
    return cell.name in outcomes and outcomes[cell.name].is_final


def _run(cell: Cell, outcome: Outcome, cells: Cells) -> Run:
    directory = RunDirectory(str(cells.path(cell.name)))
    rows = read_rows(directory.metrics_path)
    return Run(cell, outcome, directory.path, rows, directory.read_info())


def _variant(
    plan: Plan, i: int, known: Sequence[Cell], outcomes: dict[str, Outcome], runs: dict[str, Run]
) -> Variant:
    searched = plan.searched(i, outcomes)
    mine = [cell for cell in known if cell.variant == i]
    done = [runs[cell.name] for cell in mine if cell.name in runs]
    values, search = plan.campaign.variants[i], plan.campaign.search
    names = labels(plan.campaign)
    best = search.rate(searched.best) if search and searched.best is not None else None
    verdict = [run for run in done if run.cell.purpose == "verdict"]
    return Variant(
        name=names[i],
        values=values,
        baseline=names[plan.campaign.variants.index(plan.campaign.baseline_of(values))],
        rate=values.get(RATE) if best is None else best,
        searched=searched,
        search_runs=[run for run in done if run.cell.purpose == "search"],
        runs=[run for run in verdict if run.cell.k == searched.best],
        missing=len(plan.campaign.seeds) * max(1, len(searched.contenders)) - len(verdict),
        rivals=tuple([run for run in verdict if run.cell.k == k] for k in searched.contenders[1:]),
    )


def _compared(campaign: Campaign, variants: list[Variant]) -> list[Variant]:
    """Returns the variants with their intervals, and comparisons where both sides are whole."""
    by_name = {variant.name: variant for variant in variants}
    variants = [
        replace(v, comparable=len(v.guess_losses | by_name[v.baseline].guess_losses) < 2)
        for v in variants
    ]
    pairs = {}
    for variant in variants:
        other = by_name[variant.baseline]
        whole = variant.is_whole and other.is_whole
        if not variant.is_baseline and variant.comparable and whole:
            pairs[variant.name] = (variant.arm, other.arm)
    smallest = campaign.smallest_difference
    comparisons = compare(pairs, smallest, campaign.comparisons)
    out = []
    for variant in variants:
        changes: dict[str, Any] = {}
        if variant.is_whole:
            changes = {"median": median_interval(variant.arm.losses)}
        if (found := comparisons.get(variant.name)) is not None:
            changes["comparison"] = found
            if found.is_open:
                changes["needed"] = seeds_for(smallest, found.spread, found.n)
        out.append(replace(variant, **changes))
    return out


def _sensitivities(plan: Plan, variants: list[Variant]) -> tuple[list[float], dict[str, float]]:
    """Returns the rates that every variant was tried at, and each one's sensitivity over them.

    It is that of no variant whose best rate is at their end: nothing is known of what lies beyond.
    """
    search = plan.campaign.search
    if search is None or not all(variant.searched.scores for variant in variants):
        return [], {}
    shared = sorted(set.intersection(*(set(variant.searched.scores) for variant in variants)))
    out = {}
    for variant in variants:
        starts = [run.outcome.start_loss for run in variant.search_runs]
        known = [start for start in starts if start is not None]
        best = variant.searched.best
        if known and shared and best is not None and shared[0] < best < shared[-1]:
            start = statistics.mean(known)
            losses = [_loss_at(variant, k, start) for k in shared]
            out[variant.name] = sensitivity(losses, start)
    return [search.rate(k) for k in shared], out


def _loss_at(variant: Variant, k: int, start: float) -> float:
    """Returns the mean loss of the search's runs at a rate, each at most that of the start."""
    losses = [run.outcome.loss for run in variant.search_runs if run.cell.k == k]
    return statistics.mean(start if loss is None else min(loss, start) for loss in losses)
