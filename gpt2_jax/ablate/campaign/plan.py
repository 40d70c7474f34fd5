"""What a campaign says before it trains: cells, tokens, and the time that they take here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
from ml_collections import ConfigDict

from gpt2_jax.ablate.campaign.cells import Cell
from gpt2_jax.ablate.campaign.design import Campaign, count, describe
from gpt2_jax.ablate.campaign.terms import decay_text, search_text, tokens_per_parameter
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.ablate.population import program_key
from gpt2_jax.ablate.statistics import POWER, detectable
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
    campaign = worker.campaign
    firsts = {cell.variant: worker.config(cell) for cell in known}
    usual = _usual_runs(campaign)
    lines = {
        "variants": "; ".join(describe(variant) for variant in campaign.variants),
        "compared": f"with {describe(campaign.baseline)}",
        **_design(campaign),
        "budget": _range("updates", [c.train.steps for c in firsts.values()])
        + " = "
        + _range("tokens", [total_tokens(c) for c in firsts.values()])
        + " each",
        "recipe": _recipe(list(firsts.values())),
    }
    if timed:
        widths = [worker.width(config) for config in firsts.values()]
        lines["together"] = _range("cells", widths) + " at a time"
        left = _left(worker, known, usual)
        lines["expected"] = _expected(worker, firsts, left) if any(left.values()) else "nothing"
    ends = worker.cells.outcomes(list(known)).values()
    if done := sum(outcome.is_final for outcome in ends):
        lines["so far"] = f"{done} of {len(known)} cells known are done"
    if failed := sum(outcome.status == "failed" for outcome in ends):
        lines["failed"] = f"{failed} of them; --retry_failed tries them again"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _usual_runs(campaign: Campaign) -> int:
    """Returns a variant's runs where one learning rate stands out inside the search's grid."""
    return len(campaign.seeds) + (campaign.search.usual_runs if campaign.search else 0)


def _design(campaign: Campaign) -> dict[str, str]:
    """Returns the lines about runs, and about what they can show."""
    search, n = campaign.search, len(campaign.variants)
    seeds, comparisons = len(campaign.seeds), campaign.comparisons
    usual = n * _usual_runs(campaign)
    out = {"search": search_text(search) if search else "none: each at the learning rate it has"}
    verdict = count(seeds, "fresh seed")
    if search and search.contenders > 1:
        most = n * (search.usual_runs + search.contenders * seeds)
        verdict += f" at each learning rate in contention, 1 to {search.contenders}"
        out["cells"] = f"{usual} to {most}, and more where a search goes beyond its grid"
    else:
        out["cells"] = f"{usual}" + (
            ", and more where a search goes beyond its grid" * bool(search)
        )
    out["verdict"] = verdict
    if (effect := detectable(seeds, comparisons)) is not None and comparisons:
        out["detects"] = (
            f"with probability {POWER:.0%}, a median difference that exceeds "
            f"{campaign.smallest_difference:g} nats per token by {effect:.2f} standard deviations "
            f"of the differences between runs of one seed ({count(comparisons, 'comparison')}); "
            "less often where several learning rates are in contention"
        )
    return out


def _recipe(configs: Sequence[ConfigDict]) -> str:
    """Returns what all variants share besides the budget, and what may favour some of them."""
    parts = [
        "warm-up " + _range("updates", [c.optimizer.warmup_steps for c in configs]),
        decay_text([c.optimizer.weight_decay for c in configs]),
        tokens_per_parameter([(total_tokens(c), structure(c.model).n_params()) for c in configs]),
    ]
    return "; ".join(parts)


def _range(unit: str, values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"


def _left(worker: Worker, known: Sequence[Cell], cells: int) -> dict[int, int]:
    """Returns how many cells each variant still needs, of as many as it has without extensions."""
    done = Counter(cell.variant for cell in known if worker.cells.is_done(cell.name))
    variants = {cell.variant for cell in known}
    return {variant: max(0, cells - done[variant]) for variant in sorted(variants)}


def _expected(worker: Worker, firsts: dict[int, ConfigDict], left: dict[int, int]) -> str:
    """Returns the time of the cells left by a trial of one variant, others by their FLOPs."""
    open_ = [i for i in firsts if left[i]]
    i = next((i for i in open_ if worker.width(firsts[i]) > 1), open_[0])
    tried, started = firsts[i], time.monotonic()
    seconds = _trial_seconds(worker, tried)
    compiling = time.monotonic() - started
    per_flop = seconds * tried.train.steps / _flops(tried, total_tokens(tried))
    flops = {j: _flops(firsts[j], _tokens_equal(worker, firsts[j])) for j in open_}
    whole = timedelta(seconds=round(per_flop * sum(left[j] * flops[j] for j in open_)))
    programs = len({program_key(firsts[j]) for j in open_})
    compiled = timedelta(seconds=round(compiling * programs))
    return (
        f"about {whole} on this machine alone ({seconds * 1e3:.1f} ms an update of "
        f"{describe(worker.campaign.variants[i]) or 'the base'} by a short trial; the other "
        "variants and the evaluations by their FLOPs), and to compile "
        f"{count(programs, 'program')} at least {compiled}"
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
