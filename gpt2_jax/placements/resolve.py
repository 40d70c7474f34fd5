"""Resolves a preset and its overrides to a placement, and a placement to typed specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

from gpt2_jax.placements.axes import AXES, Placement
from gpt2_jax.placements.catalogue import PRESETS
from gpt2_jax.placements.expressions import (
    pair,
    parse_expression,
    parse_scale,
    sides,
    words,
)
from gpt2_jax.placements.overrides import Override, parse_overrides
from gpt2_jax.placements.registry import SUPPORTS
from gpt2_jax.placements.spec import (
    AttentionSpec,
    BlockSpec,
    ConnectionSpec,
    EmbeddingSpec,
    MLPSpec,
    NormKind,
    Parametrization,
    PositionSpec,
    StackSpec,
    SublayerSpec,
    TowerSpec,
)
from gpt2_jax.placements.towers import MLP, TowerShape

COORDINATES = "coordinates"  # added by positions_at=block; not a value of the axis `cross_layer`
# In the order in which they change the stream: U-Net skips before x0.
CROSS_LAYER = ("unet", "x0", COORDINATES, "dense", "backout")


def resolve(preset: str, overrides: Mapping[str, Any]) -> Placement:
    """Returns a preset with some axes overridden.

    An override also removes its axis from the preset's own `layer_overrides`; an overriding
    `layer_overrides` is used as is.

    Raises:
      ValueError: if the preset's `layer_overrides` cannot be parsed.
    """
    base, given = PRESETS[preset], dict(overrides)
    if "layer_overrides" not in given and base.layer_overrides:
        remaining = [
            Override(e.where, {k: v for k, v in e.changes.items() if k not in given})
            for e in parse_overrides(base.layer_overrides)
        ]
        given["layer_overrides"] = "; ".join(str(e) for e in remaining if e.changes)
    return dataclasses.replace(base, **given)


def differences(placement: Placement, other: Placement) -> dict[str, Any]:
    """Returns the axes in which a placement differs from another, with its values."""
    values = {name: getattr(placement, name) for name in AXES}
    return {name: value for name, value in values.items() if value != getattr(other, name)}


@lru_cache(maxsize=64)
def specify(placement: Placement, tower: TowerShape) -> TowerSpec:
    """Returns the typed spec of a placement in a tower.

    Raises:
      ValueError: if one of the placement's strings cannot be parsed.
    """
    p = placement
    first, second = pair(p.x0_scales)
    group_size = depth_groups(p, tower.n_sublayers)[1]
    return TowerSpec(
        tower=tower,
        stacks=stacks(p, tower),
        connection=ConnectionSpec(p.connection, p.gate_bias, p.n_streams, p.rank, group_size),
        norm=NormKind(p.norm_type, p.norm_eps, p.norm_bias, parse_expression(p.norm_gain)),
        embedding=EmbeddingSpec(
            std=parse_expression(p.embedding_std),
            multiplier=parse_scale(p.embedding_multiplier),
            multiplies_sum=p.multiplier_target == "sum",
            norm=p.embedding_norm,
            unit_tokens=p.fixnorm,
        ),
        positions=PositionSpec(p.positions, p.positions_at),
        attention=AttentionSpec(
            query_init=parse_expression(p.query_init),
            key_init=parse_expression(p.key_init),
            head_scale=p.head_scale,
            shaped=p.shaped_attention,
            identity_values=p.identity_values,
        ),
        mlp=MLPSpec(p.activation, p.hidden_scale),
        parametrization=Parametrization(p.parametrization, p.base_n_layer, p.base_n_embd),
        init=p.init,
        data_dependent_init=p.data_dependent_init,
        scalar_bias=p.scalar_bias,
        unit_weights=p.unit_weights,
        final_norm=has_final_norm(p, tower.n_layer),
        logit_scale=p.logit_scale,
        cross_layer=_cross_layer(p),
        x0_scales=(parse_expression(first), parse_expression(second)),
    )


def at_block(placement: Placement, l: int, n_layer: int) -> Placement:
    """Returns the placement of block l (from 1), with `layer_overrides` applied."""
    changes: dict[str, Any] = {"layer_overrides": ""}
    for override in parse_overrides(placement.layer_overrides):
        if override.where({"l": float(l), "L": float(n_layer)}):
            changes |= override.changes
    return dataclasses.replace(placement, **changes)


def sites(placement: Placement, sublayer: str) -> frozenset[str]:
    """Returns the norm sites of one of a block's sublayers, by name."""
    return frozenset(words(sides(placement.norm_sites, (sublayer,))[0]))


