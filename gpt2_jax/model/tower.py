"""A tower: embedding, blocks and final norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.builder import stream_norm
from gpt2_jax.model.embedding import Embedding
from gpt2_jax.model.stack import Carry, Stack
from gpt2_jax.nn.context import Context, Memory
from gpt2_jax.nn.inserts import Prompt
from gpt2_jax.nn.linear import Shift
from gpt2_jax.nn.masks import SequenceMask, first_of_document, segment_positions
from gpt2_jax.nn.param import Init
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import TowerSpec

# A batch of token ids (B, T), with or without the segments that they are packed in.
Inputs = jax.Array | Tokens


class Tower(nnx.Module):
    """Token ids (B, T) to the head's input (B, T, D).

    Whether tokens attend to later ones, and whether they attend to another tower's output, is that
    of `placements.towers`.

    Args:
      owns_table: as in `Embedding`.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        spec: TowerSpec,
        target: Target,
        key: jax.Array,
        owns_table: bool = True,
    ):
        self.cfg, self.positions_at = cfg, spec.positions.at
        self.causal = spec.tower.kind.causal
        self.embedding = Embedding(cfg, spec, target, Init(key), owns_table)
        length = spec.inserts.prompt
        self.prompt = Prompt(length, cfg.n_embd, cfg.init_std, Init(key)) if length else None
        self.blocks = Stack(cfg, spec, target, key)
        self.shift = Shift() if spec.scalar_bias else None
        self.ln_f = stream_norm(cfg, spec, target) if spec.final_norm else None

    def hidden(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
        source: Inputs | None = None,
    ) -> jax.Array:
        """Returns the head's input (B, T, D): the stream after all blocks and the final norm.

        Args:
          inputs: ids, T at most `n_positions`, of one segment per row unless they say otherwise.
          keys_B: a dropout key per sequence; None for no dropout.
          step: steps done, for scales that depend on it.
          source: None; models of two towers have one.

        Raises:
          ValueError: if there is a source.
        """
        if source is not None:
            raise ValueError("a model of one tower has no source")
        return self.output(inputs, keys_B, step)

    def output(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None,
        step: jax.Array | int | None,
        memory: Memory | None = None,
    ) -> jax.Array:
        """Returns the same as `hidden`, for a tower that may read another.

        Args:
          memory: what cross-attention reads.
        """
        context = self.context_of(inputs, keys_B, step, memory)
        return self.of_tokens(self.head_input(self.run(inputs, context)[0]))

    def run(self, inputs: Inputs, context: Context) -> tuple[Carry, Any]:
        """Returns the carry after the last block, and the results of `context.observe` by layer.

        The learned vectors of prompt tuning are before the tokens (see `of_tokens`).
        """
        x_BTD = self.embed(inputs, context)
        if self.prompt is not None:
            x_BTD, context = self.prompt.before(x_BTD, context)
        return self.blocks(self.blocks.begin(x_BTD), context)

    def of_tokens(self, x: jax.Array) -> jax.Array:
        """Returns the tokens' part of an array (..., T, D) that follows from `run`."""
        return x if self.prompt is None else x[..., self.prompt.length :, :]

    def embed(self, inputs: Inputs, context: Context) -> jax.Array:
        """Returns the stream of the tokens before the first block, (B, T, D)."""
        if isinstance(inputs, Tokens):
            return self.embedding(inputs.ids_BT, context, inputs.types_BT)
        return self.embedding(inputs, context)

    def context_of(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None,
        step: jax.Array | int | None,
        memory: Memory | None = None,
    ) -> Context:
        """Returns the context of whole sequences.

        Positions restart in each segment or, with `document_mask`, in each document.
        """
        mask = SequenceMask(self.causal)
        if isinstance(inputs, Tokens):
            positions = segment_positions(inputs.segments_BT)
            mask = mask._replace(queries_BT=inputs.segments_BT)
        else:
            positions = jnp.arange(inputs.shape[1])
            if self.cfg.document_mask:
                first_BT = self.first_of_document(inputs, positions, jnp.zeros_like(inputs[:, 0]))
                positions = positions - first_BT
                mask = mask._replace(queries_BT=first_BT + 1)  # 0 would be padding
        return self.context(positions, keys_B, step)._replace(mask=mask, memory=memory)

    def first_of_document(
        self, tokens_BT: jax.Array, index_T: jax.Array, first_B: jax.Array
    ) -> jax.Array:
        """Returns the index of the first token of each token's document, (B, T).

        A document begins with end-of-text. So the first prediction of a document, made from
        end-of-text, does not depend on the document before, which ends by predicting end-of-text.

        Args:
          index_T: the indices of the tokens. first_B: that of the first token of the document that
            the sequence continues.
        """
        assert self.cfg.end_of_text is not None
        return first_of_document(tokens_BT == self.cfg.end_of_text, index_T, first_B)

    def context(
        self, positions: jax.Array, keys_B: jax.Array | None, step: jax.Array | int | None
    ) -> Context:
        """Returns the context of tokens at these positions, (T) or (B, T)."""
        pos_emb = None
        if self.positions_at != "embedding":
            pos_emb = self.embedding.pos_emb(positions).astype(self.cfg.dtype)
        return Context(positions, keys_B, step, pos_emb=pos_emb)

    def head_input(self, carry: Carry) -> jax.Array:
        """Returns the head's input (B, T, D) from the carry after the last block."""

        def norm(x: jax.Array) -> jax.Array:
            x = x if self.shift is None else self.shift(x)
            return x if self.ln_f is None else self.ln_f(x)

        return self.blocks.finish(carry, norm)
