"""Checks that a placement's expressions can be parsed and have values in range."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Protocol

import numpy as np

from gpt2_jax.placements.axes import OWN, Placement
from gpt2_jax.placements.expressions import (
    Expression,
    Sizes,
    names_cross,
    pair,
    parse_expression,
    parse_scale,
    sides,
)
from gpt2_jax.placements.overrides import parse_overrides
from gpt2_jax.placements.registry import SUPPORTS
from gpt2_jax.placements.towers import TowerShape

LARGEST_VALUE = 1e30  # products with larger factors overflow float32


class Model(Protocol):
    """What a placement is checked against: the config's `model` section."""

    @property
    def architecture(self) -> str: ...
    @property
    def n_head(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def init_std(self) -> float: ...
    @property
    def tie_head(self) -> bool: ...
    @property
    def scale_attn_weights(self) -> bool: ...
    @property
    def scale_attn_by_inverse_layer_idx(self) -> bool: ...
    @property
    def attention(self) -> str: ...
    @property
    def towers(self) -> tuple[TowerShape, ...]: ...
    def sizes(self, tower: TowerShape) -> Sizes: ...


def text_faults(
    model: Model, tower: TowerShape, placement: Placement, last_step: int
) -> Iterator[str]:
    """Reports strings that cannot be parsed, or have no valid value in this tower."""
    if placement.connection not in SUPPORTS:
        known = ", ".join(SUPPORTS)
        yield f"connection={placement.connection!r} is unknown; choose one of {known}{OWN}"
    try:
        overrides = parse_overrides(placement.layer_overrides)
        n = tower.n_layer
        for override, l in product(overrides, range(1, n + 1)):
            if not np.isfinite(override.where({"l": float(l), "L": float(n)})):
                where = f"in block {l} of {n}{tower.label}"
                raise ValueError(f"{override.where.text!r} has no finite value {where}")
    except ValueError as error:
        yield f"layer_overrides: {error}"
        return
    texts = [(name, getattr(placement, name)) for name in EXPRESSIONS]
    texts += [(name, text) for e in overrides for name, text in e.changes.items()]
    for name, text in texts:
        if name == "norm_sites":
            continue
        if fault := _expression_fault(model.sizes(tower), name, text, last_step):
            yield f"{name}={text!r}: {fault}"


# By axis: allowed names, whether a learned scale is allowed, and whether a bar is.
EXPRESSIONS: dict[str, tuple[str, bool, bool]] = {
    "skip_scale": ("lLsSdtMP", True, True),
    "branch_scale": ("lLsSdtMP", True, True),
    "input_scale": ("lLsSdtMP", True, True),
    "drop_path": ("lLsSt", False, True),
    "norm_gain": ("lLsSdMP", False, False),
    "norm_alpha": ("lLsSdMP", False, True),
    "residual_init": ("lLsSdMP", False, True),
    "value_init": ("lLsSdMP", False, True),
    "query_init": ("lLsSdMP", False, False),
    "key_init": ("lLsSdMP", False, False),
    "embedding_std": ("LSdMP", False, False),
    "embedding_multiplier": ("LSdMP", True, False),
    "x0_scales": ("lL", False, True),
}


def cross_fault(model: Model, name: str, text: str) -> str | None:
    """Returns what is wrong with a value for cross-attention in a model without it."""
    if names_cross(text) and not any(tower.has_cross for tower in model.towers):
        where = f"model.architecture={model.architecture}"
        return f"{name}={text!r} has a value for cross-attention, which {where} lacks; remove it"
    return None


def _expression_fault(sizes: Sizes, name: str, text: str, last_step: int) -> str | None:
    allowed, learnable, per_sublayer = EXPRESSIONS[name]
    names = sizes.tower.sublayers
    try:
        parts = pair(text) if name == "x0_scales" else sides(text, names)
        if "|" in text and not per_sublayer:
            return "this axis has one value; remove the bar"
        for index, part in enumerate(parts):
            if not learnable:
                parse_expression(part)  # fails for a learned scale
            spec = parse_scale(part)
            if spec.kind == "learned_block" and name == "embedding_multiplier":
                return "the embedding is not in a block; use learned_scalar"
            if spec.kind == "learned_block" and len({*parts}) > 1:
                return "learned_block is one factor for all sublayers; leave out the bar"
            if wrong := sorted(spec.first.names - {*allowed, "std"}):
                return f"{', '.join(wrong)} cannot be used here; choose from {', '.join(allowed)}"
            _check_values(sizes, name, spec.first, index, last_step)
    except ValueError as error:
        return str(error)
    return None


def _check_values(
    sizes: Sizes, name: str, expression: Expression, index: int, last_step: int
) -> None:
    """Raises ValueError if an expression is out of range in a block, at the first or last step."""
    steps = {0, last_step} if "t" in expression.names else {0}
    tower = sizes.tower
    blocks = range(1, tower.n_layer + 1) if expression.names & {"l", "s"} else [1]
    for t, l in product(sorted(steps), blocks):
        value = float(expression(sizes.values(l, index) | {"t": float(t)}))
        where = f"in block {l} of {tower.n_layer}{tower.label}" + f" at t={t}" * (t > 0)
        if not np.isfinite(value):
            raise ValueError(f"it has no finite value {where}")
        if abs(value) > LARGEST_VALUE:
            raise ValueError(f"it is {value:g} {where}; it must be at most {LARGEST_VALUE:g}")
        if name == "drop_path" and not 0 <= value < 1:
            raise ValueError(f"it is {value:g} {where}; it must be at least 0 and below 1")
        if name.endswith(("_init", "_std")) and value < 0:
            raise ValueError(f"it is {value:g} {where}; it must not be negative")
