"""The data of a report: runs, variants, and the study as a whole."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.ablation.statistics import Arm, Comparison
from gpt2_jax.ablation.study.design import LEARNING_RATE, Study
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.plan import SearchState
from gpt2_jax.ablation.study.trials import Trial
from gpt2_jax.errors import counted
from gpt2_jax.intervals import Interval
from gpt2_jax.track.metrics import Row


@dataclass(frozen=True)
class Run:
    """A trial that has ended, with the content of its directory."""

    trial: Trial
    outcome: Outcome
    path: Path
    rows: list[Row]
    info: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its last step."""
        return self.outcome.status == "finished"

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What run.json records about each start."""
        return self.info.get("starts", [])

    @property
    def curve(self) -> dict[int, float]:
        """Validation losses by step."""
        scored = [row for row in self.rows if row.get("val/loss") is not None]
        return {row["step"]: row["val/loss"] for row in scored}


@dataclass(frozen=True)
class Variant:
    """The results of one variant.

    Attributes:
      search, search_runs: the search for its learning rate.
      runs: the verdict's runs at the learning rate that the variant is judged at.
      n_missing: number of verdict runs that have not ended.
      alternatives: the verdict's runs at each other learning rate in contention.
      median: median of the final losses; None if a seed is missing or failed.
      comparable: whether it is scored on the same text and tokens as its baseline.
      comparison: comparison with its baseline; None for a baseline, or if a run is missing or
        failed.
      seeds_needed: range of the number of seeds that would settle an open verdict; None if unknown.
    """

    name: str
    values: dict[str, Any]
    baseline: str
    learning_rate: float | None
    search: SearchState
    search_runs: list[Run]
    runs: list[Run]
    n_missing: int
    alternatives: tuple[list[Run], ...] = ()
    median: Interval | None = None
    comparable: bool = True
    comparison: Comparison | None = None
    seeds_needed: tuple[int, int] | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether other variants are compared with it."""
        return self.name == self.baseline

    @property
    def verdict_runs(self) -> list[Run]:
        """The verdict's runs at every learning rate in contention."""
        return [*self.runs, *(run for runs in self.alternatives for run in runs)]

    @property
    def all_runs(self) -> list[Run]:
        """All runs of the verdict and of the search."""
        return [*self.verdict_runs, *self.search_runs]

    @property
    def losses(self) -> dict[int, float]:
        """Final losses of the verdict's finished runs, by seed."""
        known = {run.trial.seed: run.outcome.loss for run in self.runs if run.is_finished}
        return {seed: loss for seed, loss in known.items() if loss is not None}

    @property
    def arm(self) -> Arm:
        """The losses to compare, ordered by seed; infinite for broken seeds."""
        in_order = lambda runs: [
            run.outcome.score for run in sorted(runs, key=lambda run: run.trial.seed)
        ]
        return Arm(in_order(self.runs), [in_order(runs) for runs in self.alternatives])

    @property
    def n_broken(self) -> int:
        """The number of verdict seeds that broke."""
        return sum(run.outcome.is_broken for run in self.runs)

    @property
    def n_failed(self) -> int:
        """The number of verdict runs that failed for reasons other than divergence."""
        return sum(run.outcome.status == "failed" for run in self.verdict_runs)

    @property
    def is_complete(self) -> bool:
        """Whether every run of the verdict has finished or diverged."""
        return bool(self.runs) and not self.n_missing and not self.n_failed

    @property
    def verdict(self) -> str:
        """The verdict, or why there is none."""
        if self.n_failed:
            return f"{counted(self.n_failed, 'run')} failed"
        if self.is_baseline:
            return "baseline"
        if self.comparison is not None:
            return self.comparison.verdict
        if not self.comparable:
            return "scored on different text or tokens"
        missing = f"{counted(self.n_missing, 'run')} missing"
        return missing if self.n_missing else "baseline not complete"

    @property
    def info(self) -> dict[str, Any]:
        """The run.json of any of its runs."""
        infos = (run.info for run in (*self.runs, *self.search_runs))
        return next((info for info in infos if "parameters" in info), {})

    @property
    def tokens(self) -> int | None:
        """Training tokens of each run; None if unknown."""
        flops, per_token = self.info.get("flops"), self.info.get("flops_per_token")
        return round(flops / per_token) if flops and per_token else None

    @property
    def loss(self) -> float | None:
        """The median of the final losses; None if it is unknown."""
        return self.median.estimate if self.median else None

    @property
    def unigram_losses(self) -> set[float]:
        """Unigram entropies of its runs' validation texts; a single one if they share the text."""
        known = (run.outcome.unigram_loss for run in (*self.runs, *self.search_runs))
        return {loss for loss in known if loss is not None}

    @property
    def tokens_per_sec(self) -> float | None:
        """The median speed of its runs."""
        speeds = [
            row["perf/tokens_per_sec"]
            for run in (*self.runs, *self.search_runs)
            for row in run.rows
            if "perf/tokens_per_sec" in row
        ]
        return statistics.median(speeds) if speeds else None

    @property
    def max_learning_rate(self) -> float | None:
        """The largest learning rate that trains; None if none does.

        A learning rate trains if each search run at it ends below the unigram entropy by at least
        half as much as the best run.
        """
        scored = [r for r in self.search_runs if r.trial.k in self.search.scores]
        known = [r for r in scored if r.outcome.unigram_loss is not None]
        gains = [
            (learning_rate_of(r.trial), (r.outcome.unigram_loss or 0.0) - r.outcome.score)
            for r in known
        ]
        most = max((gain for _, gain in gains), default=0.0)
        if most <= 0:
            return None
        bad = {lr for lr, gain in gains if gain < most / 2}
        return max((lr for lr, _ in gains if lr not in bad), default=None)

    def by_depth(self, name: str, last: bool) -> np.ndarray | None:
        """Returns a diagnostic by block (L), at the start or at the end, averaged over seeds."""
        found = [_blocks(run.rows, name, last) for run in self.runs if run.is_finished]
        known = [values for values in found if values is not None]
        return np.mean(known, 0) if known else None


