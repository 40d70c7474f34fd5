"""A tower that predicts tokens: GPT-2 (Radford et al. 2019) if it is a decoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.builder import fuses, product_dtype
from gpt2_jax.model.embedding import padded_vocab
from gpt2_jax.model.heads import LM, HeadSpec, MaskedTokenHead
from gpt2_jax.model.parametrization import logits_factor
from gpt2_jax.model.tower import Inputs, Tower
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.nn.param import Init, Role, param
from gpt2_jax.nn.products import product
from gpt2_jax.nn.target import Target
from gpt2_jax.nn.tensor_parallel import is_tensor_parallel
from gpt2_jax.placements.spec import TowerSpec


class Transformer(Tower):
    """Token ids (B, T) to logits of tokens (B, T, V): of the next ones, or of masked ones.

    Logits of padding ids, from `vocab_size` to V, are the lowest float, so they are never sampled.

    Args:
      head: of kind `lm`, or `mlm` for masked tokens. owns_table: as in `Embedding`.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        spec: TowerSpec,
        target: Target,
        key: jax.Array,
        head: HeadSpec = LM,
        owns_table: bool = True,
    ):
        super().__init__(cfg, spec, target, key, owns_table)
        table = lambda: Init(key).normal("head", (padded_vocab(cfg), cfg.n_embd), cfg.init_std)
        self.head = None if cfg.tie_head else param(table(), Role.HEAD, ("vocab", "embed"))
        masked = head.kind == "mlm"
        self.mlm = MaskedTokenHead(cfg, spec, head, Init(key)) if masked else None
        self.logits_factor = logits_factor(cfg, spec)
        scale = jnp.full(cfg.vocab_size, cfg.n_embd**-0.5)
        self.logit_scale = param(scale, Role.SCALAR, ("vocab",)) if spec.logit_scale else None
        bias = jnp.zeros(cfg.vocab_size)
        self.logits_bias = param(bias, Role.BIAS, ("vocab",)) if cfg.logits_bias else None
        scaled = self.logits_factor != 1.0 or self.logit_scale is not None
        self.fused_loss = fuses(cfg, target) and not scaled and not masked and not cfg.logits_bias
        self.product_dtype = product_dtype(cfg, target) or cfg.dtype

    def __call__(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
    ) -> jax.Array:
        """Returns float32 logits (B, T, V); the arguments are those of `hidden`."""
        return self.logits(self.hidden(inputs, keys_B, step))

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
        if self.mlm is not None:
            x_BTD = self.mlm(x_BTD)
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NV = product("ND,VD->NV", x_ND, self.head_table(), self.product_dtype)
        if self.logits_factor != 1.0:
            logits_NV = logits_NV * self.logits_factor
        n_padded = logits_NV.shape[-1] - self.cfg.vocab_size
        if self.logit_scale is not None:  # nGPT, eq. 3
            factor_V = self.logit_scale[...] * self.cfg.n_embd**0.5
            logits_NV = logits_NV * jnp.pad(factor_V, (0, n_padded))
        if self.mlm is not None:
            logits_NV = logits_NV + jnp.pad(self.mlm.bias[...], (0, n_padded))
        if self.logits_bias is not None:
            logits_NV = logits_NV + jnp.pad(self.logits_bias[...], (0, n_padded))
        if n_padded:
            real_V = jnp.arange(logits_NV.shape[-1]) < self.cfg.vocab_size
            logits_NV = jnp.where(real_V, logits_NV, jnp.finfo(jnp.float32).min)
        return logits_NV.reshape(*x_BTD.shape[:-1], -1)
