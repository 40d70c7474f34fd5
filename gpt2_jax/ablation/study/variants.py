"""Which variant of a study each variant is compared with.

Variants and baselines are `{"section.field": value}`; a field set to None is left to the base
config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Values = dict[str, Any]
NAME = "name"  # a variant's own name, next to its fields


def explicit(values: Mapping[str, Any]) -> Values:
    """Returns the fields that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def without_name(values: Mapping[str, Any]) -> Values:
    """Returns a variant's fields without its name."""
    return {field: value for field, value in values.items() if field != NAME}


def matched_fields(variants: Sequence[Values], baseline: Values) -> tuple[str, ...]:
    """Returns the fields in which a variant and its baseline agree, such as depth in a depth grid.

    These are the fields that every variant sets and the baseline does not.
    """
    if not variants:
        return ()
    shared = set.intersection(*(set(explicit(variant)) for variant in variants))
    return tuple(name for name in variants[0] if name in shared and name not in baseline)


def baseline_values(variant: Values, variants: Sequence[Values], baseline: Values) -> Values:
    """Returns the variant that this one is compared with; for a baseline, the baseline itself.

    It has the baseline's values, this variant's values of the matched fields, and leaves every
    other field to the base config. If the study has no such variant, its values are returned.
    """
    matched = {name: variant.get(name) for name in matched_fields(variants, baseline)}
    wanted = explicit(matched | baseline)
    return next((other for other in variants if explicit(other) == wanted), wanted)
