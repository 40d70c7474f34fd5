"""What makes no sense in a placement, said in one line that names the field and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from gpt2_jax.model.placements.axes import (
    ATTENTION_SITES,
    BLOCK_SITES,
    CONNECTIONS,
    IN_BRANCH_SITES,
    MLP_SITES,
    QK_SITES,
    SCALES,
    Honours,
    Placement,
)
from gpt2_jax.model.placements.resolve import (
    ModelConfig,
    across_words,
    block_values,
    depth_groups,
    has_final_norm,
    parse_exceptions,
    resolve,
    segments,
    sites,
)
from gpt2_jax.model.placements.rules import Rule, pair, rule, scale

ACROSS = ("x0", "unet", "dense", "backout")
MOST_PERMUTED = 6  # streams of mhc_lite: 720 matrices
USUAL_STD = 0.02  # GPT-2's, the default of model.init_std
BIASED = ("layernorm", "dyt", "derf")


LARGEST_VALUE = 1e30  # of a rule: factors beyond it overflow float32 in products


def find_fault(cfg: ModelConfig, last_step: int = 0) -> str | None:
    """Returns what makes no sense in the placement of a resolved `config.model`, or None.

    Args:
      last_step: until which rules in t need a value.
    """
    return next(_faults(cfg, last_step), None)


def depends_on_updates(cfg: ModelConfig) -> str | None:
    """Returns an axis whose rule has the updates t in it, None if there is none."""
    for block in _blocks(cfg, resolve(cfg)):
        for axis in (*SCALES, "drop_path"):
            if any("t" in scale(text).rule.names for text in pair(getattr(block, axis))):
                return axis
    return None


def _faults(cfg: ModelConfig, last_step: int) -> Iterator[str]:
    try:
        placement = resolve(cfg)
    except ValueError as error:  # a preset's exceptions are parsed when an axis is overridden
        yield f"exceptions: {error}"
        return
    yield from _text_faults(cfg, placement, last_step)
    checks: list[Callable[[ModelConfig, Placement], Iterator[str]]] = [
        _initial_faults,
        _site_faults,
        _honours_faults,
        _profile_faults,
        _size_faults,
        _norm_faults,
        _position_faults,
        _unit_faults,
        _depth_faults,
    ]
    for check in checks:
        yield from check(cfg, placement)


def _text_faults(cfg: ModelConfig, placement: Placement, last_step: int) -> Iterator[str]:
    """Rules that are none, or have no value at this size."""
    if placement.connection not in CONNECTIONS:
        yield f"connection={placement.connection!r} is unknown; there are {', '.join(CONNECTIONS)}"
    try:
        exceptions = parse_exceptions(placement.exceptions)
        for one, l in product(exceptions, range(1, cfg.n_layer + 1)):
            if np.isnan(one.where({"l": float(l), "L": float(cfg.n_layer)})):
                raise ValueError(f"{one.where.text!r} has no value in block {l} of {cfg.n_layer}")
    except ValueError as error:
        yield f"exceptions: {error}"
        return
    texts = [(name, getattr(placement, name)) for name in RULES]
    texts += [(name, text) for e in exceptions for name, text in e.changes.items()]
    for name, text in texts:
        if name != "norms" and (fault := _rule_fault(cfg, name, text, last_step)):
            yield f"{name}={text!r}: {fault}"


# Which names a rule may use, and what it may be: a learned scale, two rules with a bar.
RULES: dict[str, tuple[str, bool, bool]] = {
    "skip_scale": ("lLsSdt", True, True),
    "branch_scale": ("lLsSdt", True, True),
    "input_scale": ("lLsSdt", True, True),
    "drop_path": ("lLsSt", False, True),
    "norm_gain": ("lLsSd", False, False),
    "norm_alpha": ("lLsSd", False, True),
    "residual_init": ("lLsSd", False, True),
    "value_init": ("lLsSd", False, True),
    "query_init": ("lLsSd", False, False),
    "key_init": ("lLsSd", False, False),
    "embedding_std": ("LSd", False, False),
    "embedding_multiplier": ("LSd", True, False),
    "x0_scales": ("lL", False, True),
}


def _rule_fault(cfg: ModelConfig, name: str, text: str, last_step: int) -> str | None:
    allowed, learnable, barred = RULES[name]
    try:
        parts = pair(text)
        if "|" in text and not barred:
            return "it has no two sides"
        for which, part in enumerate(parts):
            if not learnable:
                rule(part)  # says that a learned factor is no arithmetic
            spec = scale(part)
            if spec.kind == "learned_block" and name == "embedding_multiplier":
                return "it stands in no block; take learned_scalar"
            if spec.kind == "learned_block" and parts[0] != parts[1]:
                return "learned_block is one factor for both sublayers; leave out the bar"
            if wrong := sorted(spec.rule.names - {*allowed, "std"}):
                return f"{', '.join(wrong)} has no meaning here; there are {', '.join(allowed)}"
            _check_values(cfg, name, spec.rule, which, last_step)
    except ValueError as error:
        return str(error)
    return None


def _check_values(cfg: ModelConfig, name: str, made: Rule, which: int, last_step: int) -> None:
    """Raises ValueError if a rule has no sensible value in a block, at the first or last step."""
    steps = {0, last_step} if "t" in made.names else {0}
    blocks = range(1, cfg.n_layer + 1) if made.names & {"l", "s"} else [1]
    for t, l in product(sorted(steps), blocks):
        value = float(made(block_values(cfg, l, which) | {"t": float(t)}))
        where = f"in block {l} of {cfg.n_layer}" + f" at t={t}" * (t > 0)
        if not np.isfinite(value):
            raise ValueError(f"it has no finite value {where}")
        if abs(value) > LARGEST_VALUE:
            raise ValueError(f"it is {value:g} {where}, and must be at most {LARGEST_VALUE:g}")
        if name == "drop_path" and not 0 <= value < 1:
            raise ValueError(f"it is {value:g} {where}, and must be at least 0 and below 1")
        if name.endswith(("_init", "_std")) and value < 0:
            raise ValueError(f"it is {value:g} {where}, and must not be negative")


def _blocks(cfg: ModelConfig, placement: Placement) -> list[Placement]:
    return [s.placement for s in segments(placement, cfg.n_layer)]


def _initial_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """Initial sizes that nothing has."""
    if placement.unit_weights:  # only directions are drawn
        names = ["init", "residual_init", "value_init", "query_init", "key_init"]
        for name in names + ["embedding_std"] * (placement.positions != "learned"):
            if cfg[name] is not None:
                yield f"{name}={cfg[name]!r} has no effect: unit_weights=True makes lengths 1"
    rules = [getattr(placement, name) for name in RULES] + [placement.exceptions]
    told = any(re.search(r"\bstd\b", text) for text in rules)
    if cfg.init_std != USUAL_STD and placement.init != "normal" and cfg.tie_head and not told:
        yield (
            f"init_std={cfg.init_std} has no effect: init={placement.init}, and "
            f"embedding_std={placement.embedding_std!r} names no std"
        )


def _site_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """Unknown sites, and sites that exclude each other."""
    for block in _blocks(cfg, placement):
        if block.norms.count("|") > 1:
            yield f"norms={block.norms!r} has more than one bar"
        for which, known in enumerate((ATTENTION_SITES, MLP_SITES)):
            here, side = sites(block, which), ("attention", "the MLP")[which]
            if unknown := sorted(here - {*known}):
                places = ", ".join(known)
                yield f"norms={block.norms!r}: {unknown[0]!r} is no site of {side}: {places}"
            if len(here & {*QK_SITES}) > 1:
                yield f"norms={block.norms!r}: choose one of {', '.join(QK_SITES)}"
            if here & {"cosine", "unit_qk"}:
                yield from _score_faults(cfg, block)


def _score_faults(cfg: ModelConfig, block: Placement) -> Iterator[str]:
    """Scales of attention's scores that norms with a scale of their own replace."""
    if not cfg.scale_attn_weights:
        yield f"scale_attn_weights=False has no effect with norms={block.norms!r}"
    if cfg.scale_attn_by_inverse_layer_idx:
        yield f"scale_attn_by_inverse_layer_idx=True has no effect with norms={block.norms!r}"


