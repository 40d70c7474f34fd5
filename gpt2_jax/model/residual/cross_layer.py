"""Skips across layers, in addition to the residual stream.

Each skip receives the stream before each block (`enter`), after it (`leave`) and after all blocks
(`finish`), and keeps a memory between these calls.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.nn.context import Context
from gpt2_jax.nn.param import Role, param
from gpt2_jax.nn.positions import sinusoids
from gpt2_jax.placements.spec import TowerSpec

Memory = Any


class CrossLayerSkip(nnx.Module):
    """Base class; hooks default to no-ops.

    Attributes:
      grows: whether its memory grows with depth. If so, blocks are unrolled and `context.layer` is
        a Python integer.
    """

    grows = False

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        del cfg, spec

    def start(self, x_BTD: jax.Array) -> Memory:
        """Returns the memory before the first block, given the embedding."""
        del x_BTD

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        """Returns the stream that enters a block."""
        del memory, context
        return x_BTD

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        """Returns the stream and the memory after a block."""
        del context
        return x_BTD, memory

    def finish(self, x_BTD: jax.Array, memory: Memory) -> jax.Array:
        """Returns the stream that enters the final norm."""
        del memory
        return x_BTD


class X0(CrossLayerSkip):
    """x <- a_l x + b_l x_0 before block l, x_0 the embedding (modded-nanogpt, 2024-11-06)."""

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        sizes, blocks = cfg.sizes(spec.tower), range(1, spec.tower.n_layer + 1)
        a, b = ([scale(sizes.values(l)) for l in blocks] for scale in spec.x0_scales)
        self.stream_L = param(jnp.array(a, jnp.float32), Role.SCALAR, (None,))
        self.x0_L = param(jnp.array(b, jnp.float32), Role.SCALAR, (None,))

    def start(self, x_BTD: jax.Array) -> Memory:
        return x_BTD

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        a, b = self.stream_L[...][context.layer], self.x0_L[...][context.layer]
        return (a * x_BTD + b * memory).astype(x_BTD.dtype)


class UNet(CrossLayerSkip):
    """Block L/2 + j reads x + w_j x_i, i = L/2 + 1 - j: the last half pops the stack of the first.

    KellerJordan/modded-nanogpt records/track_1_short/2024-11-10_UNetDoubleLr; w_j is initially 1.
    """

    grows = True

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        del cfg
        self.n_layer, self.half = spec.tower.n_layer, spec.tower.n_layer // 2
        self.weights = param(jnp.ones(self.half), Role.SCALAR, (None,))

    def start(self, x_BTD: jax.Array) -> Memory:
        return ()

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        j = int(context.layer) - (self.n_layer - self.half)
        if j < 0:
            return x_BTD
        return (x_BTD + self.weights[j] * memory[self.half - 1 - j]).astype(x_BTD.dtype)

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        return x_BTD, (*memory, x_BTD) if int(context.layer) < self.half else memory


class Backout(CrossLayerSkip):
    """x <- x - b x_m at the end, x_m the stream after block L/2 + 1, b initially 0.2 (nanochat)."""

    INITIAL = 0.2

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        del cfg
        self.middle = spec.tower.n_layer // 2
        self.weight = param(jnp.float32(self.INITIAL), Role.SCALAR)

    def start(self, x_BTD: jax.Array) -> Memory:
        return jnp.zeros_like(x_BTD)

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        return x_BTD, jnp.where(context.layer == self.middle, x_BTD, memory)

    def finish(self, x_BTD: jax.Array, memory: Memory) -> jax.Array:
        return (x_BTD - self.weight[...] * memory).astype(x_BTD.dtype)


class Coordinates(CrossLayerSkip):
    """x <- x + P(position) + P(l) before block l (Dehghani et al. 2018, Universal Transformer)."""

    def enter(self, x_BTD: jax.Array, memory: Memory, context: Context) -> jax.Array:
        del memory
        l = jnp.asarray(context.layer + 1)
        assert context.pos_emb is not None
        return x_BTD + context.pos_emb + sinusoids(l, x_BTD.shape[-1]).astype(x_BTD.dtype)


class Dense(CrossLayerSkip):
    """x <- sum_j a_lj X_j after block l, X_0 the embedding and X_j the output of block j.

    Pagliardini et al. 2024 (DenseFormer), 2402.02622, eq. 2, without dilation. Initially a_ll = 1
    and the rest is 0; the rows of a are stored concatenated.
    """

    grows = True

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        del cfg
        rows = [jnp.arange(l + 1) == l for l in range(1, spec.tower.n_layer + 1)]
        self.weights = param(jnp.concatenate(rows).astype(jnp.float32), Role.SCALAR, (None,))

    def start(self, x_BTD: jax.Array) -> Memory:
        return (x_BTD,)

    def leave(self, x_BTD: jax.Array, memory: Memory, context: Context) -> tuple[jax.Array, Memory]:
        memory, l = (*memory, x_BTD), int(context.layer) + 1
        first = (l - 1) * (l + 2) // 2
        row = self.weights[first : first + l + 1]
        # Recomputed in the backward pass, which would otherwise save a stack of outputs per block.
        mix = lambda row, outputs: jnp.einsum("j,j...->...", row, jnp.stack(outputs))
        return jax.checkpoint(mix)(row, memory).astype(x_BTD.dtype), memory


SKIPS: dict[str, type[CrossLayerSkip]] = {
    "unet": UNet,
    "x0": X0,
    "coordinates": Coordinates,
    "dense": Dense,
    "backout": Backout,
}


class CrossLayer(nnx.Module):
    """The cross-layer skips of a model, each with its memory."""

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        self.names = spec.cross_layer
        for name in self.names:
            setattr(self, name, SKIPS[name](cfg, spec))

    @property
    def grows(self) -> bool:
        """Whether any skip's memory grows with depth."""
        return any(skip.grows for skip in self._skips())

    def start(self, x_BTD: jax.Array) -> tuple[Memory, ...]:
        """Returns the memories before the first block."""
        return tuple(skip.start(x_BTD) for skip in self._skips())

    def enter(self, x_BTD: jax.Array, memory: tuple[Memory, ...], context: Context) -> jax.Array:
        """Returns the stream that enters a block."""
        for skip, m in zip(self._skips(), memory, strict=True):
            x_BTD = skip.enter(x_BTD, m, context)
        return x_BTD

    def leave(
        self, x_BTD: jax.Array, memory: tuple[Memory, ...], context: Context
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """Returns the stream and the memories after a block."""
        updated = []
        for skip, m in zip(self._skips(), memory, strict=True):
            x_BTD, m = skip.leave(x_BTD, m, context)
            updated.append(m)
        return x_BTD, tuple(updated)

    def finish(self, x_BTD: jax.Array, memory: tuple[Memory, ...]) -> jax.Array:
        """Returns the stream that enters the final norm."""
        for skip, m in zip(self._skips(), memory, strict=True):
            x_BTD = skip.finish(x_BTD, m)
        return x_BTD

    def _skips(self) -> list[CrossLayerSkip]:
        return [getattr(self, name) for name in self.names]
