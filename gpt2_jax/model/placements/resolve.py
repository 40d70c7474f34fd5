"""From a config to the placement that it means: the preset, what overrides it, and its segments."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, TypeAlias

from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.placements.axes import AXES, CONNECTIONS, PER_BLOCK, Placement
from gpt2_jax.model.placements.presets import PRESETS
from gpt2_jax.model.placements.rules import Rule, pair, rule, values_at

ModelConfig: TypeAlias = ConfigDict | FrozenConfigDict


def resolve(cfg: ModelConfig) -> Placement:
    """Returns the placement that `config.model` describes: its preset with what overrides it.

    An override reaches the preset's exceptions too: they lose what they say of that axis. Given
    `model.exceptions` are kept as they are.
    """
    preset = PRESETS[cfg.placement]
    given = {name: cfg[name] for name in AXES if cfg[name] is not None}
    if "exceptions" not in given and preset.exceptions:
        kept = [
            Exceptional(e.where, {k: v for k, v in e.changes.items() if k not in given})
            for e in parse_exceptions(preset.exceptions)
        ]
        given["exceptions"] = "; ".join(str(e) for e in kept if e.changes)
    return dataclasses.replace(preset, **given)


def differences(placement: Placement, other: Placement) -> tuple[str, ...]:
    """Returns the axes in which two placements differ."""
    return tuple(n for n in AXES if getattr(placement, n) != getattr(other, n))


@dataclass(frozen=True)
class Exceptional:
    """Blocks that differ from the others: a condition on l, and the axes changed there."""

    where: Rule
    changes: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.where.text}: " + ", ".join(f"{k}={v}" for k, v in self.changes.items())


def parse_exceptions(text: str) -> list[Exceptional]:
    """Returns what `condition: axis=value, ...; ...` says.

    Raises:
      ValueError: saying what in it cannot be.
    """
    out = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        condition, colon, rest = part.partition(":")
        if not colon or (where := rule(condition)).names - {"l", "L"}:
            raise ValueError(f"{part!r} is no `condition on l and L: axis=value, ...`")
        changes = dict(_change(one) for one in re.split(r",\s*(?=[a-z_]+\s*=[^=])", rest))
        out.append(Exceptional(where, changes))
    return out


def _change(text: str) -> tuple[str, str]:
    name, equals, value = (word.strip() for word in text.partition("="))
    if not equals or name not in PER_BLOCK:
        raise ValueError(f"{text.strip()!r} changes none of {', '.join(PER_BLOCK)}")
    return name, value


def at_block(placement: Placement, l: int, n_layer: int) -> Placement:
    """Returns the placement as block l (from 1) has it, without exceptions."""
    changes: dict[str, Any] = {"exceptions": ""}
    for one in parse_exceptions(placement.exceptions):
        if one.where({"l": float(l), "L": float(n_layer)}):
            changes |= one.changes
    return dataclasses.replace(placement, **changes)


def sites(placement: Placement, which: int) -> frozenset[str]:
    """Returns the norm sites of a block's attention (0) or MLP (1)."""
    text = pair(placement.norms)[which]
    return frozenset(word.strip() for word in text.split("+")) - {"none", ""}


@dataclass(frozen=True)
class Segment:
    """A run of blocks that are built alike, with one stack of parameters.

    Attributes:
      start, stop: 0-based, as for `range`.
      placement: of its blocks. values: `own`, or `source` for the block whose values later blocks
        use, or how they use them.
      rows: how many different blocks are in the stack.
      name: of the stack among the model's parameters.
    """

    start: int
    stop: int
    placement: Placement
    values: str
    rows: int
    name: str

    @property
    def repeats(self) -> int:
        """How many times in a row each of the stack's blocks is applied."""
        return (self.stop - self.start) // self.rows


@lru_cache(maxsize=64)
def segments(placement: Placement, n_layer: int) -> tuple[Segment, ...]:
    """Returns the segments of a model's blocks, in order."""
    by_depth = CONNECTIONS[placement.connection].by_depth

    def kind(layer: int) -> tuple[Placement, str, int]:
        values = placement.values
        if values != "own" and layer == 0:
            values = "source"
        return at_block(placement, layer + 1, n_layer), values, layer if by_depth else 0

    runs = [(key, list(layers)) for key, layers in groupby(range(n_layer), kind)]
    out = []
    for (block, values, _), layers in runs:
        start, stop = layers[0], layers[-1] + 1
        name = "blocks" if len(runs) == 1 else f"blocks_{start + 1}_{stop}"
        rows = placement.share_blocks or stop - start
        out.append(Segment(start, stop, block, values, rows, name))
    return tuple(out)


def has_final_norm(placement: Placement, n_layer: int) -> bool:
    """Returns whether a norm follows the last block: by rule, unless the stream ends in one."""
    if placement.norm == "none":
        return False
    if placement.final_norm != "auto":
        return placement.final_norm == "yes"
    if {"dense", "backout"} & {*across_words(placement)}:
        return True  # they add to the stream behind its last norm
    if CONNECTIONS[placement.connection].final:
        return True
    return "post" not in sites(at_block(placement, n_layer, n_layer), 1)


def depth_groups(placement: Placement, n_layer: int) -> tuple[int, int]:
    """Returns into how many groups sublayers are summed, and how many there are in each."""
    n_sublayers = 2 * n_layer
    size = -(-n_sublayers // (placement.depth_groups or n_sublayers))
    return -(-n_sublayers // size), size


def across_words(placement: Placement) -> tuple[str, ...]:
    """Returns what earlier layers leave for later ones."""
    words = (word.strip() for word in placement.across.split("+"))
    return tuple(word for word in words if word not in ("none", ""))


def block_values(cfg: ModelConfig, l: int, which: int = 0) -> dict[str, Any]:
    """Returns the values of rules in block l (from 1) before the first update."""
    return values_at(l, cfg.n_layer, cfg.n_embd, cfg.init_std, which)
