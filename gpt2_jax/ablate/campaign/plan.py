"""What a campaign says before it trains: cells, tokens, and the time that they take here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from gpt2_jax.ablate.campaign.cells import Cell
from gpt2_jax.ablate.campaign.design import describe
from gpt2_jax.ablate.campaign.estimate import expected
from gpt2_jax.ablate.campaign.labels import comparisons
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.train.report import total_tokens


def plan_text(worker: Worker, known: Sequence[Cell], timed: bool = True) -> str:
    """Returns the lines that say what is to be trained and how long it takes here.

    Args:
      known: the campaign's cells so far.
      timed: whether this is the machine that is to train, so that a trial on it tells something.
    """
    campaign, search = worker.campaign, worker.campaign.search
    n_variants, n_seeds = len(campaign.variants), len(campaign.seeds)
    firsts = {cell.variant: worker.config(cell) for cell in known}
    rates = f"{search.n} rates x {len(search.seeds)} seed(s)" if search else "no search"
    n_cells = n_variants * (n_seeds + (search.n * len(search.seeds) if search else 0))
    more = ", and 2 rates more wherever the best one is an edge" if search else ""
    lines = {
        "variants": "; ".join(describe(variant) for variant in campaign.variants),
        "compared": f"\n{'':<10} ".join(comparisons(campaign)),
        "cells": f"{n_variants} variants x ({rates} + {n_seeds} fresh seeds) = {n_cells}{more}",
        "corpus": _corpora(worker, firsts.values()),
        "budget": _range("updates", [c.train.steps for c in firsts.values()])
        + " = "
        + _range("tokens", [total_tokens(c) for c in firsts.values()])
        + " each",
    }
    if timed:
        widths = [worker.width(config) for config in firsts.values()]
        lines["together"] = _range("cells", widths) + " at a time"
        left = _left(worker, known, n_cells // n_variants)
        lines["expected"] = expected(worker, firsts, left) if any(left.values()) else "nothing"
    ends = worker.cells.outcomes(list(known)).values()
    if done := sum(outcome.is_final for outcome in ends):
        lines["so far"] = f"{done} of {len(known)} cells known are done"
    if failed := sum(outcome.status == "failed" for outcome in ends):
        lines["failed"] = f"{failed} of them; --retry_failed tries them again"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _range(unit: str, values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"


def _left(worker: Worker, known: Sequence[Cell], cells: int) -> dict[int, int]:
    """Returns how many cells each variant still needs, of as many as it has without extensions."""
    done = Counter(cell.variant for cell in known if worker.cells.is_done(cell.name))
    variants = {cell.variant for cell in known}
    return {variant: max(0, cells - done[variant]) for variant in sorted(variants)}


def _corpora(worker: Worker, configs: Iterable[ConfigDict]) -> str:
    """Returns the texts that cells train on, each with the hash of its tokens."""
    found = {}
    for config in configs:
        manifest = worker.corpus(config).manifest
        named = f"{config.data.source} (tokenizer {config.data.tokenizer})"
        found[manifest.corpus_hash()] = f"{named}, sha256 {manifest.corpus_hash()}"
    return f"\n{'':<10} ".join(found.values())
