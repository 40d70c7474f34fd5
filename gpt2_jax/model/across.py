"""What earlier layers leave for later ones, beside the stream.

Each part sees the stream before a block (`enter`), behind it (`leave`) and at the end (`finish`),
and keeps a memory of its own between them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from gpt2_jax.model.parts import Context, Role
from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.placements.resolve import across_words, block_values
from gpt2_jax.model.placements.rules import pair, rule
from gpt2_jax.model.positions import sinusoids

Memory = Any


class Part(nnx.Module):
    """What a part does where it says nothing else: nothing.

    Attributes:
      grows: whether its memory has more in it the more blocks there were; blocks are then told
        their number as a plain integer.
    """

    grows = False

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        del cfg, placement

    def start(self, x_BTD: jax.Array) -> Memory:
        """Returns the memory before the first block, given the embedding."""
        del x_BTD

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        """Returns the stream that a block is given."""
        del memory, context
        return x_BTD

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        """Returns the stream and the memory behind a block."""
        del context
        return x_BTD, memory

    def finish(self, x_BTD: jax.Array, memory: Memory) -> jax.Array:
        """Returns the stream that the final norm is given."""
        del memory
        return x_BTD


class X0(Part):
    """x <- a_l x + b_l x_0 before block l, x_0 the embedding (modded-nanogpt, 2024-11-06)."""

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        first = [
            [rule(text)(block_values(cfg, l)) for l in range(1, cfg.n_layer + 1)]
            for text in pair(placement.x0_scales)
        ]
        self.stream_L = nnx.Param(jnp.array(first[0], jnp.float32), role=Role.SCALAR)
        self.x0_L = nnx.Param(jnp.array(first[1], jnp.float32), role=Role.SCALAR)

    def start(self, x_BTD: jax.Array) -> Memory:
        return x_BTD

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        a, b = self.stream_L[...][context.layer], self.x0_L[...][context.layer]
        return (a * x_BTD + b * memory).astype(x_BTD.dtype)


class UNet(Part):
    """Block L/2 + j is given x + w_j x_i, i = L/2 + 1 - j: the last half pops what the first left.

    KellerJordan/modded-nanogpt records/track_1_short/2024-11-10_UNetDoubleLr; w_j is initially 1.
    """

    grows = True

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        del placement
        self.n_layer, self.half = cfg.n_layer, cfg.n_layer // 2
        self.weights = nnx.Param(jnp.ones(self.half), role=Role.SCALAR)

    def start(self, x_BTD: jax.Array) -> Memory:
        return ()

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        j = int(context.layer) - (self.n_layer - self.half)
        if j < 0:
            return x_BTD
        return (x_BTD + self.weights[j] * memory[self.half - 1 - j]).astype(x_BTD.dtype)

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        return x_BTD, (*memory, x_BTD) if int(context.layer) < self.half else memory


class Backout(Part):
    """x <- x - b x_m at the end, x_m what block L/2 + 1 left, b initially 0.2 (nanochat)."""

    FIRST = 0.2

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        del placement
        self.middle = cfg.n_layer // 2
        self.weight = nnx.Param(jnp.float32(self.FIRST), role=Role.SCALAR)

    def start(self, x_BTD: jax.Array) -> Memory:
        return jnp.zeros_like(x_BTD)

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        return x_BTD, jnp.where(context.layer == self.middle, x_BTD, memory)

    def finish(self, x_BTD: jax.Array, memory: Memory) -> jax.Array:
        return (x_BTD - self.weight[...] * memory).astype(x_BTD.dtype)


class Coordinates(Part):
    """x <- x + P(position) + P(l) before block l (Dehghani et al. 2018, Universal Transformer)."""

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        del memory
        l = jnp.asarray(context.layer + 1)
        assert context.place is not None
        return x_BTD + context.place + sinusoids(l, x_BTD.shape[-1]).astype(x_BTD.dtype)


class Dense(Part):
    """x <- sum_j a_lj X_j behind block l, X_0 the embedding and X_j what block j itself gave.

    Pagliardini et al. 2024 (DenseFormer), 2402.02622, eq. 2, without dilation. a_ll = 1, the others
    0 at the start; the rows of a lie one behind the other.
    """

    grows = True

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        del placement
        rows = [jnp.arange(l + 1) == l for l in range(1, cfg.n_layer + 1)]
        self.weights = nnx.Param(jnp.concatenate(rows).astype(jnp.float32), role=Role.SCALAR)

    def start(self, x_BTD: jax.Array) -> Memory:
        return (x_BTD,)

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        memory, l = (*memory, x_BTD), int(context.layer) + 1
        first = (l - 1) * (l + 2) // 2
        row = self.weights[first : first + l + 1]
        # Computed again for its gradient: what a block gave is kept once for all its sums.
        mix = lambda row, given: jnp.einsum("j,j...->...", row, jnp.stack(given))
        return jax.checkpoint(mix)(row, memory).astype(x_BTD.dtype), memory


# In the order in which they meet the stream: skips come before the embedding's share.
PARTS: dict[str, type[Part]] = {
    "unet": UNet,
    "x0": X0,
    "coordinates": Coordinates,
    "dense": Dense,
    "backout": Backout,
}


class Across(nnx.Module):
    """The parts that a placement has, each with its memory."""

    def __init__(self, cfg: FrozenConfigDict, placement: Placement):
        words = {*across_words(placement)}
        if placement.positions_at == "block":
            words.add("coordinates")
        self.words = tuple(word for word in PARTS if word in words)
        for word in self.words:
            setattr(self, word, PARTS[word](cfg, placement))

    @property
    def grows(self) -> bool:
        """Whether the memory of any part does."""
        return any(part.grows for part in self._parts())

    def start(self, x_BTD: jax.Array) -> tuple[Memory, ...]:
        """Returns the memories before the first block."""
        return tuple(part.start(x_BTD) for part in self._parts())

    def enter(self, x_BTD: jax.Array, memory: tuple[Memory, ...], context: Context) -> jax.Array:
        """Returns the stream that a block is given."""
        for part, own in zip(self._parts(), memory, strict=True):
            x_BTD = part.enter(x_BTD, own, context)
        return x_BTD

    def leave(
        self, x_BTD: jax.Array, memory: tuple[Memory, ...], context: Context
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """Returns the stream and the memories behind a block."""
        kept = []
        for part, own in zip(self._parts(), memory, strict=True):
            x_BTD, own = part.leave(x_BTD, own, context)
            kept.append(own)
        return x_BTD, tuple(kept)

    def finish(self, x_BTD: jax.Array, memory: tuple[Memory, ...]) -> jax.Array:
        """Returns the stream that the final norm is given."""
        for part, own in zip(self._parts(), memory, strict=True):
            x_BTD = part.finish(x_BTD, own)
        return x_BTD

    def _parts(self) -> list[Part]:
        return [getattr(self, word) for word in self.words]
