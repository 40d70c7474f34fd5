"""Verdicts from a results.json, without the runs.

They depend on the learning rates that the study chose. For each variant, choices that the current
search rules would not make are listed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gpt2_jax.ablation.report.markup import NONE, escaped, signed, table
from gpt2_jax.ablation.statistics import (
    LEVEL,
    Arm,
    Comparison,
    compare,
    median_interval,
    seeds_to_reject,
)
from gpt2_jax.ablation.study.design import LEARNING_RATE, SEED
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.results import read_results
from gpt2_jax.ablation.study.search import Search, score
from gpt2_jax.errors import Damaged, counted

TrialResult = dict[str, Any]
ENDED = ("finished", "diverged")  # statuses of runs that have a result
COLUMNS = (
    *("variant", "learning rate", "seeds", "broken", "loss", "difference", "adjusted p", "verdict"),
)


def verdicts(path: Path) -> list[str]:
    """Returns the verdicts of a results.json as Markdown.

    Raises:
      UserError: if it is not such a file, or was written by another version.
    """
    stored = read_results(path)
    try:
        return _verdicts(stored)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {error})") from None


def _verdicts(stored: dict[str, Any]) -> list[str]:
    variants, smallest = stored["variants"], stored["smallest_difference"]
    arms = [_arm(stored, i) for i in range(len(variants))]
    names = [variant["name"] for variant in variants]
    others = {v["name"]: names.index(v["baseline"]) for v in variants if v["name"] != v["baseline"]}
    seeds = [_seeds(stored, i) for i in range(len(variants))]
    texts = [_unigram_losses(stored, i) for i in range(len(variants))]
    pairs, reasons = {}, {}  # what can be compared, and why the rest cannot
    for name, base in others.items():
        own = names.index(name)
        if len(texts[own] | texts[base]) > 1:
            reasons[name] = "scored on different text or tokens"
        elif seeds[own] and seeds[own] == seeds[base]:
            pairs[name] = (arms[own], arms[base])
        else:
            reasons[name] = "not complete"
    found = compare(pairs, smallest, len(others))
    rows = [
        (
            escaped(v["name"]),
            *_row(v, arm, found.get(v["name"]), reasons.get(v["name"], "baseline")),
        )
        for v, arm in zip(variants, arms, strict=True)
    ]
    n, needed = len(others), seeds_to_reject(len(others))
    return [
        f"Medians over seeds of the final loss, and of the paired differences from the baseline "
        f"with exact {LEVEL:.0%} intervals. Adjusted p is the p-value of the sign test, adjusted "
        f"for {counted(n, 'comparison')} by Holm's method; at least {needed} seeds are needed to "
        f"show any difference. Differences of at most {smallest:g} nats are considered negligible.",
        "",
        *table(COLUMNS, rows),
        "Limitations of the search under the current rules:",
        "",
        *(_unsupported(stored, i) for i in range(len(variants))),
    ]


def _loss(trial: TrialResult) -> float:
    fields = ("status", "step", "loss", "initial_loss", "unigram_loss")
    return Outcome(**{name: trial[name] for name in fields}).score


def _trials(stored: dict[str, Any], variant: int, purpose: str) -> list[TrialResult]:
    """Returns a variant's runs that have ended, in the order of results.json."""
    return [
        trial
        for trial in stored["trials"]
        if trial["variant"] == variant and trial["purpose"] == purpose and trial["status"] in ENDED
    ]


def _arm(stored: dict[str, Any], variant: int) -> Arm:
    """Returns a variant's losses at its chosen learning rate, and at the others in contention."""
    by_lr: dict[float | None, list[float]] = {}
    for trial in sorted(_trials(stored, variant, "verdict"), key=lambda t: t["values"][SEED]):
        by_lr.setdefault(trial["values"].get(LEARNING_RATE), []).append(_loss(trial))
    lr = stored["variants"][variant]["learning_rate"]
    own = by_lr.pop(lr if lr in by_lr else next(iter(by_lr), None), [])
    return Arm(own, tuple(by_lr.values()))


def _seeds(stored: dict[str, Any], variant: int) -> list[int]:
    """Returns the verdict's seeds in order; empty if a run is missing at any learning rate."""
    by_lr: dict[float | None, list[int]] = {}
    for trial in stored["trials"]:
        if trial["variant"] == variant and trial["purpose"] == "verdict":
            if trial["status"] not in ENDED:
                return []
            by_lr.setdefault(trial["values"].get(LEARNING_RATE), []).append(trial["values"][SEED])
    found = [sorted(seeds) for seeds in by_lr.values()]
    return found[0] if found and all(seeds == found[0] for seeds in found) else []


def _unigram_losses(stored: dict[str, Any], variant: int) -> set[float]:
    trials = [*_trials(stored, variant, "verdict"), *_trials(stored, variant, "search")]
    known = (trial["unigram_loss"] for trial in trials)
    return {loss for loss in known if loss is not None}


def _row(
    variant: dict[str, Any], arm: Arm, compared: Comparison | None, reason: str
) -> tuple[str, ...]:
    """Returns a row of the table, without its name.

    Args:
      reason: the verdict to show if there is no comparison.
    """
    lr = NONE if variant["learning_rate"] is None else f"{variant['learning_rate']:.4g}"
    if not arm.losses:
        return (lr, "0", *[NONE] * 5)
    middle = median_interval(arm.losses).estimate
    own = (lr, str(len(arm.losses)), str(sum(map(math.isinf, arm.losses))), f"{middle:.4f}")
    if compared is None:
        return (*own, NONE, NONE, reason)
    return (
        *own,
        signed(compared.difference),
        f"{compared.adjusted_p:.3g}",
        f"**{compared.verdict}**",
    )


def _unsupported(stored: dict[str, Any], variant: int) -> str:
    """Returns a line on what a variant's search would still try or has not ruled out."""
    trials = _trials(stored, variant, "search")
    name = escaped(stored["variants"][variant]["name"])
    if not stored["variants"][variant]["settled"]:
        return f"- {name}: its search is not finished."
    if not trials:
        return f"- {name}: there was no search for its learning rate."
    tried = sorted({trial["values"][LEARNING_RATE] for trial in trials})
    seeds = tuple(dict.fromkeys(trial["values"][SEED] for trial in trials))
    losses = {
        k: [_loss(trial) for trial in trials if trial["values"][LEARNING_RATE] == lr]
        for k, lr in enumerate(tried)
    }
    search = Search(tried[0], n=len(tried), ratio=tried[1] / tried[0], seeds=seeds)
    parts = [counted(len(seeds), "search seed")]
    if more := sorted({k for k, _ in search.next(losses) if k not in losses}):
        shown = ", ".join(f"{search.learning_rate(k):.3g}" for k in more)
        parts.append(f"losses still fall, so {shown} would be tried next")
    checked = {t["values"].get(LEARNING_RATE) for t in _trials(stored, variant, "verdict")}
    left = [k for k in search.in_contention(losses) if tried[k] not in checked]
    if left:
        shown = ", ".join(f"{tried[k]:.3g} ({score(losses[k]):.4f})" for k in left)
        parts.append(f"not ruled out, but not run with fresh seeds: {shown}")
    return f"- {name}: {'; '.join(parts)}."