@dataclass(frozen=True)
class Analysis:
    """The results of a study so far.

    Attributes:
      n_trials: number of trials known so far.
      n_done: number of these that have ended.
      n_dropped: number of trials in the directory that the study no longer has.
      learning_rates: learning rates that all variants were tried at.
      sensitivities: sensitivity by variant, over `learning_rates`.
      warnings: the limitations that the report states.
    """

    study: Study
    variants: list[Variant]
    n_trials: int
    n_done: int
    complete: bool
    n_dropped: int = 0
    learning_rates: list[float] = field(default_factory=list)
    sensitivities: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def n_failed(self) -> int:
        """The number of trials that failed for reasons other than divergence."""
        runs = [run for variant in self.variants for run in variant.all_runs]
        return sum(run.outcome.status == "failed" for run in runs)

    def variant(self, name: str) -> Variant:
        """Returns the variant with that name."""
        return next(variant for variant in self.variants if variant.name == name)


def learning_rate_of(trial: Trial) -> float:
    """Returns the learning rate of a search trial."""
    return trial.values[LEARNING_RATE]


def _blocks(rows: list[Row], name: str, last: bool) -> np.ndarray | None:
    """Returns a figure by block, (L), at the start or the end; of two towers, the decoder's."""
    starts = f"depth/{name}/block_", f"depth/decoder/{name}/block_"
    names = sorted({key for row in rows for key in row if key.startswith(starts)})
    if not names:
        return None
    measured = [row for row in rows if names[0] in row]
    row = measured[-1 if last else 0]
    if (row["step"] > 0) != last or any(row[n] is None for n in names):
        return None
    return np.array([row[n] for n in names])
