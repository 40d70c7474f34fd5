"""A campaign's cells turned into what its report says of each variant."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.ablate.campaign.cells import Cell, Cells, Outcome, Plan, Searched, all_cells
from gpt2_jax.ablate.campaign.design import Campaign, describe
from gpt2_jax.ablate.statistics import (
    Comparison,
    Interval,
    bootstrap_interval,
    compare,
    seeds_needed,
    sensitivity,
    t_interval,
)
from gpt2_jax.track.metrics import Row, read_rows
from gpt2_jax.train.rundir import RunDirectory

FEW_SEEDS = 5  # below which a report warns
SAME_PARAMETERS = 5e-3  # share by which models may differ and count as equally large
FIGURES = (
    *("stream_rms", "attn_ratio", "mlp_ratio", "cosine", "grad_norm"),
    *("skip_cost", "entropy", "largest_score"),
)


@dataclass(frozen=True)
class Run:
    """A cell that came to an end, with what its directory holds."""

    cell: Cell
    outcome: Outcome
    path: Path
    rows: list[Row]
    info: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return self.outcome.status == "finished"

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What run.json tells of each time it was started."""
        return self.info.get("starts", [])

    @property
    def curve(self) -> dict[int, float]:
        """Validation losses by step."""
        scored = [row for row in self.rows if row.get("val/loss") is not None]
        return {row["step"]: row["val/loss"] for row in scored}


@dataclass(frozen=True)
class Variant:
    """What is known of one variant.

    Attributes:
      runs: of the verdict, in the order of seeds. searched: of its rate, with `search_runs`.
      mean, bootstrap: of the final losses; None where not every seed came to its end.
      comparable: whether it is scored on the text and by the tokens that its baseline is.
      comparison: with its baseline; None for a baseline, or where a run is missing or diverged.
      needed: seeds that would see such a difference; None where that is not to be said.
    """

    name: str
    values: dict[str, Any]
    baseline: str
    rate: float | None
    searched: Searched
    search_runs: list[Run]
    runs: list[Run]
    missing: int
    mean: Interval | None = None
    bootstrap: Interval | None = None
    comparable: bool = True
    comparison: Comparison | None = None
    needed: int | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.name == self.baseline

    @property
    def losses(self) -> dict[int, float]:
        """Final losses of the verdict's runs that came to their end, by seed."""
        return {run.cell.seed: run.outcome.score for run in self.runs if run.is_finished}

    @property
    def lost(self) -> list[Run]:
        """Runs of the verdict that diverged or failed."""
        return [run for run in self.runs if not run.is_finished]

    @property
    def is_whole(self) -> bool:
        """Whether every seed of the verdict came to its end."""
        return bool(self.runs) and not self.missing and not self.lost

    @property
    def word(self) -> str:
        """The verdict, or why there is none."""
        ends = f"{len(self.lost)} of {len(self.runs)} seeds diverged or failed" if self.lost else ""
        if self.is_baseline:
            return f"baseline: {ends}" if ends else "baseline"
        if self.comparison is not None:
            return self.comparison.verdict
        if not self.comparable:
            return "scored on another text"
        missing = f"{self.missing} runs missing" if self.missing else "baseline not complete"
        return ends or missing

    @property
    def is_at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried."""
        scores, best = self.searched.scores, self.searched.best
        return best is not None and best in (min(scores), max(scores))

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says of any of its runs."""
        infos = (run.info for run in (*self.runs, *self.search_runs))
        return next((info for info in infos if "parameters" in info), {})

    @property
    def guess_losses(self) -> set[float]:
        """What guessing by frequency loses on its runs' validation texts; one, if they are one."""
        known = (run.outcome.guess_loss for run in (*self.runs, *self.search_runs))
        return {loss for loss in known if loss is not None}

    @property
    def tokens_per_sec(self) -> float | None:
        """Median speed of its runs."""
        speeds = [
            row["perf/tokens_per_sec"]
            for run in (*self.runs, *self.search_runs)
            for row in run.rows
            if "perf/tokens_per_sec" in row
        ]
        return statistics.median(speeds) if speeds else None

    @property
    def largest_rate(self) -> float | None:
        """The largest rate that trains; None where none does.

        That is, at which each of the search's runs ends below the nats of guessing by at least half
        as much as the best run does.
        """
        known = [r for r in self.search_runs if r.outcome.guess_loss is not None]
        taken = [(rate_of(r.cell), (r.outcome.guess_loss or 0.0) - r.outcome.score) for r in known]
        most = max((nats for _, nats in taken), default=0.0)
        if most <= 0:
            return None
        bad = {rate for rate, nats in taken if nats < most / 2}
        return max((rate for rate, _ in taken if rate not in bad), default=None)

    def by_depth(self, name: str, last: bool) -> np.ndarray | None:
        """Returns a figure by block (L), before the first update or at the end, mean over seeds."""
        found = [_blocks(run.rows, name, last) for run in self.runs if run.is_finished]
        known = [values for values in found if values is not None]
        return np.mean(known, 0) if known else None