def _honours_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """What the connection would not make use of."""
    name = placement.connection
    honours = CONNECTIONS[name]
    for block in _blocks(cfg, placement):
        yield from _block_faults(name, honours, block)
        for axis in SCALES:
            if axis not in honours.scales and getattr(block, axis) != "1":
                yield f"{axis}={getattr(block, axis)!r} has no place in connection={name}"
    if placement.scalar_bias and honours.by_depth:
        yield f"scalar_bias=True has no place in connection={name}"
    if placement.identity_values and placement.values != "own":
        yield f"values={placement.values} needs values: set identity_values=False"
    if placement.identity_values and pair(placement.value_init)[0] != "1":
        yield f"value_init={placement.value_init!r}: identity_values=True leaves attention no W_V"
    if placement.parametrization != "standard" and "branch_scale" not in honours.scales:
        yield f"parametrization={placement.parametrization}: connection={name} scales no branches"
    if placement.gate_bias != 2.0 and name not in ("gru", "highway"):
        yield f"gate_bias={placement.gate_bias} has no place in connection={name}"
    if honours.several and across_words(placement):
        yield f"across={placement.across!r} needs a single stream; connection={name} has several"
    if honours.several and placement.positions_at == "block":
        yield f"positions_at=block needs a single stream; connection={name} has several"
    if placement.x0_scales != "1 | 0" and "x0" not in across_words(placement):
        yield f"x0_scales={placement.x0_scales!r} needs across=x0"


