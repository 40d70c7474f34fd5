"""Finds errors in a placement; each message is one line that names the field and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from gpt2_jax.nn.norm_types import NORM_TYPES
from gpt2_jax.placements.axes import (
    ATTENTION_SITES,
    BLOCK_SITES,
    MLP_SITES,
    QK_SITES,
    SCALES,
    VECTOR_POSITIONS,
    Placement,
)
from gpt2_jax.placements.check_expressions import EXPRESSIONS, Model, cross_fault, text_faults
from gpt2_jax.placements.expressions import parse_scale, sides, words
from gpt2_jax.placements.overrides import parse_overrides
from gpt2_jax.placements.registry import IN_BRANCH_SITES, SUPPORTS, Supports
from gpt2_jax.placements.resolve import (
    COORDINATES,
    CROSS_LAYER,
    block_ranges,
    depth_groups,
    has_final_norm,
    resolve,
    sites,
)
from gpt2_jax.placements.towers import TowerShape

DEFAULT_STD = 0.02  # of model.init_std
WITH_CROSS = "cross-attention: set model.architecture to decoder or encoder"
SUBLAYER_AXES = tuple(name for name, (*_, barred) in EXPRESSIONS.items() if barred)
LAYER_NAMES = {"attn": "attention", "cross": "cross-attention", "mlp": "the MLP"}
KNOWN_SITES = {"attn": ATTENTION_SITES, "cross": ATTENTION_SITES, "mlp": MLP_SITES}

Overrides: TypeAlias = Mapping[str, Any]


def find_fault(model: Model, preset: str, overrides: Overrides, last_step: int = 0) -> str | None:
    """Returns the first error in a placement for a model, starting with the axis; None if valid.

    Args:
      overrides: axes that override the preset's.
      last_step: the last step at which expressions in t must have a value.
    """
    return next(_faults(model, preset, overrides, last_step), None)


def depends_on_steps(placement: Placement, n_layer: int) -> str | None:
    """Returns an axis whose expression depends on the step t, or None."""
    for block in _blocks(placement, n_layer):
        for axis in (*SCALES, "drop_path"):
            if any("t" in parse_scale(text).first.names for text in sides(getattr(block, axis))):
                return axis
    return None


def _faults(model: Model, preset: str, overrides: Overrides, last_step: int) -> Iterator[str]:
    try:
        placement = resolve(preset, overrides)
    except ValueError as error:  # in the preset's own layer_overrides
        yield f"layer_overrides: {error}"
        return
    for tower in model.towers:
        yield from _tower_faults(model, tower, placement, overrides, last_step)


def _tower_faults(
    model: Model, tower: TowerShape, placement: Placement, overrides: Overrides, last_step: int
) -> Iterator[str]:
    yield from text_faults(model, tower, placement, last_step)
    checks: list[Callable[[Model, TowerShape, Placement, Overrides], Iterator[str]]] = [
        _cross_faults,
        _initial_faults,
        _site_faults,
        _supports_faults,
        _data_init_faults,
        _size_faults,
        _norm_faults,
        _position_faults,
        _unit_stream_faults,
        _depth_faults,
    ]
    for check in checks:
        yield from check(model, tower, placement, overrides)


def _blocks(placement: Placement, n_layer: int) -> list[Placement]:
    return [block for block, _, _ in block_ranges(placement, n_layer)]


def _cross_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    """Reports what has no meaning with cross-attention, and values for it where there is none."""
    for name in (*SUBLAYER_AXES, "norm_sites"):
        if name in given and (fault := cross_fault(model, name, given[name])):
            yield fault
    if not tower.has_cross:
        return
    name = placement.connection
    if not SUPPORTS[name].cross:
        yield f"connection={name} does not support {WITH_CROSS}"
    if placement.shaped_attention or placement.identity_values:
        axis = "shaped_attention" if placement.shaped_attention else "identity_values"
        yield f"{axis}=True needs as many queries as keys, so it does not support {WITH_CROSS}"


def _initial_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    """Reports initial values without effect."""
    if placement.unit_weights:  # the length of a random vector does not matter
        names = ["init", "residual_init", "value_init", "query_init", "key_init"]
        for name in names + ["embedding_std"] * (placement.positions != "learned"):
            if name in given:
                yield f"{name}={given[name]!r} has no effect: unit_weights=True sets lengths to 1"
    texts = [getattr(placement, name) for name in EXPRESSIONS] + [placement.layer_overrides]
    uses_std = any(re.search(r"\bstd\b", text) for text in texts)
    unused = placement.init != "normal" and model.tie_head and not uses_std
    if model.init_std != DEFAULT_STD and unused:
        yield (
            f"init={placement.init} and embedding_std={placement.embedding_std!r} do not use std: "
            f"model.init_std={model.init_std} has no effect"
        )


def _site_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    """Reports unknown sites, and sites that exclude each other."""
    for block in _blocks(placement, tower.n_layer):
        if block.norm_sites.count("|") > 2:
            yield f"norm_sites={block.norm_sites!r} has more than two bars"
            return
        for name in tower.sublayers:
            present, layer, known = sites(block, name), LAYER_NAMES[name], KNOWN_SITES[name]
            if unknown := sorted(present - {*known}):
                choices = ", ".join(known)
                wrong = f"{unknown[0]!r} is not a norm site of {layer}; choose one of {choices}"
                yield f"norm_sites={block.norm_sites!r}: {wrong}"
            if len(present & {*QK_SITES}) > 1:
                yield f"norm_sites={block.norm_sites!r}: choose one of {', '.join(QK_SITES)}"
            if present & {"cosine", "unit_qk"}:
                yield from _score_faults(model, block)


def _score_faults(model: Model, block: Placement) -> Iterator[str]:
    """Reports scales of attention scores that a norm site with its own scale replaces."""
    norms = f"norm_sites={block.norm_sites!r} sets the scale of the scores"
    if not model.scale_attn_weights:
        yield f"{norms}: model.scale_attn_weights=False has no effect"
    if model.scale_attn_by_inverse_layer_idx:
        yield f"{norms}: model.scale_attn_by_inverse_layer_idx=True has no effect"


def _supports_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    name = placement.connection
    supports = SUPPORTS[name]
    for block in _blocks(placement, tower.n_layer):
        yield from _block_faults(name, supports, block, tower.sublayers)
        for axis in SCALES:
            if axis not in supports.scales and getattr(block, axis) != "1":
                yield f"{axis}={getattr(block, axis)!r} is not supported by connection={name}"
    if placement.scalar_bias and supports.shapes_by_depth:
        yield f"scalar_bias=True is not supported by connection={name}"
    if placement.identity_values and placement.value_residual != "none":
        yield f"value_residual={placement.value_residual} needs W_V: set identity_values=False"
    if placement.identity_values and sides(placement.value_init)[0] != "1":
        yield f"value_init={placement.value_init!r}: identity_values=True removes W_V"
    if placement.parametrization != "standard" and "branch_scale" not in supports.scales:
        kind = placement.parametrization
        yield f"parametrization={kind}: connection={name} does not scale sublayer outputs"
    if placement.gate_bias != 2.0 and not supports.gate_bias:
        yield f"gate_bias={placement.gate_bias} is not supported by connection={name}"
    if supports.multi_stream and words(placement.cross_layer):
        skips = placement.cross_layer
        yield f"cross_layer={skips!r} needs a single stream; connection={name} has several"
    if supports.multi_stream and placement.positions_at == "block":
        yield f"positions_at=block needs a single stream; connection={name} has several"
    if placement.x0_scales != "1 | 0" and "x0" not in words(placement.cross_layer):
        yield f"x0_scales={placement.x0_scales!r} needs cross_layer=x0"


def _data_init_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    """Reports what data-dependent initialization cannot measure."""
    if not placement.data_dependent_init:
        return
    blocks, field = _blocks(placement, tower.n_layer), "data_dependent_init=True"
    names = tower.sublayers
    scales = [parse_scale(text) for block in blocks for text in sides(block.skip_scale, names)]
    if not SUPPORTS[placement.connection].data_dependent_init:
        yield f"{field} is not supported by connection={placement.connection}"
    if {scale.kind for scale in scales} - {"learned_vector", "learned_scalar"}:
        yield f"{field} needs a learned skip_scale for each sublayer"
    if {scale.first.text for scale in scales} != {"1"}:
        text = placement.skip_scale
        yield f"{field} replaces the initial value in skip_scale={text!r}: set that value to 1"
    if any("skip" in sites(block, which) for block in blocks for which in names):
        yield f"{field} does not support the norm site 'skip'"
    if placement.share_blocks:
        yield f"{field} measures each block separately: set share_blocks=0"


def _size_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    name = placement.connection
    supports = SUPPORTS[name]
    for axis in ("n_streams", "rank", "depth_groups"):
        if axis in given and not getattr(supports, axis):
            yield f"{axis}={given[axis]} is not supported by connection={name}"
    if supports.splits_stream and model.n_embd % placement.n_streams:
        yield f"n_streams={placement.n_streams} must divide model.n_embd={model.n_embd}"
    if groups := given.get("depth_groups"):
        possible, size = depth_groups(placement, tower.n_sublayers)
        if possible != groups:
            yield (
                f"depth_groups={groups} is impossible with the {tower.n_sublayers} sublayers"
                f"{tower.label}: groups of {size} make {possible}; set it to {possible}"
            )
    if supports.max_streams and placement.n_streams > supports.max_streams:
        most = supports.max_streams
        yield f"n_streams={placement.n_streams}: connection={name} supports at most {most}"


def _block_faults(
    name: str, supports: Supports, block: Placement, sublayers: tuple[str, ...]
) -> Iterator[str]:
    by_sublayer = [sites(block, which) & {*BLOCK_SITES} for which in sublayers]
    norms = f"norm_sites={block.norm_sites!r}: connection={name}"
    for present in by_sublayer:
        if refused := sorted(present - {*supports.sites}):
            choices = ", ".join(supports.sites)
            yield f"{norms} does not support {refused[0]!r}; choose one of {choices}"
        if missing := sorted({*supports.required_sites} - present):
            yield f"{norms} needs {missing[0]!r} in all sublayers"
    if supports.whole_block:
        outside = {present - {*IN_BRANCH_SITES} for present in by_sublayer}
        if len(outside) > 1:
            yield f"{norms} has one residual add per block; remove the bar"
        if "|" in block.skip_scale:
            yield f"skip_scale={block.skip_scale!r}: connection={name} has one skip; remove the bar"


def _norm_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    kind, uses = placement.norm_type, NORM_TYPES[placement.norm_type]
    blocks = _blocks(placement, tower.n_layer)
    present = [sites(block, i) - {"cosine", "unit_qk"} for block in blocks for i in tower.sublayers]
    outside = placement.embedding_norm or has_final_norm(placement, tower.n_layer)
    for name in ("norm_type", "norm_eps", "norm_bias"):
        if given.get(name, "none") != "none" and not any(present) and not outside:
            yield f"{name}={given[name]} has no effect: there is no norm"
    if kind == "none" and any(present):
        where = placement.norm_sites
        yield f"norm_type=none, but norm_sites={where!r}: choose a type, or set norm_sites=none"
    if kind == "none" and (placement.embedding_norm or placement.final_norm == "yes"):
        yield "norm_type=none excludes embedding_norm=True and final_norm=yes"
    if "norm_bias" in given and not uses.bias:
        yield f"norm_bias={placement.norm_bias} is not used by norm_type={kind}, which has no bias"
    if "norm_eps" in given and not uses.eps:
        yield f"norm_eps={placement.norm_eps} is not used by norm_type={kind}"
    if "norm_alpha" in given and not uses.alpha:
        yield f"norm_alpha={placement.norm_alpha!r} is not used by norm_type={kind}"
    gained = [s - {*QK_SITES} for s in present]
    if "norm_gain" in given and (not uses.gain or not any(gained)):
        gain = placement.norm_gain
        yield f"norm_gain={gain!r} has no effect: no norm in a block has a gain"


def _position_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    kind, where = placement.positions, placement.positions_at
    if where != "embedding" and kind not in VECTOR_POSITIONS:
        yield f"positions_at={where} has no effect: positions={kind} has no vectors to add"
    if where == "mlp" and not SUPPORTS[placement.connection].positions_at_mlp:
        yield f"positions_at=mlp is not supported by connection={placement.connection}"
    if (kind.startswith("sinusoidal") or where == "block") and model.n_embd % 2:
        yield f"positions_at={where} with sinusoids needs an even model.n_embd, not {model.n_embd}"
    if kind == "rotary" and model.n_embd // model.n_head % 2:
        yield f"positions=rotary needs an even head width, not {model.n_embd // model.n_head}"
    if placement.multiplier_target == "sum" and parse_scale(placement.embedding_multiplier).is_one:
        yield "multiplier_target=sum has no effect: set embedding_multiplier"
    if placement.multiplier_target == "sum" and (where == "block" or kind in ("rotary", "none")):
        yield "multiplier_target=sum needs positions that are added to the embedding"
    if placement.fixnorm and "embedding_std" in given:
        yield "embedding_std has no effect: fixnorm=True scales token vectors to length 1"


def _unit_stream_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    """Reports what only rescales a stream that the connection normalizes to length 1."""
    name = placement.connection
    if not SUPPORTS[name].unit_stream:
        return
    if placement.embedding_norm and not NORM_TYPES[placement.norm_type].gain:
        yield f"embedding_norm=True has no effect: connection={name} normalizes the stream"
    if placement.final_norm == "yes" and placement.norm_type == "l2":
        yield f"final_norm=yes has no effect: connection={name} ends in a stream of length 1"
    added = placement.positions in VECTOR_POSITIONS
    factor = parse_scale(placement.embedding_multiplier)
    rescales = factor.kind != "learned_vector" and not factor.is_one
    if rescales and (placement.multiplier_target == "sum" or not added):
        text = placement.embedding_multiplier
        yield f"embedding_multiplier={text!r} has no effect: connection={name} normalizes it away"


def _depth_faults(
    model: Model, tower: TowerShape, placement: Placement, given: Overrides
) -> Iterator[str]:
    """Reports what does not fit the number of blocks."""
    known = [name for name in CROSS_LAYER if name != COORDINATES]
    for word in words(placement.cross_layer):
        if word not in known:
            field = f"cross_layer={placement.cross_layer!r}"
            yield f"{field}: {word!r} is unknown; choose one of {', '.join(known)}"
    n_layer, depth = tower.n_layer, f"model.{tower.kind.depth}"
    if "unet" in words(placement.cross_layer) and n_layer % 2:
        yield f"cross_layer=unet pairs blocks: {depth}={n_layer} must be even"
    groups = placement.share_blocks
    if groups and n_layer % groups:
        yield f"share_blocks={groups} must divide {depth}={n_layer}"
    if model.attention not in ("auto", "xla") and placement.shaped_attention:
        kernel = f"model.attention={model.attention}"
        yield f"shaped_attention=True is not supported by {kernel}; set it to xla"
    if groups and SUPPORTS[placement.connection].shapes_by_depth:
        yield f"share_blocks={groups} is not supported by connection={placement.connection}"
    if groups and len(block_ranges(placement, n_layer)) > 1:
        yield f"share_blocks={groups} needs value_residual=none and empty layer_overrides"
    if placement.value_residual != "none" and n_layer < 2:
        yield f"value_residual={placement.value_residual} needs a second block: {depth} is 1"
    if placement.parametrization == "standard":
        for name in ("base_n_layer", "base_n_embd"):
            if name in given:
                yield f"{name}={given[name]} has no effect with parametrization=standard"
    for override in parse_overrides(placement.layer_overrides):
        blocks = range(1, n_layer + 1)
        if not any(override.where({"l": float(l), "L": float(n_layer)}) for l in blocks):
            text = override.where.text
            yield f"layer_overrides: {text} holds in none of {n_layer} blocks; raise {depth}"
