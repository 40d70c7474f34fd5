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

from gpt2_jax.ablate.campaign import inputs
from gpt2_jax.ablate.campaign.search import Search
from gpt2_jax.ablate.campaign.variants import (
    NAME,
    Values,
    baseline_values,
    given,
    matched_fields,
    without_name,
)
from gpt2_jax.ablate.statistics import seeds_to_reject
from gpt2_jax.config import FIELDS
from gpt2_jax.config_field import INT_MAX, Field
from gpt2_jax.errors import UserError, suggestion

RATE, SEED = "optimizer.peak_lr", "seed"
NUMBERS = {
    "tokens": Field(None, "tokens of every cell", int, minimum=1, maximum=2**60),
    "flops": Field(None, "FLOPs of every cell", float, above=0, maximum=1e30),
    "at_once": Field(None, "cells trained together", int, minimum=1, maximum=INT_MAX),
    "smallest_difference": Field(0.005, "nats per token", above=0, maximum=100.0),
}
SEARCH_NUMBERS = {
    "lowest": Field(0.0, "the lowest rate", above=0, maximum=1e30),
    "n": Field(5, "rates", minimum=3, maximum=1000),
    "ratio": Field(2.0, "of a rate to the one before", minimum=1.05, maximum=1000),
    "most": Field(15, "rates at most", minimum=3, maximum=1000),
    "contenders": Field(3, "rates in contention at most", minimum=1, maximum=1000),
}


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Returns every combination of the axes' values, the last axis changing fastest.

    Raises:
      UserError: if an axis has no values, or there are more combinations than can be trained.
    """
    listed = inputs.axes_of(axes)
    inputs.check_size(map(len, listed.values()))
    return [
        dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())
    ]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Returns the first values of all axes together, then the second ones, and so on.

    Raises:
      UserError: if an axis is longer than another.
    """
    listed = inputs.axes_of(axes)
    if len(lengths := {len(values) for values in listed.values()}) > 1:
        raise UserError(f"zipped axes differ in length: {sorted(lengths)}")
    return [dict(zip(listed, values, strict=True)) for values in zip(*listed.values(), strict=True)]


def crossed(*lists: Sequence[Values]) -> list[Values]:
    """Returns every combination of an entry of each list.

    Of entries with a `name`, the combination's name is made of these and the others' fields.
    """
    inputs.check_size(map(len, lists))
    return [_merged(chosen) for chosen in itertools.product(*lists)]


def _merged(entries: Sequence[Values]) -> Values:
    merged = {field: value for entry in entries for field, value in entry.items()}
    if NAME in merged:
        parts = [entry.get(NAME) or describe(entry) for entry in entries]
        merged[NAME] = ",".join(part for part in parts if part)
    return merged


def without(variants: Sequence[Values], *excluded: Values) -> list[Values]:
    """Returns the variants that have all values of none of the excluded entries."""
    return [v for v in variants if not any(_matches(v, pattern) for pattern in excluded)]


def _matches(variant: Values, pattern: Values) -> bool:
    return all(name in variant and variant[name] == value for name, value in pattern.items())


