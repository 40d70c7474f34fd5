"""The design of a study: its variants, the search for each one's learning rate, and its seeds.

A study file has two functions. `get_config()` returns the base config of every trial, which
train.py can also train; `get_study()` returns a `Study`. Nothing here imports jax.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_jax.ablation.statistics import seeds_to_reject
from gpt2_jax.ablation.study import inputs
from gpt2_jax.ablation.study.search import Search
from gpt2_jax.ablation.study.variants import (
    NAME,
    Values,
    baseline_values,
    explicit,
    matched_fields,
    without_name,
)
from gpt2_jax.config import FIELDS
from gpt2_jax.config.renamed import renamed
from gpt2_jax.errors import UserError, counted, suggestion
from gpt2_jax.fields import INT_MAX, Field

LEARNING_RATE, SEED = "optimizer.peak_lr", "seed"
NUMBERS = {
    "tokens": Field(None, int, "tokens per trial", minimum=1, maximum=2**60),
    "flops": Field(None, float, "FLOPs per trial", above=0, maximum=1e30),
    "trials_per_batch": Field(None, int, "trials trained together", minimum=1, maximum=INT_MAX),
    "smallest_difference": Field(0.005, float, "nats per token", above=0, maximum=100.0),
}
SEARCH_NUMBERS = {
    "lowest": Field(0.0, float, "lowest learning rate", above=0, maximum=1e30),
    "n": Field(5, int, "number of learning rates", minimum=3, maximum=1000),
    "ratio": Field(2.0, float, "ratio of successive rates", minimum=1.05, maximum=1000),
    "max_n": Field(15, int, "maximum number of learning rates", minimum=3, maximum=1000),
    "max_contenders": Field(3, int, "maximum in contention", minimum=1, maximum=1000),
}


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Returns every combination of the axes' values; the last axis varies fastest.

    Raises:
      UserError: if an axis has no values, or there are too many combinations.
    """
    listed = inputs.axes_of(axes)
    inputs.check_size(map(len, listed.values()))
    return [
        dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())
    ]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Combines the first values of all axes, the second values, and so on.

    Raises:
      UserError: if the axes differ in length.
    """
    listed = inputs.axes_of(axes)
    if len(lengths := {len(values) for values in listed.values()}) > 1:
        raise UserError(f"zipped axes differ in length: {sorted(lengths)}")
    return [dict(zip(listed, values, strict=True)) for values in zip(*listed.values(), strict=True)]


def crossed(*lists: Sequence[Values]) -> list[Values]:
    """Returns every combination of one entry per list.

    If any entry has a `name`, the combination's name joins these names and the descriptions of the
    other entries.
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
    """Returns the variants that do not have all the values of any excluded entry."""
    return [v for v in variants if not any(_matches(v, pattern) for pattern in excluded)]


def _matches(variant: Values, pattern: Values) -> bool:
    return all(name in variant and variant[name] == value for name, value in pattern.items())