def _profile_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """What cannot be measured on the first batch."""
    name, blocks = placement.connection, _blocks(cfg, placement)
    learned = {scale(text).kind for block in blocks for text in pair(block.skip_scale)}
    if placement.profiled and (name != "plain" or learned - {"learned_vector", "learned_scalar"}):
        yield "profiled=True needs connection=plain and a learned skip_scale for each sublayer"
    first = {scale(text).rule.text for block in blocks for text in pair(block.skip_scale)}
    if placement.profiled and first != {"1"}:
        yield f"profiled=True measures where skip_scale={placement.skip_scale!r} starts: take 1"
    if placement.profiled and any("skip" in sites(b, w) for b in blocks for w in (0, 1)):
        yield "profiled=True measures a stream without norms at the site skip"
    if placement.profiled and placement.share_blocks:
        yield "profiled=True measures each block: it needs share_blocks=0"


def _size_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """Sizes that the connection does not have, or cannot have."""
    name = placement.connection
    honours = CONNECTIONS[name]
    if cfg.n_streams is not None and not honours.streams:
        yield f"n_streams={placement.n_streams} has no place in connection={name}"
    if honours.splits and cfg.n_embd % placement.n_streams:
        yield f"n_streams={placement.n_streams} must divide n_embd={cfg.n_embd}"
    if cfg.rank is not None and not honours.low_rank:
        yield f"rank={placement.rank} has no place in connection={name}"
    if cfg.depth_groups is not None and not honours.groups:
        yield f"depth_groups={placement.depth_groups} has no place in connection={name}"
    if cfg.depth_groups:
        there, _ = depth_groups(placement, cfg.n_layer)
        if there != cfg.depth_groups:
            yield (
                f"depth_groups={cfg.depth_groups}: {2 * cfg.n_layer} sublayers in equal groups "
                f"make {there}; set that"
            )
    if name == "mhc_lite" and placement.n_streams > MOST_PERMUTED:
        yield (
            f"n_streams={placement.n_streams} has too many permutations for connection={name}; "
            f"take at most {MOST_PERMUTED}"
        )


def _block_faults(name: str, honours: Honours, block: Placement) -> Iterator[str]:
    both = [sites(block, which) & {*BLOCK_SITES} for which in (0, 1)]
    for here in both:
        if refused := sorted(here - {*honours.sites}):
            yield (
                f"norms={block.norms!r}: connection={name} has no place for {refused[0]!r}; "
                f"there are {', '.join(honours.sites)}"
            )
        if missing := sorted({*honours.needs} - here):
            yield f"norms={block.norms!r}: connection={name} needs {missing[0]!r} in both sublayers"
    if honours.whole_block:
        if (both[0] ^ both[1]) - {*IN_BRANCH_SITES}:
            yield f"norms={block.norms!r}: connection={name} meets the stream once; drop the bar"
        if "|" in block.skip_scale:
            yield f"skip_scale={block.skip_scale!r}: connection={name} has one skip; drop the bar"


