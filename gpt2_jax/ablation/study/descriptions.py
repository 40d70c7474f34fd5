"""Sentences shared by a study's overview and its report."""

from __future__ import annotations

from collections.abc import Iterable

from gpt2_jax.ablation.study.search import Search


def search_text(search: Search) -> str:
    """Describes the search for learning rates."""
    first, *others = search.seeds
    more = (
        f"; the best, its neighbors and any others that may be as good are repeated with seeds "
        f"{', '.join(map(str, others))}"
        if others
        else ""
    )
    return (
        f"{search.n} learning rates from {search.lowest:.5g} up, each {search.ratio:.4g} times the "
        f"previous one, with seed {first}{more}; two more at either end as long as the best is at "
        f"that end or losses still fall toward it, up to {search.max_n} in total"
    )


def decay_text(decays: Iterable[float]) -> str:
    """Describes the strength of weight decay, which is scaled by the learning rate."""
    shown = " or ".join(f"{decay:g}" for decay in sorted(set(decays)))
    return f"weight decay {shown} x learning rate per step, so weaker at smaller learning rates"


def tokens_per_parameter(sizes: Iterable[tuple[int, int]]) -> str:
    """Describes the ratios of (tokens, parameters); it is about 20 for compute-optimal models."""
    found = sorted(tokens / parameters for tokens, parameters in sizes)
    low, high = f"{found[0]:.2g}", f"{found[-1]:.2g}"
    return f"{low if low == high else f'{low} to {high}'} tokens per parameter"