def _block(placement: Placement, values: str, names: tuple[str, ...]) -> BlockSpec:
    """Returns the spec of a block; its placement has no `layer_overrides`."""
    p = placement
    value = lambda text, name: sides(text, (name,))[0]
    sublayers = [
        SublayerSpec(
            name=name,
            index=i,
            norm_sites=sites(p, name),
            skip_scale=parse_scale(value(p.skip_scale, name)),
            branch_scale=parse_scale(value(p.branch_scale, name)),
            input_scale=parse_scale(value(p.input_scale, name)),
            drop_path=parse_expression(value(p.drop_path, name)),
            norm_alpha=parse_expression(value(p.norm_alpha, name)),
            input_init=parse_expression(value(p.value_init, name)),
            output_init=parse_expression(value(p.residual_init, name)),
        )
        for i, name in enumerate(names)
    ]
    return BlockSpec(tuple(sublayers), values)


@lru_cache(maxsize=64)
def block_ranges(placement: Placement, n_layer: int) -> tuple[tuple[Placement, str, range], ...]:
    """Returns ranges of blocks with the same spec: placement, `BlockSpec.values`, and layers."""
    by_depth = SUPPORTS[placement.connection].shapes_by_depth

    def key(layer: int) -> tuple[Placement, str, int]:
        values = placement.value_residual
        if values != "none" and layer == 0:
            values = "source"
        return at_block(placement, layer + 1, n_layer), values, layer if by_depth else 0

    groups = [(k, list(layers)) for k, layers in groupby(range(n_layer), key)]
    return tuple((p, values, range(x[0], x[-1] + 1)) for (p, values, _), x in groups)


def stacks(placement: Placement, tower: TowerShape) -> tuple[StackSpec, ...]:
    """Returns the stacks of a tower's blocks, in order."""
    ranges, out = block_ranges(placement, tower.n_layer), []
    for block, values, layers in ranges:
        name = "all" if len(ranges) == 1 else f"l{layers.start + 1}_{layers.stop}"
        n_rows = placement.share_blocks or len(layers)
        spec = _block(block, values, tower.sublayers)
        out.append(StackSpec(layers.start, layers.stop, spec, n_rows, name))
    return tuple(out)


def has_final_norm(placement: Placement, n_layer: int) -> bool:
    """Returns whether a tower has a final norm; by default, unless the last block ends in one."""
    if placement.norm_type == "none":
        return False
    if placement.final_norm != "auto":
        return placement.final_norm == "yes"
    if {"dense", "backout"} & {*words(placement.cross_layer)}:
        return True  # they add to the stream after its last norm
    if SUPPORTS[placement.connection].final_norm:
        return True
    return "post" not in sites(at_block(placement, n_layer, n_layer), MLP)


def depth_groups(placement: Placement, n_sublayers: int) -> tuple[int, int]:
    """Returns the number of groups of sublayers for `attention_residuals`, and their size."""
    size = -(-n_sublayers // (placement.depth_groups or n_sublayers))
    return -(-n_sublayers // size), size


def _cross_layer(placement: Placement) -> tuple[str, ...]:
    found = {*words(placement.cross_layer)}
    if placement.positions_at == "block":
        found.add(COORDINATES)
    return tuple(word for word in CROSS_LAYER if word in found)