@dataclass(frozen=True)
class Study:
    """Which variants are trained, how often, and what they are compared with.

    Attributes:
      variants: the fields that each variant sets, and optionally its `name` in the report.
      baseline: the values of the variant that the others are compared with. A value of None means
        the base's value. Other fields have the base's values, except fields that all variants set:
        these are matched, so that in a grid over depth variants are compared at equal depth.
      seeds: seeds of the runs that decide the verdict, shared by all variants: runs of one seed see
        the same data in the same order. Nine can show a difference in up to twelve comparisons.
      search: the search for each variant's learning rate; None to train at the config's.
      tokens, flops: budget per trial; if neither is set, the base's `train.steps`.
      trials_per_batch: trials trained together by one program. Unset: one per core on a CPU and 16
        per device elsewhere, for models of up to `vectorized.SMALL_MODEL` parameters. 1: one after
        the other, each on all devices.
      names: the variants' names, taken from their `name` entries; empty if none has one.
      keep_checkpoints: whether finished trials keep their checkpoints.
      smallest_difference: smallest difference in final loss that matters, in nats per token. Only a
        larger difference makes a variant better or worse; within it, variants are equivalent.
    """

    variants: Sequence[Values]
    baseline: Values
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    search: Search | None = None
    tokens: int | None = None
    flops: float | None = None
    trials_per_batch: int | None = None
    names: Sequence[str | None] = ()
    keep_checkpoints: bool = True
    smallest_difference: float = 0.005

    def __post_init__(self) -> None:
        # As read from study.json: tuples instead of lists, Python's numbers instead of numpy's.
        set_ = lambda name, value: object.__setattr__(self, name, value)
        variants = inputs.variants_of(self.variants)
        set_("names", inputs.names_of(variants, self.names))
        set_("variants", [without_name(variant) for variant in variants])
        set_("baseline", without_name(inputs.values_of(self.baseline, "baseline")))
        set_("seeds", inputs.seeds_of(self.seeds, "the study's seeds="))
        for name, field in NUMBERS.items():
            set_(name, inputs.number(getattr(self, name), f"the study's {name}=", field.kind))

    @property
    def n_comparisons(self) -> int:
        """The number of variants that are compared with another."""
        return sum(self.baseline_of(variant) != variant for variant in self.variants)

    def fields_set(self) -> set[str]:
        """Returns the fields that the study sets in every trial, overriding the base."""
        searched = {LEARNING_RATE} if self.search else set()
        budget = {"train.steps"} if self.tokens or self.flops else set()
        axes = {name for variant in self.variants for name in variant}
        return axes | searched | budget | {SEED, "track.wandb.name"}

    def baseline_of(self, variant: Values) -> Values:
        """Returns the variant that this one is compared with; for a baseline, itself.

        If the study does not have that variant, its values are returned.
        """
        return baseline_values(variant, self.variants, self.baseline)

    def check(self) -> None:
        """Checks that the study can be run and can show a difference.

        Raises:
          UserError: naming the field that is wrong.
        """
        if not self.variants:
            raise UserError("the study has no variants")
        for name in {name for variant in self.variants for name in (*variant, *self.baseline)}:
            self._check_field(name)
        for values in (*self.variants, self.baseline):
            inputs.check_types(values)
        self._check_comparisons()
        if not isinstance(self.keep_checkpoints, bool):
            raise UserError("the study's keep_checkpoints= must be True or False")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"the study's seeds={self.seeds} must be distinct, and at least one")
        if self.tokens is not None and self.flops is not None:
            raise UserError("the study has a budget in tokens= and in flops=; set only one")
        _check_numbers(self, NUMBERS, "the study's ")
        self._check_search()
        self._check_power()

    def _check_search(self) -> None:
        search = self.search
        if search is not None and not isinstance(search, Search):
            raise UserError("the study's search= must be a Search, or None")
        if search is not None:
            _check_numbers(search, SEARCH_NUMBERS, "the study's search: ")
            search.check(self.seeds)
        searched = search.max_n * len(search.seeds) if search else 0
        verdict = len(self.seeds) * (search.max_contenders if search else 1)
        inputs.check_trials(len(self.variants), searched + verdict)

    def _check_comparisons(self) -> None:
        """Checks for duplicate variants, and for variants without a baseline."""
        fields = [explicit(variant) for variant in self.variants]
        compared = [self.baseline_of(variant) for variant in self.variants]
        for i, (variant, other) in enumerate(zip(self.variants, compared, strict=True)):
            described = describe(variant) or "that equals the base"
            if fields[i] in fields[:i]:
                raise UserError(f"the study has the variant {described} twice")
            if other not in self.variants:
                raise UserError(
                    f"the study has no variant {describe(other) or 'that equals the base'}, which "
                    f"{described} would be compared with; add it, or choose another baseline"
                )
        alone = [variant for variant in compared if compared.count(variant) == 1]
        if alone and len(fields) > 1:
            raise UserError(
                f"the study compares {describe(alone[0])} with nothing but itself: "
                f"{self._unmatched(alone[0])} differs from all other variants; set baseline= to "
                "the variant that the others are compared with"
            )

    def _unmatched(self, variant: Values) -> str:
        """Returns the matched fields in which a variant differs from the others."""
        matched = matched_fields(self.variants, self.baseline)
        values = {name: [other.get(name) for other in self.variants] for name in matched}
        return ", ".join(n for n in matched if any(v != variant.get(n) for v in values[n]))

    def _check_power(self) -> None:
        n, needed = self.n_comparisons, seeds_to_reject(self.n_comparisons)
        if n and len(self.seeds) < needed:
            raise UserError(
                f"with {counted(len(self.seeds), 'seed')} the study can show no difference in "
                f"{counted(n, 'comparison')}, however large; set seeds= to at least {needed} seeds"
            )

    def _check_field(self, name: str) -> None:
        if name not in FIELDS:
            hint = renamed(name) or suggestion(name, FIELDS)
            raise UserError(f"the study varies '{name}', which is not a config field{hint}")
        if name == SEED:
            raise UserError("the study varies 'seed'; list its seeds in seeds= instead")
        if name == "train.eval_tokens":
            raise UserError(
                f"the study varies {name}, so losses would be measured on different texts; set it "
                "in get_config(), for all variants"
            )
        if name == LEARNING_RATE and self.search is not None:
            raise UserError(
                f"the study varies {LEARNING_RATE} and has a search= for it; use only one"
            )
        if name == "train.steps" and (self.tokens or self.flops):
            raise UserError("the study varies train.steps and has a budget; use only one")


def _check_numbers(of: Study | Search, fields: Mapping[str, Field], label: str) -> None:
    for name, field in fields.items():
        field.validated(getattr(of, name), f"{label}{name}")


def describe(values: Values) -> str:
    """Describes values as in `placement=post_ln,n_layer=8`, with field names as in `short`."""
    return ",".join(f"{short(name)}={_shown(value)}" for name, value in explicit(values).items())


def short(field: str) -> str:
    """Returns the last part of a field's name, or the whole name if that is ambiguous."""
    if field == "placement.preset":
        return "placement"  # clearer than `preset`
    leaf = field.rpartition(".")[2]
    return leaf if sum(name.rpartition(".")[2] == leaf for name in FIELDS) == 1 else field


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
