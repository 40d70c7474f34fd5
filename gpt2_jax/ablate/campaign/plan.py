"""What a campaign says before it trains: cells, tokens, and the time that they take here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
from ml_collections import ConfigDict

from gpt2_jax.ablate.campaign.cells import Cell
from gpt2_jax.ablate.campaign.design import describe
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.model.structure import structure
from gpt2_jax.train.evaluation import choose_windows
from gpt2_jax.train.program import compile_program, memory_errors
from gpt2_jax.train.report import total_tokens

FORWARD = 1 / 3  # of an update's FLOPs a token


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
        "compared": f"with {describe(campaign.baseline)}",
        "cells": f"{n_variants} variants x ({rates} + {n_seeds} fresh seeds) = {n_cells}{more}",
        "budget": _range("updates", [c.train.steps for c in firsts.values()])
        + " = "
        + _range("tokens", [total_tokens(c) for c in firsts.values()])
        + " each",
    }
    if timed:
        widths = [worker.width(config) for config in firsts.values()]
        lines["together"] = _range("cells", widths) + " at a time"
        lines["expected"] = _expected(worker, firsts, n_cells // n_variants)
    done = sum(worker.cells.outcome(cell.name) is not None for cell in known)
    if done:
        lines["so far"] = f"{done} of {len(known)} cells known are done"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _range(unit: str, values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"


def _expected(worker: Worker, firsts: dict[int, ConfigDict], cells: int) -> str:
    """Returns the time of all cells by a short trial of one variant, others by their FLOPs."""
    i = next((i for i, c in firsts.items() if worker.width(c) > 1), 0)
    tried, started = firsts[i], time.monotonic()
    seconds = _trial_seconds(worker, tried)
    compiling = time.monotonic() - started
    per_flop = seconds * tried.train.steps / _flops(tried, total_tokens(tried))
    training = sum(_flops(c, _tokens_equal(worker, c)) for c in firsts.values())
    whole = timedelta(seconds=round(cells * training * per_flop + compiling * len(firsts)))
    return (
        f"about {whole} on this machine alone ({seconds * 1e3:.1f} ms an update of "
        f"{describe(worker.campaign.variants[i])} by a short trial; the other variants and the "
        "evaluations by their FLOPs)"
    )


def _trial_seconds(worker: Worker, config: ConfigDict) -> float:
    """Returns the seconds of an update of one cell."""
    with memory_errors():
        if (width := worker.width(config)) > 1:
            return worker.lanes(config).trial_seconds() / width
        batch = np.zeros((config.train.batch_size, config.data.seq_len + 1), np.int32)
        return compile_program(config).trial_seconds(batch)


def _flops(config: ConfigDict, tokens: float) -> float:
    return structure(config.model).flops_per_token(config.data.seq_len) * tokens


def _tokens_equal(worker: Worker, config: ConfigDict) -> float:
    """Returns the tokens whose training would take as long as a whole cell with its evaluations."""
    train = config.train
    n_val = len(worker.corpus(config).val)
    windows = choose_windows(n_val, config.data.seq_len, train.eval_tokens)
    evaluations = 1 + -(-train.steps // train.eval_every)
    evaluated = evaluations * sum(length for _, length, _ in windows)
    return total_tokens(config) + evaluated * FORWARD
