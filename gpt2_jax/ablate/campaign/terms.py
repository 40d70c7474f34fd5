"""The terms on which variants are compared, in words that a plan and its report share."""

from __future__ import annotations

from collections.abc import Iterable

from gpt2_jax.ablate.campaign.search import Search


def search_text(search: Search) -> str:
    """Returns how learning rates are searched for."""
    first, *others = search.seeds
    more = (
        f"; the best, its neighbours and what may be as good also with seeds "
        f"{', '.join(map(str, others))}"
        if others
        else ""
    )
    return (
        f"{search.n} learning rates from {search.lowest:.5g} on, each {search.ratio:.4g} times the "
        f"one before, with seed {first}{more}; two more at an end while it is the best or losses "
        f"still fall towards it, at most {search.most}"
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
