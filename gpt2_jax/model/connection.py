"""What a connection is: the way in which a block's branches meet the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.parts import Context, Linear, Role
from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.plan import ATTN, Plan

Branch = Callable[[Any], jax.Array]  # attention may be given one input for each of q, k, v
NormCall = Callable[[jax.Array], jax.Array]


class Ends(nnx.Module):
    """How the stream begins and how it is read at the end: here, a single one.

    Attributes:
      grows: whether the stream has more parts behind a block than before it.
    """

    grows = False

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        self.placement = placement

    def expand(self, x_BTD: jax.Array) -> Any:
        """Returns the stream before the first block, given the embedding."""
        return x_BTD

    def whole(self, stream: Any) -> jax.Array:
        """Returns the one stream (B, T, D) that all of them amount to."""
        return stream

    def readout(self, stream: Any, norm: NormCall) -> jax.Array:
        """Returns what the head reads, (B, T, D), given the final norm or the identity."""
        return norm(self.whole(stream))


class Connection(nnx.Module):
    """A block's stream from the one before it and two branches, A (attention) and F (the MLP).

    Each branch is `u -> b N_out(sublayer(c N_pre(u)))`.

    Attributes:
      takes: sites of a branch that the connection takes over from it.
      ends: how its stream begins and ends.
    """

    takes: frozenset[str] = frozenset()
    ends: type[Ends] = Ends

    def __init__(self, plan: Plan):
        raise NotImplementedError

    def __call__(self, stream: Any, attn: Branch, mlp: Branch, context: Context) -> Any:
        """Returns the stream behind the block."""
        raise NotImplementedError


def matrix(value: jax.Array) -> nnx.Param[jax.Array]:
    """Returns a small parameter that maps the last axis but one to the last."""
    return nnx.Param(value, role=Role.MAP)


def square(plan: Plan, site: str, d: int, n: int) -> Linear:
    """Returns n matrices (D, D) side by side, without bias."""
    return Linear(
        (d,),
        (n, d),
        site=site,
        std=plan.std("1", d, d, ATTN),
        init=plan.init,
        dtype=plan.cfg.dtype,
        batch_axes=1,
        bias=False,
    )