def _norm_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """Norm fields that nothing reads."""
    kind = placement.norm
    present = [sites(b, w) - {"cosine", "unit_qk"} for b in _blocks(cfg, placement) for w in (0, 1)]
    ends = placement.embedding_norm or has_final_norm(placement, cfg.n_layer)
    for name in ("norm", "norm_eps", "norm_bias"):
        if cfg[name] not in (None, "none") and not any(present) and not ends:
            yield f"{name}={cfg[name]} has nothing to act on: there is no norm"
    if kind == "none" and any(present):
        yield f"norms={placement.norms!r}, but norm=none: choose a kind of norm, or norms=none"
    if kind == "none" and (placement.embedding_norm or placement.final_norm == "yes"):
        yield "norm=none leaves no norm for embedding_norm or final_norm"
    if cfg.norm_bias is not None and kind not in BIASED:
        yield f"norm_bias={cfg.norm_bias} has no place in norm={kind}, which never has a bias"
    if cfg.norm_eps is not None and kind in ("dyt", "derf", "none"):
        yield f"norm_eps={cfg.norm_eps} has no place in norm={kind}"
    if cfg.norm_alpha is not None and kind not in ("dyt", "derf"):
        yield f"norm_alpha={cfg.norm_alpha!r} has no place in norm={kind}"
    gained = [s - {*QK_SITES} for s in present]
    if cfg.norm_gain is not None and (kind in ("rmsnorm_fixed", "l2", "none") or not any(gained)):
        yield f"norm_gain={cfg.norm_gain!r} has nothing to act on: no norm with a gain in a block"


def _position_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    kind, where = placement.positions, placement.positions_at
    if where != "embedding" and kind not in ("learned", "sinusoidal"):
        yield f"positions_at={where} has nothing to add with positions={kind}"
    if where == "mlp" and not CONNECTIONS[placement.connection].places:
        yield f"positions_at=mlp has no place in connection={placement.connection}"
    if (kind == "sinusoidal" or where == "block") and cfg.n_embd % 2:
        yield f"positions_at={where} with sinusoids needs an even n_embd, not {cfg.n_embd}"
    if kind == "rotary" and cfg.n_embd // cfg.n_head % 2:
        yield f"positions=rotary needs an even head width, not {cfg.n_embd // cfg.n_head}"
    if placement.multiplied == "sum" and scale(placement.embedding_multiplier).is_one:
        yield "multiplied=sum has nothing to multiply by: set embedding_multiplier"
    if placement.multiplied == "sum" and (where == "block" or kind in ("rotary", "none")):
        yield "multiplied=sum needs positions that are added to the embedding"
    if placement.fixnorm and cfg.embedding_std is not None:
        yield "embedding_std has no effect with fixnorm=True, which gives token vectors length 1"


def _unit_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """What only changes the size of a stream that is brought to length 1."""
    name = placement.connection
    if not CONNECTIONS[name].unit:
        return
    if placement.embedding_norm and placement.norm in ("l2", "rmsnorm_fixed"):
        yield f"embedding_norm=True has no effect: connection={name} norms the stream itself"
    if placement.final_norm == "yes" and placement.norm == "l2":
        yield f"final_norm=yes has no effect: connection={name} ends in a stream of length 1"
    added = placement.positions in ("learned", "sinusoidal")
    factor = scale(placement.embedding_multiplier)
    sized = factor.kind != "learned_vector" and not factor.is_one
    if sized and (placement.multiplied == "sum" or not added):
        text = placement.embedding_multiplier
        yield f"embedding_multiplier={text!r} has no effect: connection={name} norms the stream"


def _depth_faults(cfg: ModelConfig, placement: Placement) -> Iterator[str]:
    """What depth makes impossible."""
    for word in across_words(placement):
        if word not in ACROSS:
            yield f"across={placement.across!r}: {word!r} is unknown; there are {', '.join(ACROSS)}"
    if "unet" in across_words(placement) and cfg.n_layer % 2:
        yield f"across=unet pairs blocks: n_layer={cfg.n_layer} must be even"
    groups = placement.share_blocks
    if groups and cfg.n_layer % groups:
        yield f"share_blocks={groups} must divide n_layer={cfg.n_layer}"
    if cfg.attention == "cudnn" and placement.shaped_attention:
        yield "shaped_attention=True is not in cudnn's kernel; set attention=xla"
    if groups and len(segments(placement, cfg.n_layer)) > 1:
        yield f"share_blocks={groups} needs blocks that are alike: no exceptions, values=own"
    if placement.values != "own" and cfg.n_layer < 2:
        yield f"values={placement.values} needs a second block: n_layer is 1"
    if placement.parametrization == "standard":
        for name in ("base_n_layer", "base_n_embd"):
            if cfg[name] is not None:
                yield f"{name}={cfg[name]} has no effect with parametrization=standard"
    for one in parse_exceptions(placement.exceptions):
        blocks = range(1, cfg.n_layer + 1)
        if not any(one.where({"l": float(l), "L": float(cfg.n_layer)}) for l in blocks):
            yield f"exceptions: none of {cfg.n_layer} blocks has {one.where.text}; raise n_layer"
