"""What a campaign compares: variants, the search for the learning rate of each, and fresh seeds.

A campaign's file has two functions: `get_config()`, the base that every cell starts from and that
train.py trains as it is, and `get_campaign()`, which returns a `Campaign`. Nothing here imports
jax.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_jax.config import FIELDS, validated
from gpt2_jax.config_field import INT_MAX, Field
from gpt2_jax.errors import UserError, suggestion

Values = dict[str, Any]  # {"section.field": value}

RATE, SEED = "optimizer.peak_lr", "seed"
EXTENSION = 2  # rates that a search adds at a time
NUMBERS = {
    "tokens": Field(None, "tokens of every cell", int, minimum=1, maximum=2**60),
    "flops": Field(None, "FLOPs of every cell", float, above=0, maximum=1e30),
    "at_once": Field(None, "cells trained together", int, minimum=1, maximum=INT_MAX),
}
SEARCH_NUMBERS = {
    "lowest": Field(0.0, "the lowest rate", above=0, maximum=1e30),
    "n": Field(5, "rates", minimum=3, maximum=1000),
    "ratio": Field(2.0, "of a rate to the one before", minimum=1.05, maximum=1000),
    "most": Field(15, "rates at most", minimum=3, maximum=1000),
}


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Returns every combination of the axes' values, the last axis changing fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Returns the first values of all axes together, then the second ones, and so on.

    Raises:
      UserError: if an axis is longer than another.
    """
    if len(lengths := {len(values) for values in axes.values()}) > 1:
        raise UserError(f"zipped axes differ in length: {sorted(lengths)}")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def crossed(*lists: Sequence[Values]) -> list[Values]:
    """Returns every combination of an entry of each list."""
    return [
        {name: value for entry in chosen for name, value in entry.items()}
        for chosen in itertools.product(*lists)
    ]


def without(variants: Sequence[Values], *excluded: Values) -> list[Values]:
    """Returns the variants that have all values of none of the excluded entries."""
    return [v for v in variants if not any(_matches(v, pattern) for pattern in excluded)]


def _matches(variant: Values, pattern: Values) -> bool:
    return all(name in variant and variant[name] == value for name, value in pattern.items())


@dataclass(frozen=True)
class Search:
    """Rates `lowest * ratio**k` for k = 0 .. n-1, and beyond while the best of them is an edge.

    Attributes:
      seeds: that every rate is tried with; none of them is used for the verdict.
      most: rates at most for a variant.
    """

    lowest: float
    n: int = 5
    ratio: float = 2.0
    seeds: tuple[int, ...] = (0,)
    most: int = 15

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(_plain(seed) for seed in self.seeds))

    def rate(self, k: int) -> float:
        """Returns the rate number k, which may be negative."""
        return self.lowest * self.ratio**k

    def next(self, scores: Mapping[int, float]) -> list[int]:
        """Returns the numbers of the rates to try next, none where the search is at its end.

        Args:
          scores: of the rates tried, lower is better; infinite for those that diverge.
        """
        if missing := [k for k in range(self.n) if k not in scores]:
            return missing
        low, high = min(scores), max(scores)
        best, room = self.best(scores), self.most - len(scores)
        if best == low:
            return [low - i for i in range(1, 1 + min(EXTENSION, room))]
        if best == high:
            return [high + i for i in range(1, 1 + min(EXTENSION, room))]
        return []

    def best(self, scores: Mapping[int, float]) -> int:
        """Returns the number of the best rate; the lowest where all diverge or are equal."""
        return min(sorted(scores), key=lambda k: scores[k])


