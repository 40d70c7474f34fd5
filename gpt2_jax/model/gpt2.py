"""GPT-2 (Radford et al. 2019): embeddings, stacked blocks under a scan, final norm, head."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import FrozenConfigDict

from gpt2_jax.model.across import Across
from gpt2_jax.model.attention import Left, Past
from gpt2_jax.model.embedding import Embedding, padded_vocab
from gpt2_jax.model.norm import Identity
from gpt2_jax.model.parametrization import logits_factor
from gpt2_jax.model.parts import Context, Init, Role, Shift
from gpt2_jax.model.placements.resolve import Segment, has_final_norm, resolve, segments
from gpt2_jax.model.plan import Plan, stream_norm
from gpt2_jax.model.residual import CONNECTIONS, Block

Params = dict[str, Any]  # nested dict of arrays, by the modules' attribute names


class Carry(NamedTuple):
    """What goes from block to block.

    Attributes:
      stream: as the connection keeps it, (B, T, D) or several of them.
      memory: what earlier blocks left for later ones.
      values: attention's values of block 1, where later blocks use them.
    """

    stream: Any
    memory: tuple[Any, ...]
    values: jax.Array | None = None


class GPT2(Embedding):
    """Token ids (B, T) to next-token logits (B, T, V).

    Blocks that are built alike are stacked: one stack a segment of the placement, all of them in
    `blocks` where there is only one. Logits of padded ids (from `vocab_size` to V) are the lowest
    float: never likely, never drawn.
    """

    def __init__(self, cfg: FrozenConfigDict, key: jax.Array):
        placement = resolve(cfg)
        super().__init__(cfg, placement, Init(key))
        self.segments = segments(placement, cfg.n_layer)
        for segment in self.segments:
            build = partial(_build_block, cfg, segment, key)
            first = jnp.arange(segment.start, segment.stop, segment.repeats)
            setattr(self, segment.name, nnx.vmap(build)(first))
        self.across = Across(cfg, placement)
        self.ends = CONNECTIONS[placement.connection].ends(cfg, placement)
        self.grows = self.across.grows or self.ends.grows
        self.shift = Shift(placement.scalar_bias)
        if has_final_norm(placement, cfg.n_layer):
            self.ln_f = stream_norm(cfg, placement)
        if placement.logit_scale:
            first = jnp.full(cfg.vocab_size, cfg.n_embd**-0.5)
            self.logit_scale = nnx.Param(first, role=Role.SCALAR)
        if not cfg.tie_head:
            shape = (padded_vocab(cfg), cfg.n_embd)
            self.head = nnx.Param(
                Init(key).normal("head", shape, cfg.init_std), role=Role.HEAD, width_axes=(-1,)
            )

    def __call__(
        self,
        tokens_BT: jax.Array,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
    ) -> jax.Array:
        """Returns float32 logits (B, T, V).

        Args:
          tokens_BT: integer ids, T at most `n_positions`.
          keys_B: a dropout key for each sequence, or None for no dropout.
          step: updates done, for placements that change while the model is trained.
        """
        return self.logits(self.hidden(tokens_BT, keys_B, step))

    def hidden(
        self,
        tokens_BT: jax.Array,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
    ) -> jax.Array:
        """Returns what the head reads, (B, T, D): the stream behind blocks and final norm."""
        context = self.context(jnp.arange(tokens_BT.shape[1]), keys_B, step)
        x_BTD = self.embed(tokens_BT, context)
        return self.readout(self.run_blocks(x_BTD, context)[0])

    def run_blocks(self, x_BTD: jax.Array, context: Context) -> tuple[Carry, Any]:
        """Applies the stacked blocks in order, each segment by a scan over its layers.

        Where what is carried on grows from block to block, they stand one behind the other: a scan
        would keep a copy of all of it for each block's gradient.

        Returns the carry behind the last one, and what `context.probe` kept of each block, stacked
        by layers (None without a probe).
        """
        carry, kept = self.begin(x_BTD), []
        for segment in self.segments:
            carry, here = self._run_segment(segment, carry, context)
            kept.append(here)
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)

    def begin(self, x_BTD: jax.Array) -> Carry:
        """Returns the carry before the first block."""
        return Carry(self.ends.expand(x_BTD), self.across.start(x_BTD))

    def pass_block(
        self, block: Block, carry: Carry, context: Context, past: Past | None = None
    ) -> tuple[Carry, Left]:
        """Returns the carry behind a block, and what its attention leaves."""
        stream = self.across.enter(carry.stream, carry.memory, context)
        stream, left = block(stream, context, past)
        stream, memory = self.across.leave(stream, carry.memory, context)
        return Carry(stream, memory, left.values if block.is_source else carry.values), left

    def _run_segment(self, segment: Segment, carry: Carry, context: Context) -> tuple[Carry, Any]:
        graphdef, params = nnx.split(getattr(self, segment.name))
        layers = jnp.arange(segment.start, segment.stop)

        def apply(carry: Carry, params: nnx.State, layer: jax.Array | int) -> tuple[Carry, Any]:
            block = nnx.merge(graphdef, params)
            behind, left = self.pass_block(block, carry, context.at(layer, carry.values))
            probe = context.probe
            return behind, probe and probe(carry.stream, behind.stream, left)

        if self.grows:
            kept = []
            for layer, own in enumerate(rows(params, segment), segment.start):
                carry, here = self._remat(partial(apply, layer=layer))(carry, own)
                kept.append(here)
            return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *kept)
        body = self._remat(apply)
        scan = partial(lax.scan, unroll=self.cfg.unroll)
        if len(layers) == 1:  # what it carries on may have another structure
            carry, kept = body(carry, jax.tree.map(lambda x: x[0], params), layers[0])
            return carry, jax.tree.map(lambda x: x[None], kept)
        if segment.repeats == 1:
            return scan(lambda c, x: body(c, *x), carry, (params, layers))
        layers_GR = layers.reshape(segment.rows, segment.repeats)

        def group(carry: Carry, x: tuple[nnx.State, jax.Array]) -> tuple[Carry, Any]:
            return scan(lambda c, layer: body(c, x[0], layer), carry, x[1])

        carry, kept = scan(group, carry, (params, layers_GR))
        return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)

    def _remat(self, body: Any) -> Any:
        if self.cfg.remat == "none":
            return body
        keep = jax.checkpoint_policies
        policy = {
            "elementwise": keep.dots_with_no_batch_dims_saveable,
            "block": keep.nothing_saveable,
        }[self.cfg.remat]
        # Without the barrier what is unrolled would share the recomputation with the forward pass.
        return jax.checkpoint(body, policy=policy, prevent_cse=self.cfg.unroll or self.grows)

    def readout(self, carry: Carry) -> jax.Array:
        """Returns what the head reads of the stream behind the last block, (B, T, D)."""
        norm = getattr(self, "ln_f", Identity())
        stream = self.across.finish(carry.stream, carry.memory)
        return self.ends.readout(stream, lambda x: norm(self.shift(x)))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits of `hidden`: head, and mask of padded ids."""
        head_VD = self.table() if self.cfg.tie_head else self.head[...]
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NV = project(x_ND, head_VD.astype(self.cfg.dtype))
        if (factor := logits_factor(self.cfg, self.placement)) != 1.0:
            logits_NV = logits_NV * factor
        n_padded = logits_NV.shape[-1] - self.cfg.vocab_size
        if hasattr(self, "logit_scale"):  # nGPT, eq. 3
            factor_V = self.logit_scale[...] * self.cfg.n_embd**0.5
            logits_NV = logits_NV * jnp.pad(factor_V, (0, n_padded))
        if n_padded:
            real_V = jnp.arange(logits_NV.shape[-1]) < self.cfg.vocab_size
            logits_NV = jnp.where(real_V, logits_NV, jnp.finfo(jnp.float32).min)
        return logits_NV.reshape(*x_BTD.shape[:-1], -1)


