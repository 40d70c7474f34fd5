"""The embedding: from token ids to the residual stream before the first block."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.builder import stream_norm
from gpt2_jax.model.scale import Scale
from gpt2_jax.nn.context import Context
from gpt2_jax.nn.dropout import dropout
from gpt2_jax.nn.norms import UNIT_EPS, L2Norm, NormSpec
from gpt2_jax.nn.param import Init, Role, param
from gpt2_jax.nn.positions import sinusoids
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import TowerSpec


def padded_vocab(cfg: ModelConfig) -> int:
    """Returns the vocabulary size rounded up to a multiple of `vocab_multiple`."""
    return -(-cfg.vocab_size // cfg.vocab_multiple) * cfg.vocab_multiple


class Embedding(nnx.Module):
    """x_0 = N(m W[token] + P[position]), with N and the factor m if the placement has them.

    With `model.token_types`, a vector per type of token is added like P.

    Args:
      owns_table: whether W is a parameter of this tower; if not, `read_table` must be set to a
        function that returns another tower's.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        spec: TowerSpec,
        target: Target,
        init: Init,
        owns_table: bool = True,
    ):
        self.cfg, self.spec, self.positions = cfg, spec.embedding, spec.positions
        v, d, sizes = padded_vocab(cfg), cfg.n_embd, cfg.sizes(spec.tower)
        std = float(self.spec.std(sizes.values(1)))
        wte = lambda: param(init.normal("wte", (v, d), std), Role.EMBEDDING, ("vocab", "embed"))
        self.wte = wte() if owns_table else None
        self.read_table: Callable[[], jax.Array] | None = None  # set by `EncoderDecoder.link`
        # A table that is only looked up has the role of position embeddings.
        types = lambda: init.normal("wtt", (cfg.token_types, d), std)
        self.wtt = param(types(), Role.POSITION, (None, "embed")) if cfg.token_types else None
        wpe = lambda: init.normal("wpe", (cfg.n_positions + cfg.position_offset, d), std)
        learned = self.positions.kind == "learned"
        self.wpe = param(wpe(), Role.POSITION, ("position", "embed")) if learned else None
        multiplier = self.spec.multiplier
        self.embedding_multiplier = Scale(multiplier, multiplier.first(sizes.values(1)), sizes)
        self.embedding_norm = stream_norm(cfg, spec, target) if self.spec.norm else None
        # Nguyen & Chiang 2018 (FixNorm): token vectors differ only in direction.
        unit = NormSpec("l2", UNIT_EPS, False, "float32")
        self.unit = L2Norm(d, unit) if self.spec.unit_tokens else None

    def __call__(
        self, tokens_BT: jax.Array, context: Context, types_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns the stream before the first block, (B, T, D) in the compute dtype.

        Args:
          types_BT: types of the tokens; None for type 0.
        """
        x_BTD = self.table()[tokens_BT]
        if not self.spec.multiplies_sum:
            x_BTD = self.embedding_multiplier(x_BTD, context)
        if self.positions.is_vector and self.positions.at != "block":
            x_BTD = x_BTD + self.pos_emb(context.positions)
        if self.wtt is not None:
            x_BTD = x_BTD + self.wtt[...][0 if types_BT is None else types_BT]
        if self.spec.multiplies_sum:
            x_BTD = self.embedding_multiplier(x_BTD, context)
        x_BTD = x_BTD.astype(self.cfg.dtype)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return dropout(x_BTD, context.keys_B, self.cfg.dropout, "embedding")

    def table(self) -> jax.Array:
        """Returns the token vectors, (V, D), float32."""
        if self.wte is None:
            assert self.read_table is not None
            return self.read_table()
        wte_VD = self.wte[...]
        return wte_VD if self.unit is None else self.unit(wte_VD)

    def pos_emb(self, positions: jax.Array) -> jax.Array:
        """Returns position vectors, (*positions, D), float32."""
        if self.wpe is not None:
            return self.wpe[...][positions + self.cfg.position_offset]
        halves = self.positions.kind == "sinusoidal_halves"
        return sinusoids(positions, self.cfg.n_embd, halves)
