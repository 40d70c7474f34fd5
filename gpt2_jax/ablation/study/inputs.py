"""Validates the content of a study file.

Study files are Python, so any object may appear where a list, a number or a value is expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from gpt2_jax.ablation.study.variants import NAME
from gpt2_jax.config import FIELDS, validated
from gpt2_jax.errors import UserError

MAX_VARIANTS = 1_000
MAX_SEEDS = 1_000
MAX_TRIALS = 10_000
MAX_ENTRIES = 10_000  # in a list
SEEDS = 2**32  # seeds are below it
MAX_TEXT = 1_000  # characters in a field's value
MAX_NAME = 80  # characters in a variant's name
MAX_DECADES = 30  # between 1 and any learning rate of a search


def listed(value: object, what: str) -> list[Any]:
    """Returns the entries of a list, tuple, range or array.

    Raises:
      UserError: if it is anything else, such as a string, or too long.
    """
    wrong = isinstance(value, str | bytes | Mapping)
    if wrong or not (isinstance(value, Iterable) and isinstance(value, Sized)):
        raise UserError(f"{what} must be a list, not {_shown(value)}")
    if len(value) > MAX_ENTRIES:
        raise UserError(f"{what} has {len(value):,} entries; at most {MAX_ENTRIES:,} are allowed")
    return list(value)


def axes_of(axes: object) -> dict[str, list[Any]]:
    """Returns the axes of a grid: `{"section.field": [values]}`.

    Raises:
      UserError: if it does not have that form, or an axis has no values.
    """
    if not isinstance(axes, Mapping):
        raise UserError(f"a grid is {{'section.field': [values]}}, not {_shown(axes)}")
    out = {name: listed(values, f"the values of {_shown(name)}") for name, values in axes.items()}
    if empty := [name for name, values in out.items() if not values]:
        raise UserError(f"the grid's axis {_shown(empty[0])} has no values")
    return out


def check_size(counts: Iterable[int]) -> None:
    """Checks the number of variants before they are created.

    Raises:
      UserError: if the product of the counts exceeds `MAX_VARIANTS`.
    """
    if (n := math.prod(counts)) > MAX_VARIANTS:
        raise UserError(f"the study has {n:.3g} variants; at most {MAX_VARIANTS:,} are allowed")


def check_trials(n_variants: int, per_variant: int) -> None:
    """Checks the number of trials.

    Raises:
      UserError: if there are more than `MAX_TRIALS`.
    """
    if (n := n_variants * per_variant) > MAX_TRIALS:
        raise UserError(
            f"the study has {n:,} trials, {per_variant:,} per variant; at most {MAX_TRIALS:,} are "
            "allowed"
        )


def check_learning_rates(lowest: float, ratio: float, n: int) -> None:
    """Checks that the learning rates of a search stay within the range of a float.

    Raises:
      UserError: if they may leave it within n learning rates in either direction.
    """
    decades = abs(math.log10(lowest)) + n * math.log10(ratio)
    if decades > MAX_DECADES:
        raise UserError(
            f"the search's lowest={lowest:g}, ratio={ratio:g} and max_n={n} may span "
            f"{decades:.3g} decades; at most {MAX_DECADES} are allowed"
        )


def variants_of(value: object) -> list[dict[str, Any]]:
    """Converts variants to values that JSON supports, and lists to tuples.

    Raises:
      UserError: if they are anything but `[{"section.field": value}]`.
    """
    variants = listed(value, "the study's variants=")
    check_size([len(variants)])
    return [values_of(one, f"variant {i}") for i, one in enumerate(variants, 1)]


def values_of(value: object, what: str) -> dict[str, Any]:
    """Converts `{"section.field": value}` to values that JSON supports, and lists to tuples.

    Raises:
      UserError: naming the field, if it is anything else.
    """
    if not isinstance(value, Mapping):
        raise UserError(
            f"the study's {what} must be {{'section.field': value}}, not {_shown(value)}"
        )
    if wrong := [name for name in value if not isinstance(name, str)]:
        raise UserError(
            f"the study's {what} has {_shown(wrong[0])} where a field's name is expected"
        )
    return {name: plain(one, f"the study's {what}: {_shown(name)}") for name, one in value.items()}


def plain(value: Any, what: str) -> Any:
    """Converts a value to one that JSON supports: lists to tuples, numpy scalars to Python's.

    Raises:
      UserError: if JSON does not support it.
    """
    if isinstance(value, list | tuple):
        return tuple(plain(one, what) for one in value)
    if not isinstance(value, str | bytes) and getattr(value, "shape", None) == ():
        value = value.item()  # a numpy scalar
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what} is {value}, which is not a finite number")
    if isinstance(value, str):
        _check_text(value, what, MAX_TEXT)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{what} is {_shown(value)}; a field is a number, a string, a bool or None")


def check_types(values: Mapping[str, Any]) -> None:
    """Checks values against the types and bounds of their fields.

    Raises:
      UserError: naming the field.
    """
    for name, value in values.items():
        if name in FIELDS:
            validated(name, value, f"the study: {name}")


def _is_a(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def seeds_of(value: object, what: str) -> tuple[int, ...]:
    """Converts seeds to a tuple.

    Raises:
      UserError: if any is not an integer from 0 to 2**32 - 1, or there are too many.
    """
    seeds = tuple(plain(seed, what) for seed in listed(value, what))
    if len(seeds) > MAX_SEEDS:
        raise UserError(f"{what} has {len(seeds):,} seeds; at most {MAX_SEEDS:,} are allowed")
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed < SEEDS:
            raise UserError(f"{what} has {_shown(seed)}; a seed is an integer from 0 to 2**32 - 1")
    return seeds


def number(value: object, what: str, kind: type) -> Any:
    """Converts a number to type `kind`, where `1e6` counts as an integer; None stays None.

    Raises:
      UserError: if it is not such a number, or not finite.
    """
    value = plain(value, what)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and not _is_a(value, kind):
        raise UserError(f"{what} is {_shown(value)}, which is not a valid {kind.__name__}")
    return value


def names_of(values: Sequence[dict[str, Any]], names: object) -> tuple[str | None, ...]:
    """Returns the variants' `name` entries; empty if there are none.

    Raises:
      UserError: if a name is not a short line of text, or two variants have the same.
    """
    kept = listed(names, "the study's names=")
    if kept and len(kept) != len(values):
        raise UserError(f"the study has {len(kept)} names= for {len(values)} variants")
    kept = kept or [None] * len(values)
    found = [one.get(NAME, old) for one, old in zip(values, kept, strict=True)]
    known = [name for name in found if name is not None]
    for i, name in enumerate(known):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"the study names a variant {_shown(name)}; a name is a short text")
        _check_text(name, "a variant's name", MAX_NAME)
        if name in known[:i]:
            raise UserError(f"the study names two variants {_shown(name)}")
    return tuple(found) if known else ()


def _check_text(text: str, what: str, longest: int) -> None:
    if len(text) > longest:
        raise UserError(f"{what} has {len(text):,} characters; at most {longest:,} are allowed")
    if not text.isprintable():
        raise UserError(f"{what} is {_shown(text)}, which has characters that cannot be printed")


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**30:
        return "an integer of over 30 digits"
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