@dataclass(frozen=True)
class Analysis:
    """A campaign so far.

    Attributes:
      sensitivities: by variant, over `rates`, those that all variants were tried at.
      warnings: what is not to be concluded.
    """

    campaign: Campaign
    variants: list[Variant]
    n_cells: int
    n_done: int
    complete: bool
    rates: list[float] = field(default_factory=list)
    sensitivities: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def variant(self, name: str) -> Variant:
        """Returns the variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)


def labels(campaign: Campaign) -> list[str]:
    """Returns the variants' names in a report: no more fields than it takes to tell them apart.

    Where all vary in one field, its value alone.
    """
    fields = list(dict.fromkeys(name for values in campaign.variants for name in values))
    set_by = {name: sum(name in values for values in campaign.variants) for name in fields}
    for name in sorted(fields, key=set_by.__getitem__):
        fewer = [other for other in fields if other != name]
        if fewer and len(set(_described(campaign, fewer))) == len(campaign.variants):
            fields = fewer
    named = _described(campaign, fields)
    short = [name.partition("=")[2] for name in named] if len(fields) == 1 else named
    return [name or "base" for name in short]


def _described(campaign: Campaign, fields: Sequence[str]) -> list[str]:
    known = lambda values: {name: values[name] for name in fields if name in values}
    return [describe(known(values)) for values in campaign.variants]


def rate_of(cell: Cell) -> float:
    """Returns the learning rate of a search's cell."""
    return cell.values["optimizer.peak_lr"]


def _blocks(rows: list[Row], name: str, last: bool) -> np.ndarray | None:
    keys = [key for row in rows for key in row if key.startswith(f"{name}/block_")]
    if not keys:
        return None
    names = sorted(set(keys))
    with_figures = [row for row in rows if names[0] in row]
    row = with_figures[-1 if last else 0]
    if (row["step"] > 0) != last or any(row[n] is None for n in names):
        return None
    return np.array([row[n] for n in names])


def analyse(plan: Plan, cells: Cells) -> Analysis:
    """Returns what a campaign's directory tells, whole or not."""
    known, outcomes = all_cells(plan, cells)
    runs = {c.name: _run(c, outcomes[c.name], cells) for c in known if _is_in(c, outcomes)}
    every = range(len(plan.campaign.variants))
    variants = _compared([_variant(plan, i, known, outcomes, runs) for i in every])
    rates, sensitivities = _sensitivities(plan, variants)
    whole = len(runs) == len(known) and all(v.searched.settled for v in variants)
    found = Analysis(plan.campaign, variants, len(known), len(runs), whole, rates, sensitivities)
    found.warnings.extend(_warnings(found))
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
    verdict = [run for run in done if run.cell.purpose == "verdict"]
    return Variant(
        name=names[i],
        values=values,
        baseline=names[plan.campaign.variants.index(plan.campaign.baseline_of(values))],
        rate=search.rate(searched.best) if search and searched.best is not None else None,
        searched=searched,
        search_runs=[run for run in done if run.cell.purpose == "search"],
        runs=verdict,
        missing=len(plan.campaign.seeds) - len(verdict),
    )


