"""Names of a study's variants in overviews, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2_jax.ablation.study.design import Study, describe
from gpt2_jax.errors import UserError


def labels(study: Study) -> list[str]:
    """Returns unique names of the variants.

    A variant's `name` entry is its name. Other variants are described by the fields that
    distinguish the variants, always including those in which a variant differs from its baseline.
    If a single field varies, its value is the name.

    Raises:
      UserError: if a variant's `name` equals the description of another.
    """
    fields = list(dict.fromkeys(name for values in study.variants for name in values))
    set_by = {name: sum(name in values for values in study.variants) for name in fields}
    needed = differing(study)
    for name in sorted((f for f in fields if f not in needed), key=set_by.__getitem__):
        fewer = [other for other in fields if other != name]
        if fewer and len(set(_described(study, fewer))) == len(study.variants):
            fields = fewer
    described = _described(study, fields)
    if len(fields) == 1 and all(described):
        described = [text.partition("=")[2] for text in described]
    own = study.names or (None,) * len(study.variants)
    found = [
        name or text or describe(values) or "base"
        for name, text, values in zip(own, described, study.variants, strict=True)
    ]
    if twice := [name for i, name in enumerate(found) if name in found[:i]]:
        raise UserError(f"two variants of the study are called {twice[0]!r}; change a name=")
    return found


def differing(study: Study) -> set[str]:
    """Returns the fields in which any variant differs from its baseline."""
    return {
        name
        for variant in study.variants
        for base in [study.baseline_of(variant)]
        for name in {**variant, **base}
        if variant.get(name) != base.get(name)
    }


def comparisons(study: Study) -> list[str]:
    """Returns one line per variant: `variant -> baseline`, or `variant (baseline)`."""
    names = labels(study)
    lines = []
    for variant, name in zip(study.variants, names, strict=True):
        other = names[study.variants.index(study.baseline_of(variant))]
        lines.append(f"{name} (baseline)" if other == name else f"{name} -> {other}")
    return lines


def _described(study: Study, fields: Sequence[str]) -> list[str]:
    known = lambda values: {name: values[name] for name in fields if name in values}
    return [describe(known(values)) for values in study.variants]
