"""Branches (a sublayer with its norms and factors) and the block that a connection makes of two."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.model.attention import Attention, Left, Past
from gpt2_jax.model.connection import Connection
from gpt2_jax.model.connections import ONE_STREAM
from gpt2_jax.model.mlp import MLP
from gpt2_jax.model.parametrization import branch_factor
from gpt2_jax.model.parts import Context, Shift, drop_rows, dropout
from gpt2_jax.model.placements.rules import pair, scale
from gpt2_jax.model.plan import ATTN, Plan, Scale
from gpt2_jax.model.plan import MLP as MLP_SIDE
from gpt2_jax.model.streams import SEVERAL_STREAMS

CONNECTIONS: dict[str, type[Connection]] = {**ONE_STREAM, **SEVERAL_STREAMS}
Sublayer = TypeVar("Sublayer", Attention, MLP)


class Branch(nnx.Module, Generic[Sublayer]):
    """u -> b N_out(F(c N_pre(u))): what is before the sublayer F, and what is behind it."""

    def __init__(self, plan: Plan, which: int, sublayer: Sublayer, takes: frozenset[str]):
        self.name = ("attn", "mlp")[which]
        self.rate, self.depth_factor = plan.cfg.dropout, branch_factor(plan.cfg, plan.placement)
        self.pre = plan.norm("pre", which, present="pre" not in takes)
        self.sublayer: Sublayer = sublayer
        self.out = plan.norm("out", which)
        self.shift = Shift(plan.placement.scalar_bias)
        self.drop_path = Scale(scale(pair(plan.placement.drop_path)[which]), 0.0, plan.cfg, which)

    def enter(self, u_BTD: jax.Array, c: Scale, context: Context) -> jax.Array:
        """Returns c N_pre(u)."""
        return c(self.shift(self.pre(u_BTD)), context)

    def leave(self, y_BTD: jax.Array, b: Scale, context: Context) -> jax.Array:
        """Returns b N_out(y), with what dropout leaves of it."""
        y_BTD = dropout(y_BTD, context.keys_B, self.rate, f"{self.name}.residual")
        y_BTD = b(self.out(y_BTD), context)
        if self.depth_factor != 1.0:
            y_BTD = (y_BTD * jnp.float32(self.depth_factor)).astype(y_BTD.dtype)
        if context.muted is not None:
            y_BTD = jnp.where(context.layer == context.muted, jnp.zeros_like(y_BTD), y_BTD)
        if context.keys_B is None or self.drop_path.spec.rule.constant == 0.0:
            return y_BTD
        rate = self.drop_path.factor(context)
        return drop_rows(y_BTD, context.keys_B, rate, f"{self.name}.path")


class Block(nnx.Module):
    """Attention and the MLP, and the connection by which they meet the stream."""

    def __init__(self, plan: Plan):
        connection = CONNECTIONS[plan.placement.connection]
        self.is_source = plan.segment.values == "source"
        self.attn = Branch(plan, ATTN, Attention(plan), connection.takes)
        self.mlp = Branch(plan, MLP_SIDE, MLP(plan), connection.takes)
        self.branch_scale, self.input_scale = (
            plan.scales("branch_scale"),
            plan.scales("input_scale"),
        )
        self.connection = connection(plan)

    def __call__(self, stream: Any, context: Context, past: Past | None = None) -> tuple[Any, Left]:
        """Returns the stream behind the block, and what its attention leaves."""
        left: list[Left] = []
        branches: list[tuple[jax.Array, jax.Array]] = []

        def attn(u_BTD: jax.Array) -> jax.Array:
            n_BTD = self.attn.enter(u_BTD, self.input_scale.of(ATTN), context)
            y_BTD, here = self.attn.sublayer(n_BTD, context, past)
            left.append(here)
            y_BTD = self.attn.leave(y_BTD, self.branch_scale.of(ATTN), context)
            branches.append((u_BTD, y_BTD))
            return y_BTD

        def mlp(u_BTD: jax.Array) -> jax.Array:
            n_BTD = self.mlp.enter(u_BTD, self.input_scale.of(MLP_SIDE), context)
            y_BTD = self.mlp.sublayer(n_BTD)
            y_BTD = self.mlp.leave(y_BTD, self.branch_scale.of(MLP_SIDE), context)
            branches.append((u_BTD, y_BTD))
            return y_BTD

        stream = self.connection(stream, attn, mlp, context)
        return stream, left[0]._replace(branches=tuple(branches)) if context.probe else left[0]