def _compared(variants: list[Variant]) -> list[Variant]:
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
            seeds = sorted(variant.losses)
            pairs[variant.name] = (
                [variant.losses[s] for s in seeds],
                [other.losses[s] for s in seeds],
            )
    comparisons = compare(pairs)
    out = []
    for variant in variants:
        changes: dict[str, Any] = {}
        if variant.is_whole:
            losses = list(variant.losses.values())
            changes = {"mean": t_interval(losses), "bootstrap": bootstrap_interval(losses)}
        if (found := comparisons.get(variant.name)) is not None:
            changes["comparison"] = found
            if found.spread > 0:
                effect = found.difference.mean / found.spread
                changes["needed"] = seeds_needed(effect, len(comparisons))
        out.append(replace(variant, **changes))
    return out


def _sensitivities(plan: Plan, variants: list[Variant]) -> tuple[list[float], dict[str, float]]:
    """Returns the rates that every variant was tried at, and each one's sensitivity over them."""
    search = plan.campaign.search
    if search is None or not all(variant.searched.scores for variant in variants):
        return [], {}
    shared = sorted(set.intersection(*(set(variant.searched.scores) for variant in variants)))
    out = {}
    for variant in variants:
        starts = [run.outcome.start_loss for run in variant.search_runs]
        known = [start for start in starts if start is not None]
        if known and shared:
            losses = [variant.searched.scores[k] for k in shared]
            out[variant.name] = sensitivity(losses, statistics.mean(known))
    return [search.rate(k) for k in shared], out


def _warnings(found: Analysis) -> list[str]:
    """Returns what is not to be concluded, most important first."""
    out = []
    if not found.complete:
        out.append(
            f"The campaign is not finished: {found.n_done} of the {found.n_cells} cells known so "
            "far are in, and more may follow. Nothing here is final."
        )
    if (n := len(found.campaign.seeds)) < FEW_SEEDS:
        seeds = "1 seed is" if n == 1 else f"{n} seeds are"
        out.append(f"{seeds} too few: an interval from so few is wide, and hardly checked.")
    if any("model.placement" in variant.values for variant in found.variants):
        out.append(
            "A placement brings its own norm and initial values along (below, with each variant): "
            "a difference is that of the whole recipe."
        )
    for variant in found.variants:
        out += _of_variant(variant, found)
    return out


def _of_variant(variant: Variant, found: Analysis) -> list[str]:
    out = []
    if failed := [r for r in (*variant.search_runs, *variant.runs) if r.outcome.status == "failed"]:
        out.append(f"{variant.name}: {len(failed)} cells failed ({failed[0].outcome.reason}).")
    if variant.lost:
        out.append(
            f"{variant.name}: {len(variant.lost)} of {len(variant.runs)} fresh seeds did not "
            "come to their end at its rate, so that "
            + (
                "nothing can be compared with it."
                if variant.is_baseline
                else "it is compared with nothing."
            )
        )
    if not variant.comparable:
        out.append(
            f"{variant.name} is scored on another validation text than {variant.baseline}, or by "
            "other tokens: their losses cannot be compared. A data.val_source that all have, and "
            "one tokenizer, would help."
        )
    if variant.is_at_edge:
        out.append(
            f"{variant.name}: its best rate is the edge of those tried; a better one may lie "
            "beyond."
        )
    baseline = found.variant(variant.baseline)
    mine, theirs = variant.info.get("parameters"), baseline.info.get("parameters")
    if mine and theirs and abs(mine / theirs - 1) > SAME_PARAMETERS:
        out.append(
            f"{variant.name} has {mine / theirs - 1:+.1%} parameters beside {baseline.name}: a "
            "difference may be that of size."
        )
    flops, other = variant.info.get("flops"), baseline.info.get("flops")
    if flops and other and abs(flops / other - 1) > 0.01:
        out.append(
            f"{variant.name} takes {flops / other - 1:+.1%} FLOPs in all beside {baseline.name}."
        )
    return out
