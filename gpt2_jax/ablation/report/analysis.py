"""Derives the statements of a study's report from its trials."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpt2_jax.ablation.report.caveats import caveats
from gpt2_jax.ablation.report.variant import Analysis, Run, Variant
from gpt2_jax.ablation.statistics import compare, median_interval, seeds_for, sensitivity
from gpt2_jax.ablation.study.design import LEARNING_RATE, Study
from gpt2_jax.ablation.study.labels import labels
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.plan import Plan, is_done, known_trials
from gpt2_jax.ablation.study.store import TrialStore
from gpt2_jax.ablation.study.trials import Trial
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.storage.rundir import RunDirectory


def analyze(plan: Plan, store: TrialStore) -> Analysis:
    """Analyzes a study's directory, complete or not."""
    known, outcomes = known_trials(plan, store)
    runs = {t.name: _run(t, outcomes[t.name], store) for t in known if is_done(t, outcomes)}
    every = range(len(plan.study.variants))
    variants = _compared(plan.study, [_variant(plan, i, known, outcomes, runs) for i in every])
    learning_rates, sensitivities = _sensitivities(plan, variants)
    found = Analysis(
        plan.study,
        variants,
        n_trials=len(known),
        n_done=len(runs),
        complete=len(runs) == len(known) and all(v.search.settled for v in variants),
        n_dropped=store.n_others(known),
        learning_rates=learning_rates,
        sensitivities=sensitivities,
    )
    found.warnings.extend(caveats(found))
    return found


def _run(trial: Trial, outcome: Outcome, store: TrialStore) -> Run:
    directory = RunDirectory(str(store.path(trial.name)))
    rows = read_rows(directory.metrics_path)
    return Run(trial, outcome, directory.path, rows, directory.read_info())


def _variant(
    plan: Plan, i: int, known: Sequence[Trial], outcomes: dict[str, Outcome], runs: dict[str, Run]
) -> Variant:
    state = plan.search_state(i, outcomes)
    done = [runs[t.name] for t in known if t.variant == i and t.name in runs]
    values, search = plan.study.variants[i], plan.study.search
    names = labels(plan.study)
    best = search.learning_rate(state.best) if search and state.best is not None else None
    verdict = [run for run in done if run.trial.purpose == "verdict"]
    return Variant(
        name=names[i],
        values=values,
        baseline=names[plan.study.variants.index(plan.study.baseline_of(values))],
        learning_rate=values.get(LEARNING_RATE) if best is None else best,
        search=state,
        search_runs=[run for run in done if run.trial.purpose == "search"],
        runs=[run for run in verdict if run.trial.k == state.best],
        n_missing=len(plan.study.seeds) * max(1, len(state.contenders)) - len(verdict),
        alternatives=tuple(
            [run for run in verdict if run.trial.k == k] for k in state.contenders[1:]
        ),
    )


def _compared(study: Study, variants: list[Variant]) -> list[Variant]:
    """Adds intervals to the variants, and comparisons where variant and baseline are complete."""
    by_name = {variant.name: variant for variant in variants}
    variants = [
        replace(v, comparable=len(v.unigram_losses | by_name[v.baseline].unigram_losses) < 2)
        for v in variants
    ]
    pairs = {}
    for variant in variants:
        other = by_name[variant.baseline]
        complete = variant.is_complete and other.is_complete
        if not variant.is_baseline and variant.comparable and complete:
            pairs[variant.name] = (variant.arm, other.arm)
    smallest = study.smallest_difference
    comparisons = compare(pairs, smallest, study.n_comparisons)
    out = []
    for variant in variants:
        changes: dict[str, Any] = {}
        if variant.is_complete:
            changes = {"median": median_interval(variant.arm.losses)}
        if (found := comparisons.get(variant.name)) is not None:
            changes["comparison"] = found
            if found.is_open:
                changes["seeds_needed"] = seeds_for(smallest, found.sd, found.n)
        out.append(replace(variant, **changes))
    return out


def _sensitivities(plan: Plan, variants: list[Variant]) -> tuple[list[float], dict[str, float]]:
    """Returns the learning rates that all variants were tried at, and sensitivities over them.

    A variant whose best learning rate is at an end of this range has no sensitivity: its losses
    beyond it are unknown.
    """
    search = plan.study.search
    if search is None or not all(variant.search.scores for variant in variants):
        return [], {}
    shared = sorted(set.intersection(*(set(variant.search.scores) for variant in variants)))
    out = {}
    for variant in variants:
        initial = [run.outcome.initial_loss for run in variant.search_runs]
        known = [loss for loss in initial if loss is not None]
        best = variant.search.best
        if known and shared and best is not None and shared[0] < best < shared[-1]:
            start = statistics.mean(known)
            losses = [_loss_at(variant, k, start) for k in shared]
            out[variant.name] = sensitivity(losses, start)
    return [search.learning_rate(k) for k in shared], out


def _loss_at(variant: Variant, k: int, initial: float) -> float:
    """Returns the mean loss of search runs at learning rate k, each clipped to the initial loss."""
    losses = [run.outcome.loss for run in variant.search_runs if run.trial.k == k]
    return statistics.mean(initial if loss is None else min(loss, initial) for loss in losses)
