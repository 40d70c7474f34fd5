"""Determines the trials of a study, given the outcomes so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from gpt2_jax.ablation.study.design import LEARNING_RATE, SEED, Study
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.search import score
from gpt2_jax.ablation.study.store import TrialStore
from gpt2_jax.ablation.study.trials import Purpose, Trial, trial_name
from gpt2_jax.errors import UserError

Outcomes = Mapping[str, Outcome]


class SearchState(NamedTuple):
    """The state of the search for one variant's learning rate.

    Attributes:
      trials: trials requested so far.
      scores: scores by index of the learning rate, for those whose trials are all done; lower is
        better.
      settled: whether the search has ended.
      contenders: indices of the learning rates at which a verdict must hold, once settled.
      unresolved: sentences on what the search left open.
    """

    trials: list[Trial]
    scores: dict[int, float]
    settled: bool
    contenders: tuple[int, ...] = ()
    unresolved: tuple[str, ...] = ()

    @property
    def best(self) -> int | None:
        """Index of the learning rate that the variant is judged at; None if not known yet."""
        return self.contenders[0] if self.contenders else None


class Plan:
    """The trials of a study; a function of only the study and the outcomes."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def trials(self, outcomes: Outcomes) -> list[Trial]:
        """Returns all trials known so far, variant by variant, searches before verdicts."""
        out = []
        for i in range(len(self.study.variants)):
            state = self.search_state(i, outcomes)
            out += state.trials
            if state.settled:
                for k in state.contenders or (None,):
                    out += self.verdict_trials(i, k)
        names = Counter(trial.name for trial in out)
        if twice := sorted(name for name, n in names.items() if n > 1):
            raise UserError(f"two trials of the study have the name {twice[0]}")
        return out

    def search_state(self, variant: int, outcomes: Outcomes) -> SearchState:
        """Returns the state of a variant's search, which waits for all trials it has requested."""
        search, trials, losses = self.study.search, list[Trial](), dict[int, list[float]]()
        if search is None:
            return SearchState([], {}, True)
        scores: dict[int, float] = {}
        while requested := search.next(losses):
            new = [
                self._trial(variant, "search", search.learning_rate(k), k, search.seeds[i])
                for k, i in requested
            ]
            trials += new
            if not all(is_done(trial, outcomes) for trial in new):
                return SearchState(trials, scores, False)
            for trial, (k, _) in zip(new, requested, strict=True):
                losses.setdefault(k, []).append(outcomes[trial.name].score)
            scores = {k: score(values) for k, values in losses.items()}
        contenders, unresolved = search.in_contention(losses), search.unresolved(losses)
        return SearchState(trials, scores, True, tuple(contenders), tuple(unresolved))

    def verdict_trials(self, variant: int, k: int | None) -> list[Trial]:
        """Returns a variant's trials with the verdict's seeds, at learning rate k of its search."""
        search = self.study.search
        lr = None if search is None or k is None else search.learning_rate(k)
        return [self._trial(variant, "verdict", lr, k, seed) for seed in self.study.seeds]

    def _trial(
        self, variant: int, purpose: Purpose, lr: float | None, k: int | None, seed: int
    ) -> Trial:
        values = dict(self.study.variants[variant])
        if lr is not None:
            values[LEARNING_RATE] = lr
        values[SEED] = seed
        return Trial(trial_name(values), variant, values, purpose, k)


def is_done(trial: Trial, outcomes: Outcomes) -> bool:
    """Returns whether a trial has ended and will not be retried."""
    return trial.name in outcomes and outcomes[trial.name].is_final


def known_trials(plan: Plan, store: TrialStore) -> tuple[list[Trial], dict[str, Outcome]]:
    """Returns the trials known so far, and the outcomes of those that have ended."""
    outcomes: dict[str, Outcome] = {}
    while True:
        known = plan.trials(outcomes)
        found = store.outcomes(known)
        if found == outcomes:
            return known, outcomes
        outcomes = found
