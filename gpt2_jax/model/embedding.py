"""From token ids to the stream's first values, and positions on their way to wherever they go."""

from __future__ import annotations

import jax
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.norm import UNIT_EPS, L2Norm, NormSpec
from gpt2_jax.model.parts import Context, Init, Role, dropout
from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.placements.resolve import block_values
from gpt2_jax.model.placements.rules import rule, scale
from gpt2_jax.model.plan import Scale, stream_norm
from gpt2_jax.model.positions import sinusoids


def padded_vocab(cfg: ConfigDict | FrozenConfigDict) -> int:
    """Returns the vocabulary's size inside: the next multiple of `vocab_multiple`."""
    return -(-cfg.vocab_size // cfg.vocab_multiple) * cfg.vocab_multiple


class Embedding(nnx.Module):
    """x_0 = N(m W[token] + P[position]), with N and the factor m where the placement has them.

    A base class of the model, so that its tables keep GPT-2's names, `wte` and `wpe`.
    """

    def __init__(self, cfg: FrozenConfigDict, placement: Placement, init: Init):
        self.cfg, self.placement = cfg, placement
        v, d, values = padded_vocab(cfg), cfg.n_embd, block_values(cfg, 1)
        self.embedding_std = float(rule(placement.embedding_std)(values))
        self.wte = nnx.Param(
            init.normal("wte", (v, d), self.embedding_std), role=Role.EMBEDDING, width_axes=(-1,)
        )
        if placement.positions == "learned":
            shape = (cfg.n_positions, d)
            self.wpe = nnx.Param(init.normal("wpe", shape, self.embedding_std), role=Role.POSITION)
        spec = scale(placement.embedding_multiplier)
        self.embedding_multiplier = Scale(spec, spec.rule(values), cfg)
        if placement.fixnorm:  # Nguyen & Chiang 2018: only directions tell tokens apart
            self.unit = L2Norm(d, NormSpec("l2", UNIT_EPS, False, "float32"))
        if placement.embedding_norm:
            self.embedding_norm = stream_norm(cfg, placement)

    def context(
        self, positions: jax.Array, keys_B: jax.Array | None, step: jax.Array | int | None
    ) -> Context:
        """Returns what blocks are told of tokens at these positions, (T) or (B, T)."""
        again = self.placement.positions_at != "embedding"
        place = self.place(positions).astype(self.cfg.dtype) if again else None
        return Context(positions, keys_B, step, place=place)

    def embed(self, tokens_BT: jax.Array, context: Context) -> jax.Array:
        """Returns the stream before the first block, (B, T, D) in the compute dtype."""
        x_BTD = self.table()[tokens_BT]
        if self.placement.multiplied == "tokens":
            x_BTD = self.embedding_multiplier(x_BTD, context)
        added = self.placement.positions in ("learned", "sinusoidal")
        if added and self.placement.positions_at != "block":
            x_BTD = x_BTD + self.place(context.positions)
        if self.placement.multiplied == "sum":
            x_BTD = self.embedding_multiplier(x_BTD, context)
        x_BTD = x_BTD.astype(self.cfg.dtype)
        if hasattr(self, "embedding_norm"):
            x_BTD = self.embedding_norm(x_BTD)
        return dropout(x_BTD, context.keys_B, self.cfg.dropout, "embedding")

    def table(self) -> jax.Array:
        """Returns the vectors of the vocabulary, (V, D), float32."""
        wte_VD = self.wte[...]
        return self.unit(wte_VD) if self.placement.fixnorm else wte_VD

    def place(self, positions: jax.Array) -> jax.Array:
        """Returns the vectors of positions, (*positions, D), float32."""
        if self.placement.positions == "learned":
            return self.wpe[...][positions]
        return sinusoids(positions, self.cfg.n_embd)
