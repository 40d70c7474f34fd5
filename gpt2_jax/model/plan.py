"""What the parts of a block are built from, and the scales whose values follow rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.norm import Identity, Norm, NormSpec, make_norm
from gpt2_jax.model.parametrization import init_factor
from gpt2_jax.model.parts import Context, Init, Role
from gpt2_jax.model.placements.axes import QK_SITES, Placement
from gpt2_jax.model.placements.resolve import Segment, sites
from gpt2_jax.model.placements.rules import ScaleSpec, pair, rule, scale, values_at

ATTN, MLP = 0, 1  # which of a block's two sublayers


@dataclass(frozen=True)
class Plan:
    """One block before it is built.

    Attributes:
      segment: the run of blocks that it belongs to.
      init: initial values, of this block.
    """

    cfg: FrozenConfigDict
    segment: Segment
    init: Init

    @property
    def placement(self) -> Placement:
        """The placement as this block has it."""
        return self.segment.placement

    def value(self, text: str, which: int) -> Any:
        """Returns a rule's value in this block before the first update; a float where it can be."""
        made = rule(text)
        sizes = self.cfg.n_layer, self.cfg.n_embd, self.cfg.init_std, which
        if made.names & {"l", "s"}:
            return made(values_at(jnp.asarray(self.init.layer + 1, jnp.float32), *sizes), jnp)
        return made(values_at(1, *sizes))

    def has(self, site: str, which: int) -> bool:
        """Returns whether a norm stands at a site of attention or of the MLP."""
        return site in sites(self.placement, which)

    def norm(
        self, site: str, which: int, width: int | None = None, present: bool = True
    ) -> Norm | Identity:
        """Returns the norm at a site, or the identity."""
        spec = norm_spec(
            self.cfg,
            self.placement,
            gain=1.0 if site in QK_SITES else self.value(self.placement.norm_gain, which),
            alpha=self.value(pair(self.placement.norm_alpha)[which], which),
        )
        return make_norm(width or self.cfg.n_embd, spec, present and self.has(site, which))

    def std(self, factor: str, fan_in: int, fan_out: int, which: int) -> Any:
        """Returns the std of an initial matrix; `factor` is a rule, or one for each sublayer."""
        xavier = (2.0 / (fan_in + fan_out)) ** 0.5  # Glorot & Bengio 2010, eq. 16
        small = (2.0 / (5 * self.cfg.n_embd)) ** 0.5  # Nguyen & Salazar 2019, section 2.2
        base = {
            "normal": self.cfg.init_std * init_factor(self.cfg, self.placement),
            "xavier": xavier,
            "small": small if which == ATTN else xavier,
        }[self.placement.init]
        return base * self.value(pair(factor)[which], which)

    def scale(self, name: str, which: int) -> Scale:
        """Returns the factor of one sublayer, where the other has none."""
        spec = scale(pair(getattr(self.placement, name))[which])
        return Scale(spec, self.value(spec.rule.text, which), self.cfg, which)

    def scales(self, name: str) -> Scales:
        """Returns the factors of both sublayers that an axis such as `skip_scale` describes."""
        return Scales(self, getattr(self.placement, name))


def norm_spec(
    cfg: FrozenConfigDict, placement: Placement, gain: Any = 1.0, alpha: Any = 0.5
) -> NormSpec:
    """Returns the kind of norm that a placement has."""
    return NormSpec(placement.norm, placement.norm_eps, placement.norm_bias, cfg.dtype, gain, alpha)


def stream_norm(cfg: FrozenConfigDict, placement: Placement) -> Norm | Identity:
    """Returns the norm of the final or the embedded stream; its gain starts at 1."""
    alpha = rule(pair(placement.norm_alpha)[MLP])
    values = values_at(cfg.n_layer, cfg.n_layer, cfg.n_embd, cfg.init_std, MLP)
    return make_norm(cfg.n_embd, norm_spec(cfg, placement, alpha=alpha(values)))


class Scale(nnx.Module):
    """x times a factor: a rule's value, or a learned one that starts from it."""

    def __init__(self, spec: ScaleSpec, first: Any, cfg: FrozenConfigDict, which: int = ATTN):
        self.spec, self.which = spec, which
        self.sizes = (cfg.n_layer, cfg.n_embd, cfg.init_std)
        if spec.kind != "constant":
            shape = (cfg.n_embd,) if spec.kind == "learned_vector" else ()
            self.value = nnx.Param(jnp.full(shape, first, jnp.float32), role=Role.SCALAR)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        if self.spec.is_one:
            return x
        return (x * self.factor(context)).astype(x.dtype)

    def factor(self, context: Context) -> jax.Array:
        """Returns the factor, float32.

        Raises:
          ValueError: if it depends on the step and nobody said which it is.
        """
        if self.spec.kind != "constant":
            return self.value[...]
        l = jnp.asarray(context.layer + 1, jnp.float32)
        values = values_at(l, *self.sizes, self.which)
        if "t" in self.spec.rule.names:
            if context.step is None:
                raise ValueError(f"the scale {self.spec.rule.text} needs the step")
            values["t"] = jnp.asarray(context.step, jnp.float32)
        return jnp.asarray(self.spec.rule(values, jnp), jnp.float32)


class Scales(nnx.Module):
    """The factors of a block's two sublayers, or the one that they share."""

    def __init__(self, plan: Plan, text: str):
        specs = [scale(one) for one in pair(text)]
        first = lambda which: plan.value(specs[which].rule.text, which)
        if specs[ATTN].kind == "learned_block" and "|" not in text:
            self.both = Scale(specs[ATTN], first(ATTN), plan.cfg)
        else:
            self.attn = Scale(specs[ATTN], first(ATTN), plan.cfg, ATTN)
            self.mlp = Scale(specs[MLP], first(MLP), plan.cfg, MLP)

    def of(self, which: int) -> Scale:
        """Returns the factor of attention (0) or of the MLP (1)."""
        if hasattr(self, "both"):
            return self.both
        return self.mlp if which == MLP else self.attn
