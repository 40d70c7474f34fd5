"""What the variants of a study are called in plans, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2_jax.ablate.campaign.design import Campaign, describe
from gpt2_jax.errors import UserError


def labels(campaign: Campaign) -> list[str]:
    """Returns the variants' names, each once.

    A variant that has a `name` of its own keeps it. The others are described by the fields that
    tell the variants apart, and always by those in which a variant differs from its baseline;
    where all vary in one field alone, by its value.

    Raises:
      UserError: if a variant's own name is what describes another.
    """
    fields = list(dict.fromkeys(name for values in campaign.variants for name in values))
    set_by = {name: sum(name in values for values in campaign.variants) for name in fields}
    needed = differing(campaign)
    for name in sorted((f for f in fields if f not in needed), key=set_by.__getitem__):
        fewer = [other for other in fields if other != name]
        if fewer and len(set(_described(campaign, fewer))) == len(campaign.variants):
            fields = fewer
    described = _described(campaign, fields)
    if len(fields) == 1 and all(described):
        described = [text.partition("=")[2] for text in described]
    own = campaign.names or (None,) * len(campaign.variants)
    found = [
        name or text or describe(values) or "base"
        for name, text, values in zip(own, described, campaign.variants, strict=True)
    ]
    if twice := [name for i, name in enumerate(found) if name in found[:i]]:
        raise UserError(f"two variants of the campaign are called {twice[0]!r}; change a name=")
    return found


def differing(campaign: Campaign) -> set[str]:
    """Returns the fields in which any variant differs from the one that it is compared with."""
    return {
        name
        for variant in campaign.variants
        for base in [campaign.baseline_of(variant)]
        for name in {**variant, **base}
        if variant.get(name) != base.get(name)
    }


def comparisons(campaign: Campaign) -> list[str]:
    """Returns a line for each variant: `variant -> baseline`, or `variant (baseline)`."""
    names = labels(campaign)
    lines = []
    for variant, name in zip(campaign.variants, names, strict=True):
        other = names[campaign.variants.index(campaign.baseline_of(variant))]
        lines.append(f"{name} (baseline)" if other == name else f"{name} -> {other}")
    return lines


def _described(campaign: Campaign, fields: Sequence[str]) -> list[str]:
    known = lambda values: {name: values[name] for name in fields if name in values}
    return [describe(known(values)) for values in campaign.variants]