def rows(stack: Any, segment: Segment) -> list[Any]:
    """Returns the parameters of each block of a segment.

    By splitting, whose gradient is one concatenation, where that of indexing would add up as many
    copies of the whole stack as there are blocks.
    """
    cut = jax.tree.map(lambda x: lax.split(x, [1] * segment.rows), stack)
    row = lambda i: jax.tree.map(
        lambda parts: parts[i][0], cut, is_leaf=lambda x: isinstance(x, (tuple, list))
    )
    return [own for i in range(segment.rows) for own in [row(i)] * segment.repeats]


def _build_block(
    cfg: FrozenConfigDict, segment: Segment, key: jax.Array, layer: jax.Array
) -> Block:
    return Block(Plan(cfg, segment, Init(key, layer)))


@jax.custom_vjp
def project(x_ND: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Returns x head^T in float32, whose backward products are in the inputs' dtype.

    Left to autodiff, the float32 gradient of the logits would turn both backward products of a
    bfloat16 head into float32 ones, up to twice as slow on a GPU.
    """
    return jnp.einsum("ND,VD->NV", x_ND, head_VD, preferred_element_type=jnp.float32)


def _project_forward(
    x_ND: jax.Array, head_VD: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project(x_ND, head_VD), (x_ND, head_VD)


def _project_backward(
    saved: tuple[jax.Array, jax.Array], g_NV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_ND, head_VD = saved
    g_NV = g_NV.astype(x_ND.dtype)
    return jnp.einsum("NV,VD->ND", g_NV, head_VD), jnp.einsum("NV,ND->VD", g_NV, x_ND)


project.defvjp(_project_forward, _project_backward)