@dataclass(frozen=True)
class Campaign:
    """What is compared with what.

    Attributes:
      variants: fields that each variant sets, and its `name` in the report if it has one.
      baseline: the values of the variant that the others are compared with; every other field is
        at the base's value, except those that all variants set: these are compared at equal
        values (in a grid over depth, at the same depth). None: the base's value.
      seeds: of the runs that the verdict is about; the same for every variant, so that runs of
        one seed see the same data in the same order. Nine can show a difference among up to twelve
        comparisons.
      search: of each variant's learning rate; None: they train at the rate that they have.
      tokens, flops: budget of every cell; neither: the base's `train.steps`.
      at_once: cells trained together by one program; unset: one a core on a CPU, 16 a device
        elsewhere, where a model has at most `population.SMALL` parameters. 1: one after the
        other, each on all devices.
      names: of the variants, as their `name` entries give them; empty if none has one.
      keep_checkpoints: whether cells keep their checkpoints once they are finished.
      smallest_difference: in the final loss, nats per token, that matters: only larger ones are
        called better or worse, and a variant within it is called equivalent.
    """

    variants: Sequence[Values]
    baseline: Values
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    search: Search | None = None
    tokens: int | None = None
    flops: float | None = None
    at_once: int | None = None
    names: Sequence[str | None] = ()
    keep_checkpoints: bool = True
    smallest_difference: float = 0.005

    def __post_init__(self) -> None:
        # As campaign.json gives them back: lists as tuples, numpy's numbers as Python's.
        set_ = lambda name, value: object.__setattr__(self, name, value)
        variants = inputs.variants_of(self.variants)
        set_("names", inputs.names_of(variants, self.names))
        set_("variants", [without_name(variant) for variant in variants])
        set_("baseline", without_name(inputs.values_of(self.baseline, "baseline")))
        set_("seeds", inputs.seeds_of(self.seeds, "the campaign's seeds="))
        kinds = {"tokens": int, "flops": float, "at_once": int, "smallest_difference": float}
        for name, kind in kinds.items():
            set_(name, inputs.number(getattr(self, name), f"the campaign's {name}=", kind))

    @property
    def comparisons(self) -> int:
        """How many variants are compared with another."""
        return sum(self.baseline_of(variant) != variant for variant in self.variants)

    def sets(self) -> set[str]:
        """Returns the fields that cells have from the campaign, whatever the base says."""
        searched = {RATE} if self.search else set()
        budget = {"train.steps"} if self.tokens or self.flops else set()
        axes = {name for variant in self.variants for name in variant}
        return axes | searched | budget | {SEED, "track.wandb.name"}

    def baseline_of(self, variant: Values) -> Values:
        """Returns the variant that this one is compared with; of a baseline, itself.

        Where there is none, the values that it would have.
        """
        return baseline_values(variant, self.variants, self.baseline)

    def check(self) -> None:
        """Refuses what makes no campaign.

        Raises:
          UserError: saying what.
        """
        if not self.variants:
            raise UserError("the campaign has no variants")
        for name in {name for variant in self.variants for name in (*variant, *self.baseline)}:
            self._check_field(name)
        for values in (*self.variants, self.baseline):
            inputs.check_types(values)
        self._check_comparisons()
        if not isinstance(self.keep_checkpoints, bool):
            raise UserError("the campaign's keep_checkpoints= must be True or False")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"the campaign's seeds={self.seeds} must be some, each once")
        if self.tokens is not None and self.flops is not None:
            raise UserError("the campaign's budget is in tokens or in FLOPs, not in both")
        _check_numbers(self, NUMBERS, "the campaign's ")
        if self.search is not None:
            if not isinstance(self.search, Search):
                raise UserError("the campaign's search= must be a Search, or None")
            _check_numbers(self.search, SEARCH_NUMBERS, "the campaign's search: ")
            _check_search(self.search, self.seeds)
            inputs.check_rates(self.search.lowest, self.search.ratio, self.search.most)
        search = self.search
        tried = search.most * len(search.seeds) if search else 0
        judged = len(self.seeds) * (search.contenders if search else 1)
        inputs.check_cells(len(self.variants), tried + judged)
        self._check_power()

    def _check_comparisons(self) -> None:
        """Refuses variants that are there twice, or have nothing to be compared with."""
        fields = [given(variant) for variant in self.variants]
        compared = [self.baseline_of(variant) for variant in self.variants]
        for i, (variant, other) in enumerate(zip(self.variants, compared, strict=True)):
            said = describe(variant) or "that is the base"
            if fields[i] in fields[:i]:
                raise UserError(f"the campaign has the variant {said} twice")
            if other not in self.variants:
                raise UserError(
                    f"the campaign has no variant {describe(other) or 'that is the base'}, which "
                    f"{said} would be compared with; add it, or choose another baseline"
                )
        alone = [variant for variant in compared if compared.count(variant) == 1]
        if alone and len(fields) > 1:
            raise UserError(
                f"the campaign compares {describe(alone[0])} with nothing but itself: "
                f"{self._parted(alone[0])} sets it apart; name in baseline= the variant that the "
                "others are to be compared with"
            )

    def _parted(self, variant: Values) -> str:
        """Returns the matched fields that set a variant apart from all others."""
        matched = matched_fields(self.variants, self.baseline)
        values = {name: [other.get(name) for other in self.variants] for name in matched}
        return ", ".join(n for n in matched if any(v != variant.get(n) for v in values[n]))

    def _check_power(self) -> None:
        n, needed = self.comparisons, seeds_to_reject(self.comparisons)
        if n and len(self.seeds) < needed:
            raise UserError(
                f"the campaign's {count(len(self.seeds), 'seed')} can show no difference in "
                f"{count(n, 'comparison')}, however large; it takes {needed} seeds"
            )

    def _check_field(self, name: str) -> None:
        if name not in FIELDS:
            raise UserError(f"the campaign varies '{name}', no field{suggestion(name, FIELDS)}")
        if name == SEED:
            raise UserError("the campaign's seeds are those of `seeds=`, not an axis")
        if name == "train.eval_tokens":
            raise UserError(
                f"the campaign varies {name}, so that losses would be those of different texts; "
                "set it in get_config(), for all variants"
            )
        if name == RATE and self.search is not None:
            raise UserError(f"the campaign has {RATE} as an axis and searches for it; do either")
        if name == "train.steps" and (self.tokens or self.flops):
            raise UserError("the campaign has train.steps as an axis and a budget; take one")


def _check_numbers(of: Campaign | Search, fields: Mapping[str, Field], label: str) -> None:
    """Refuses numbers of a wrong type or out of bounds, by name."""
    for name, field in fields.items():
        field.validated(getattr(of, name), f"{label}{name}")


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
    return ",".join(f"{short(name)}={_shown(value)}" for name, value in given(values).items())


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
