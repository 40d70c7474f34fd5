"""The overview that a study prints before training: its trials, tokens and expected time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gpt2_jax.ablation.statistics import POWER, detectable
from gpt2_jax.ablation.study.descriptions import decay_text, search_text, tokens_per_parameter
from gpt2_jax.ablation.study.design import Study, describe
from gpt2_jax.ablation.study.estimate import expected_time
from gpt2_jax.ablation.study.labels import comparisons
from gpt2_jax.ablation.study.trials import Trial
from gpt2_jax.ablation.study.worker import Worker
from gpt2_jax.errors import counted
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.optim.schedule import warmup_steps


def overview(worker: Worker, known: Sequence[Trial], timed: bool = True) -> str:
    """Describes what will be trained, and how long it will take on this machine.

    Args:
      known: the study's trials so far.
      timed: whether to time a few steps, because this machine will train.
    """
    study = worker.study
    examples = {trial.variant: trial for trial in known}
    configs = [worker.config(trial) for trial in examples.values()]
    typical = _typical_runs(study)
    lines = {
        "variants": "; ".join(describe(variant) for variant in study.variants),
        "compared": f"\n{'':<10} ".join(comparisons(study)),
        **_design(study),
        "corpus": _corpora(worker, list(examples.values())),
        "budget": _range("step", [c.train.steps for c in configs])
        + " = "
        + _range("token", [worker.total_tokens(c) for c in configs])
        + " each",
        "recipe": _recipe(worker, list(examples.values())),
    }
    if timed:
        widths = [worker.width(config) for config in configs]
        lines["together"] = _range("trial", widths) + " at a time"
        left = trials_left(worker, known, typical)
        is_done = not any(left.values())
        lines["expected"] = "nothing" if is_done else expected_time(worker, examples, left)
    outcomes = worker.store.outcomes(list(known)).values()
    if done := sum(outcome.is_final for outcome in outcomes):
        lines["so far"] = f"{done} of {len(known)} known trials are done"
    if failed := sum(outcome.status == "failed" for outcome in outcomes):
        lines["failed"] = f"{failed} of them; --retry_failed retries them"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _typical_runs(study: Study) -> int:
    """Returns the runs per variant if a learning rate inside the search's grid is clearly best."""
    return len(study.seeds) + (study.search.typical_runs if study.search else 0)


def _design(study: Study) -> dict[str, str]:
    """Describes the runs, and what differences they can detect."""
    search, n = study.search, len(study.variants)
    seeds, n_comparisons = len(study.seeds), study.n_comparisons
    typical = n * _typical_runs(study)
    beyond = ", and more where a search extends beyond its grid"
    out = {"search": search_text(search) if search else "none: each at its config's learning rate"}
    verdict = counted(seeds, "fresh seed")
    if search and search.max_contenders > 1:
        most = n * (search.typical_runs + search.max_contenders * seeds)
        verdict += f" at each learning rate in contention, 1 to {search.max_contenders}"
        out["trials"] = f"{typical} to {most}{beyond}"
    else:
        out["trials"] = f"{typical}{beyond if search else ''}"
    out["verdict"] = verdict
    if (effect := detectable(seeds, n_comparisons)) is not None and n_comparisons:
        out["detects"] = (
            f"with probability {POWER:.0%}, a median difference that exceeds "
            f"{study.smallest_difference:g} nats per token by {effect:.2f} standard deviations "
            f"of the differences between runs of one seed ({counted(n_comparisons, 'comparison')}"
            "); less often where several learning rates are in contention"
        )
    return out


def _recipe(worker: Worker, trials: Sequence[Trial]) -> str:
    """Describes settings that all variants share but that may favor some of them."""
    configs = [worker.config(trial) for trial in trials]
    parts = [
        "warm-up " + _range("step", [warmup_steps(c.optimizer, c.train.steps) for c in configs]),
        decay_text([c.optimizer.weight_decay for c in configs]),
        tokens_per_parameter(
            [
                (
                    worker.total_tokens(c),
                    define_model(c.model, c.placement, head=head_of(c.task, c.head)).n_params(),
                )
                for c in configs
            ]
        ),
    ]
    return "; ".join(parts)


def _range(unit: str, values: list[int]) -> str:
    low, high = min(values), max(values)
    return counted(low, unit) if low == high else f"{low:,} to {counted(high, unit)}"


def trials_left(worker: Worker, known: Sequence[Trial], typical: int) -> dict[int, int]:
    """Returns the number of trials left per variant.

    Args:
      typical: expected total number of trials of a variant whose search has not ended.
    """
    outcomes = worker.store.outcomes(list(known))
    done = Counter(trial.variant for trial in known if worker.store.is_done(trial.name))
    total = Counter(trial.variant for trial in known)
    settled = {i: worker.plan.search_state(i, outcomes).settled for i in total}
    needed = {i: n if settled[i] else max(n, typical) for i, n in total.items()}
    return {i: needed[i] - done[i] for i in sorted(needed)}


def _corpora(worker: Worker, trials: Sequence[Trial]) -> str:
    found = {}
    for config in map(worker.config, trials):
        digest = worker.corpus(config).content_hash()
        named = f"{config.data.source} (tokenizer {config.data.tokenizer})"
        found[digest] = f"{named}, sha256 {digest}"
    return f"\n{'':<10} ".join(found.values())
