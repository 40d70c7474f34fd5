"""Matches each variant of a study with its baseline.

Variants and baselines are `{"section.field": value}`; None means the base config's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Values = dict[str, Any]
NAME = "name"  # optional entry of a variant, next to its fields


def explicit(values: Mapping[str, Any]) -> Values:
    """Returns the fields that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def without_name(values: Mapping[str, Any]) -> Values:
    """Returns a variant's fields without its name."""
    return {field: value for field, value in values.items() if field != NAME}


def matched_fields(variants: Sequence[Values], baseline: Values) -> tuple[str, ...]:
    """Returns the fields in which a variant must equal its baseline, such as depth in a depth grid.

    These are the fields that every variant sets and the baseline does not.
    """
    if not variants:
        return ()
    shared = set.intersection(*(set(explicit(variant)) for variant in variants))
    return tuple(name for name in variants[0] if name in shared and name not in baseline)


def baseline_values(variant: Values, variants: Sequence[Values], baseline: Values) -> Values:
    """Returns the variant that this one is compared with; for a baseline, itself.

    It has the baseline's values, this variant's values of the matched fields, and the base config's
    values of all others. If the study does not have that variant, its values are returned.
    """
    matched = {name: variant.get(name) for name in matched_fields(variants, baseline)}
    wanted = explicit(matched | baseline)
    return next((other for other in variants if explicit(other) == wanted), wanted)
