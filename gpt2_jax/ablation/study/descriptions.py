"""Sentences that a study's overview and its report share."""

from __future__ import annotations

from collections.abc import Iterable

from gpt2_jax.ablation.study.search import Search


def search_text(search: Search) -> str:
    """Returns how learning rates are searched for."""
    first, *others = search.seeds
    more = (
        f"; the best, its neighbours and any that may be as good also with seeds "
        f"{', '.join(map(str, others))}"
        if others
        else ""
    )
    return (
        f"{search.n} learning rates from {search.lowest:.5g} up, each {search.ratio:.4g} times the "
        f"one before, with seed {first}{more}; two more at either end while the best is at that "
        f"end or losses still fall towards it, up to {search.max_n}"
    )


def decay_text(decays: Iterable[float]) -> str:
    """Returns how strong weight decay is: it is scaled by the learning rate."""
    shown = " or ".join(f"{decay:g}" for decay in sorted(set(decays)))
    return f"weight decay {shown} x learning rate per step, so weaker at a smaller learning rate"


def tokens_per_parameter(sizes: Iterable[tuple[int, int]]) -> str:
    """Returns the ratio of (tokens, parameters); compute-optimal models have about 20."""
    found = sorted(tokens / parameters for tokens, parameters in sizes)
    low, high = f"{found[0]:.2g}", f"{found[-1]:.2g}"
    return f"{low if low == high else f'{low} to {high}'} tokens per parameter"
