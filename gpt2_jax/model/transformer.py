"""GPT-2 (Radford et al. 2019): embedding, blocks, final norm, head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.builder import fuses, product_dtype, stream_norm
from gpt2_jax.model.embedding import Embedding, padded_vocab
from gpt2_jax.model.parametrization import logits_factor
from gpt2_jax.model.stack import Carry, Stack
from gpt2_jax.nn.context import Context, PackedMask, first_of_document
from gpt2_jax.nn.inserts import Prompt
from gpt2_jax.nn.linear import Shift
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.nn.param import Init, Role, param
from gpt2_jax.nn.products import product
from gpt2_jax.nn.target import Target
from gpt2_jax.nn.tensor_parallel import is_tensor_parallel
from gpt2_jax.placements.spec import ModelSpec


class Transformer(nnx.Module):
    """Token ids (B, T) to next-token logits (B, T, V).

    Logits of padding ids, from `vocab_size` to V, are the lowest float, so they are never sampled.
    """

    def __init__(self, cfg: ModelConfig, spec: ModelSpec, target: Target, key: jax.Array):
        self.cfg, self.positions_at = cfg, spec.positions.at
        self.embedding = Embedding(cfg, spec, target, Init(key))
        length = spec.inserts.prompt
        self.prompt = Prompt(length, cfg.n_embd, cfg.init_std, Init(key)) if length else None
        self.blocks = Stack(cfg, spec, target, key)
        self.shift = Shift() if spec.scalar_bias else None
        self.ln_f = stream_norm(cfg, spec, target) if spec.final_norm else None
        head = lambda: Init(key).normal("head", (padded_vocab(cfg), cfg.n_embd), cfg.init_std)
        self.head = None if cfg.tie_head else param(head(), Role.HEAD, ("vocab", "embed"))
        self.logits_factor = logits_factor(cfg, spec.parametrization)
        scale = jnp.full(cfg.vocab_size, cfg.n_embd**-0.5)
        self.logit_scale = param(scale, Role.SCALAR, ("vocab",)) if spec.logit_scale else None
        scaled = self.logits_factor != 1.0 or self.logit_scale is not None
        self.fused_loss = fuses(cfg, target) and not scaled
        self.product_dtype = product_dtype(cfg, target) or cfg.dtype

    def __call__(
        self,
        tokens_BT: jax.Array,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
    ) -> jax.Array:
        """Returns float32 logits (B, T, V).

        Args:
          tokens_BT: integer ids, T at most `n_positions`.
          keys_B: a dropout key per sequence; None for no dropout.
          step: steps done, for scales that depend on it.
        """
        return self.logits(self.hidden(tokens_BT, keys_B, step))

    def hidden(
        self,
        tokens_BT: jax.Array,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
    ) -> jax.Array:
        """Returns the head's input (B, T, D): the stream after all blocks and the final norm."""
        carry, _ = self.run(tokens_BT, self.context_of(tokens_BT, keys_B, step))
        return self.of_tokens(self.head_input(carry))

    def run(self, tokens_BT: jax.Array, context: Context) -> tuple[Carry, Any]:
        """Returns the carry after the last block, and the results of `context.observe` by layer.

        The learned vectors of prompt tuning are before the tokens (see `of_tokens`).
        """
        x_BTD = self.embedding(tokens_BT, context)
        if self.prompt is not None:
            x_BTD, context = self.prompt.before(x_BTD, context)
        return self.blocks(self.blocks.begin(x_BTD), context)

    def of_tokens(self, x: jax.Array) -> jax.Array:
        """Returns the tokens' part of an array (..., T, D) that follows from `run`."""
        return x if self.prompt is None else x[..., self.prompt.length :, :]

    def context_of(
        self, tokens_BT: jax.Array, keys_B: jax.Array | None, step: jax.Array | int | None
    ) -> Context:
        """Returns the context of whole sequences; with `document_mask`, of packed documents."""
        index_T = jnp.arange(tokens_BT.shape[1])
        if not self.cfg.document_mask:
            return self.context(index_T, keys_B, step)
        first_BT = self.first_of_document(tokens_BT, index_T, jnp.zeros_like(tokens_BT[:, 0]))
        return self.context(index_T - first_BT, keys_B, step)._replace(mask=PackedMask(first_BT))

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

    def nll(self, x_BTD: jax.Array, targets_BT: jax.Array, z_loss: float = 0.0) -> jax.Array:
        """Returns the `cross_entropy` of targets, float32 (B, T), from the output of `hidden`."""
        if not self.fused_loss or is_tensor_parallel():
            return cross_entropy(self.logits(x_BTD), targets_BT, z_loss)
        # Imported here, so that other devices do not depend on Pallas.
        from gpt2_jax.nn.fused.head_loss import HeadLoss, head_loss

        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        targets_N = targets_BT.reshape(-1)
        kind = HeadLoss(self.cfg.vocab_size, jnp.dtype(self.product_dtype), z_loss)
        nll_N = head_loss(kind, x_ND, self.head_table(), targets_N)
        return nll_N.reshape(targets_BT.shape)

    def head_table(self) -> jax.Array:
        """Returns the output matrix (V, D) in the compute dtype."""
        head_VD = self.embedding.table() if self.head is None else self.head[...]
        return head_VD.astype(self.cfg.dtype)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits (B, T, V) from the output of `hidden`."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NV = product("ND,VD->NV", x_ND, self.head_table(), self.product_dtype)
        if self.logits_factor != 1.0:
            logits_NV = logits_NV * self.logits_factor
        n_padded = logits_NV.shape[-1] - self.cfg.vocab_size
        if self.logit_scale is not None:  # nGPT, eq. 3
            factor_V = self.logit_scale[...] * self.cfg.n_embd**0.5
            logits_NV = logits_NV * jnp.pad(factor_V, (0, n_padded))
        if n_padded:
            real_V = jnp.arange(logits_NV.shape[-1]) < self.cfg.vocab_size
            logits_NV = jnp.where(real_V, logits_NV, jnp.finfo(jnp.float32).min)
        return logits_NV.reshape(*x_BTD.shape[:-1], -1)
