"""What a report knows: a campaign's runs, its variants, and all of them together."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.ablate.campaign.cells import Cell, Outcome, Searched
from gpt2_jax.ablate.campaign.design import Campaign, count
from gpt2_jax.ablate.statistics import Arm, Comparison, Interval
from gpt2_jax.track.metrics import Row

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
      runs: of the verdict, at the rate that it is judged at. rivals: at each other rate in
        contention. searched: of its rate, with `search_runs`.
      median: of the final losses; None where a seed is missing or failed.
      comparable: whether it is scored on the text and by the tokens that its baseline is.
      comparison: with its baseline; None for a baseline, or where a run is missing or failed.
      needed: range of seeds that would settle an open verdict; None where it cannot be known.
    """

    name: str
    values: dict[str, Any]
    baseline: str
    rate: float | None
    searched: Searched
    search_runs: list[Run]
    runs: list[Run]
    missing: int
    rivals: tuple[list[Run], ...] = ()
    median: Interval | None = None
    comparable: bool = True
    comparison: Comparison | None = None
    needed: tuple[int, int] | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.name == self.baseline

    @property
    def all_runs(self) -> list[Run]:
        """Its runs at every rate, for the verdict and for the search."""
        return [*self.runs, *(run for rival in self.rivals for run in rival), *self.search_runs]

    @property
    def losses(self) -> dict[int, float]:
        """Final losses of the verdict's runs that came to their end, by seed."""
        known = {run.cell.seed: run.outcome.loss for run in self.runs if run.is_finished}
        return {seed: loss for seed, loss in known.items() if loss is not None}

    @property
    def arm(self) -> Arm:
        """What is compared: losses by seed, infinite for broken seeds."""
        in_order = lambda runs: [
            run.outcome.score for run in sorted(runs, key=lambda run: run.cell.seed)
        ]
        return Arm(in_order(self.runs), [in_order(runs) for runs in self.rivals])

    @property
    def n_broken(self) -> int:
        """Seeds of the verdict that diverged, or ended no better than guessing by frequency."""
        return sum(run.outcome.is_broken for run in self.runs)

    @property
    def n_failed(self) -> int:
        """Runs of the verdict that failed for another reason than that they diverged."""
        runs = (*self.runs, *(run for rival in self.rivals for run in rival))
        return sum(run.outcome.status == "failed" for run in runs)

    @property
    def is_whole(self) -> bool:
        """Whether every run of the verdict came to its end or broke."""
        return bool(self.runs) and not self.missing and not self.n_failed

    @property
    def word(self) -> str:
        """The verdict, or why there is none."""
        if self.n_failed:
            return f"{count(self.n_failed, 'run')} failed"
        if self.is_baseline:
            return "baseline"
        if self.comparison is not None:
            return self.comparison.verdict
        if not self.comparable:
            return "scored on other text or tokens"
        missing = f"{count(self.missing, 'run')} missing"
        return missing if self.missing else "baseline not complete"

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
        whole = [r for r in self.search_runs if r.cell.k in self.searched.scores]
        known = [r for r in whole if r.outcome.guess_loss is not None]
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
      n_dropped: cells in its directory that it no longer has.
      sensitivities: by variant, over `rates`, those that all variants were tried at.
      warnings: what is not to be concluded.
    """

    campaign: Campaign
    variants: list[Variant]
    n_cells: int
    n_done: int
    complete: bool
    n_dropped: int = 0
    rates: list[float] = field(default_factory=list)
    sensitivities: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def n_failed(self) -> int:
        """Cells that failed for another reason than that they diverged."""
        runs = [run for variant in self.variants for run in variant.all_runs]
        return sum(run.outcome.status == "failed" for run in runs)

    def variant(self, name: str) -> Variant:
        """Returns the variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)


def rate_of(cell: Cell) -> float:
    """Returns the learning rate of a search's cell."""
    return cell.values["optimizer.peak_lr"]


def _blocks(rows: list[Row], name: str, last: bool) -> np.ndarray | None:
    # Rows of earlier versions have no `depth/` before these.
    is_of = lambda key: key.removeprefix("depth/").startswith(f"{name}/block_")
    names = sorted({key for row in rows for key in row if is_of(key)})
    if not names:
        return None
    with_figures = [row for row in rows if names[0] in row]
    row = with_figures[-1 if last else 0]
    if (row["step"] > 0) != last or any(row[n] is None for n in names):
        return None
    return np.array([row[n] for n in names])