@dataclass(frozen=True)
class Campaign:
    """What is compared with what.

    Attributes:
      variants: fields that each variant sets.
      baseline: fields whose values make a variant that which it is compared with; None: the
        base's value.
      seeds: of the runs that the verdict is about; the same for every variant, so that runs of
        one seed see the same data in the same order.
      search: of each variant's learning rate; None: they train at the rate that they have.
      tokens, flops: budget of every cell; neither: the base's `train.steps`.
      at_once: cells trained together by one program; unset: one a core on a CPU, 16 a device
        elsewhere, where a model has at most `population.SMALL` parameters. 1: one after the
        other, each on all devices.
    """

    variants: Sequence[Values]
    baseline: Values
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    search: Search | None = None
    tokens: int | None = None
    flops: float | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        # As campaign.json gives them back: lists as tuples, numpy's numbers as Python's.
        set_ = lambda name, value: object.__setattr__(self, name, value)
        set_("variants", [_plain_values(variant) for variant in self.variants])
        set_("baseline", _plain_values(self.baseline))
        set_("seeds", tuple(_plain(seed) for seed in self.seeds))

    def baseline_of(self, variant: Values) -> Values:
        """Returns the variant that this one is compared with; of the baseline, itself.

        Where there is none, the values that it would have.
        """
        wanted = _given(variant | self.baseline)
        return next((other for other in self.variants if _given(other) == wanted), wanted)

    def check(self) -> None:
        """Refuses what makes no campaign.

        Raises:
          UserError: saying what.
        """
        if not self.variants:
            raise UserError("the campaign has no variants")
        for name in {name for variant in self.variants for name in (*variant, *self.baseline)}:
            self._check_field(name)
        self._check_values()
        for i, variant in enumerate(self.variants):
            if variant in self.variants[:i]:
                raise UserError(f"the campaign has the variant {describe(variant)} twice")
            if (wanted := self.baseline_of(variant)) not in self.variants:
                raise UserError(
                    f"the campaign has no variant {describe(wanted) or 'that is the base'}, which "
                    f"{describe(variant)} would be compared with; add it, or choose another "
                    "baseline"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"the campaign's seeds={self.seeds} must be some, each once")
        if self.tokens is not None and self.flops is not None:
            raise UserError("the campaign's budget is in tokens or in FLOPs, not in both")
        if self.search is not None:
            _check_search(self.search, self.seeds)

    def _check_values(self) -> None:
        for values in (*self.variants, _given(self.baseline)):
            for name, value in values.items():
                validated(name, value, f"the campaign: {name}")
        _check_numbers(self)

    def _check_field(self, name: str) -> None:
        if name not in FIELDS:
            raise UserError(f"the campaign varies '{name}', no field{suggestion(name, FIELDS)}")
        if name == SEED:
            raise UserError("the campaign's seeds are those of `seeds=`, not an axis")
        if name == RATE and self.search is not None:
            raise UserError(f"the campaign has {RATE} as an axis and searches for it; do either")
        if name == "train.steps" and (self.tokens or self.flops):
            raise UserError("the campaign has train.steps as an axis and a budget; take one")


def _check_numbers(campaign: Campaign) -> None:
    """Refuses numbers of a wrong type or out of bounds, by name."""
    for name, field in NUMBERS.items():
        field.validated(getattr(campaign, name), f"the campaign's {name}")
    for seed in campaign.seeds:
        validated(SEED, seed, "the campaign's seeds: one")
    if (search := campaign.search) is None:
        return
    for name, field in SEARCH_NUMBERS.items():
        field.validated(getattr(search, name), f"the campaign's search: {name}")
    for seed in search.seeds:
        validated(SEED, seed, "the campaign's search: seed")
    for k in (0, search.n - 1):
        validated(RATE, search.rate(k), f"the campaign's search: rate {k}")


def _given(values: Values) -> Values:
    return {name: value for name, value in values.items() if value is not None}


def _plain_values(values: Values) -> Values:
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    return value.item() if hasattr(value, "item") else value


def _check_search(search: Search, seeds: tuple[int, ...]) -> None:
    if search.n > search.most:
        raise UserError(
            f"the campaign's search needs 3 to most={search.most} rates, has {search.n}"
        )
    if not search.seeds or len(set(search.seeds)) < len(search.seeds):
        raise UserError(f"the search's seeds={search.seeds} must be some, each once")
    if both := sorted(set(search.seeds) & set(seeds)):
        raise UserError(
            f"the search has seeds of the verdict ({both}): runs that chose a rate cannot judge it"
        )


def describe(values: Values) -> str:
    """Returns `placement=post_ln,n_layer=8`: the last words of the fields where those are clear."""
    set_ = {name: value for name, value in values.items() if value is not None}
    return ",".join(f"{short(name)}={_shown(value)}" for name, value in set_.items())


def count(n: int, word: str) -> str:
    """Returns `1 seed`, `2 seeds`."""
    return f"{n} {word}" + "s" * (n != 1)


def short(field: str) -> str:
    """Returns a field's last word, or its whole name where another field ends in the same."""
    leaf = field.rpartition(".")[2]
    return leaf if sum(name.rpartition(".")[2] == leaf for name in FIELDS) == 1 else field


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
