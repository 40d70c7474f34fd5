"""What a campaign says before it trains: cells, tokens, and the time that they take here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from gpt2_jax.ablate.campaign.cells import Cell
from gpt2_jax.ablate.campaign.design import Campaign, count, describe
from gpt2_jax.ablate.campaign.estimate import expected
from gpt2_jax.ablate.campaign.labels import comparisons
from gpt2_jax.ablate.campaign.terms import decay_text, search_text, tokens_per_parameter
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.ablate.statistics import POWER, detectable
from gpt2_jax.model.structure import structure
from gpt2_jax.train.report import total_tokens
from gpt2_jax.train.schedule import warmup_steps


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
        "compared": f"\n{'':<10} ".join(comparisons(campaign)),
        **_design(campaign),
        "corpus": _corpora(worker, firsts.values()),
        "budget": _range("steps", [c.train.steps for c in firsts.values()])
        + " = "
        + _range("tokens", [total_tokens(c) for c in firsts.values()])
        + " each",
        "recipe": _recipe(list(firsts.values())),
    }
    if timed:
        widths = [worker.width(config) for config in firsts.values()]
        lines["together"] = _range("cells", widths) + " at a time"
        left = cells_left(worker, known, usual)
        lines["expected"] = expected(worker, firsts, left) if any(left.values()) else "nothing"
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
        "warm-up " + _range("steps", [warmup_steps(c) for c in configs]),
        decay_text([c.optimizer.weight_decay for c in configs]),
        tokens_per_parameter([(total_tokens(c), structure(c.model).n_params()) for c in configs]),
    ]
    return "; ".join(parts)


def _range(unit: str, values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"


def cells_left(worker: Worker, known: Sequence[Cell], usual: int) -> dict[int, int]:
    """Returns how many cells each variant still needs: of those known once its search has ended.

    Args:
      usual: cells that a variant has in all, as expected while it is being searched for.
    """
    outcomes = worker.cells.outcomes(list(known))
    done = Counter(cell.variant for cell in known if worker.cells.is_done(cell.name))
    total = Counter(cell.variant for cell in known)
    settled = {i: worker.plan.searched(i, outcomes).settled for i in total}
    needed = {i: n if settled[i] else max(n, usual) for i, n in total.items()}
    return {i: needed[i] - done[i] for i in sorted(needed)}


def _corpora(worker: Worker, configs: Iterable[ConfigDict]) -> str:
    """Returns the texts that cells train on, each with the hash of its tokens."""
    found = {}
    for config in configs:
        manifest = worker.corpus(config).manifest
        named = f"{config.data.source} (tokenizer {config.data.tokenizer})"
        found[manifest.corpus_hash()] = f"{named}, sha256 {manifest.corpus_hash()}"
    return f"\n{'':<10} ".join(found.values())
