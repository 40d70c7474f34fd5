"""Heads: what a model predicts from the output of its last tower."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.tower import Tower
from gpt2_jax.nn.activations import ACTIVATIONS
from gpt2_jax.nn.dropout import dropout
from gpt2_jax.nn.linear import Linear
from gpt2_jax.nn.norms import NormSpec, make_norm
from gpt2_jax.nn.param import Init, Role, param
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import TowerSpec

TOKEN_KINDS = ("lm", "mlm")
LABEL_KINDS = ("tokens", "sequence", "span", "pooled")
HEADS = ("head", "mlm")  # top-level parts of a model that belong to its task
N_SPAN_OUTPUTS = 2  # scores of starts and of ends


@dataclass(frozen=True)
class HeadSpec:
    """A head.

    Attributes:
      kind: `lm` (next tokens), `mlm` (masked tokens), `tokens` (a label per token), `sequence` (a
        label per sequence), `span` (its first and last token) or `pooled` (the vector that a label
        per sequence would be read from: BERT without a task).
      n_labels: number of labels; only for `tokens` and `sequence`.
      pool, transform: as in `HeadConfig`.
    """

    kind: str
    n_labels: int = 0
    pool: str = "cls"
    transform: bool | None = None

    @property
    def has_transform(self) -> bool:
        """Whether a dense layer comes before the output matrix."""
        if self.kind not in ("mlm", "sequence", "pooled"):
            return False
        pools = self.kind != "mlm" and self.pool == "mean"
        return not pools if self.transform is None else self.transform

    @property
    def n_outputs(self) -> int:
        """Columns of the output matrix of a label head."""
        return N_SPAN_OUTPUTS if self.kind == "span" else self.n_labels


LM = HeadSpec("lm")


def _dense(cfg: ModelConfig, init: Init, site: str) -> Linear:
    sizes, axes = ((cfg.n_embd,), (cfg.n_embd,)), ("embed", "embed")
    return Linear(*sizes, axes=axes, site=site, std=cfg.init_std, init=init, dtype=cfg.dtype)


class MaskedTokenHead(nnx.Module):
    """x -> N(f(W x + b)) before the token table, and a bias per token (Devlin et al. 2019, BERT).

    f is the MLP's activation, GELU if that is gated.
    """

    def __init__(self, cfg: ModelConfig, spec: TowerSpec, head: HeadSpec, init: Init):
        activation = spec.mlp.activation
        self.activation = activation if activation in ACTIVATIONS else "gelu"
        self.dense = _dense(cfg, init, "mlm.dense") if head.has_transform else None
        norm = NormSpec("layernorm", spec.norm.eps, True, cfg.dtype)
        self.norm = make_norm(cfg.n_embd, norm) if head.has_transform else None
        self.bias = param(jnp.zeros(cfg.vocab_size), Role.BIAS, ("vocab",))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns what the token table is applied to, (B, T, D)."""
        if self.dense is None or self.norm is None:
            return x_BTD
        return self.norm(ACTIVATIONS[self.activation](self.dense(x_BTD)))


class LabelHead(nnx.Module):
    """Logits of labels: of each token, of a sequence, or of the tokens that bound a span.

    A sequence is read from its first token or from the mean over its tokens; with a transform,
    tanh(W x + b) of that (BERT's pooler).
    """

    def __init__(self, cfg: ModelConfig, spec: HeadSpec, init: Init):
        self.spec, self.rate = spec, cfg.dropout
        self.dense = _dense(cfg, init, "head.dense") if spec.has_transform else None
        has_labels = spec.kind != "pooled"
        value = init.normal("head.out", (cfg.n_embd, spec.n_outputs), cfg.init_std)
        self.kernel = param(value, Role.HEAD, ("embed", None)) if has_labels else None
        self.bias = param(jnp.zeros(spec.n_outputs), Role.BIAS, (None,)) if has_labels else None

    def __call__(
        self, x_BTD: jax.Array, segments_BT: jax.Array | None, keys_B: jax.Array | None
    ) -> jax.Array:
        """Returns float32 logits; the arguments are those of `LabelModel.logits`."""
        pools = self.spec.kind in ("sequence", "pooled")
        x = self._pool(x_BTD, segments_BT) if pools else x_BTD
        if self.dense is not None:
            x = jnp.tanh(self.dense(x))
        if self.kernel is None or self.bias is None:
            return x.astype(jnp.float32)
        x = dropout(x, keys_B, self.rate, "head")
        logits = x.astype(jnp.float32) @ self.kernel[...] + self.bias[...]
        if self.spec.kind == "span" and segments_BT is not None:
            logits = jnp.where(segments_BT[..., None] != 0, logits, jnp.finfo(jnp.float32).min)
        return logits

    def _pool(self, x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        if self.spec.pool == "cls":
            return x_BTD[:, 0]
        if segments_BT is None:
            return x_BTD.mean(1)
        weights_BT1 = (segments_BT != 0)[..., None].astype(jnp.float32)
        n_tokens_B1 = jnp.maximum(weights_BT1.sum(1), 1.0)  # rows that fill up a batch have none
        return ((x_BTD * weights_BT1).sum(1) / n_tokens_B1).astype(x_BTD.dtype)


class LabelModel(Tower):
    """Token ids (B, T) to logits of labels."""

    def __init__(
        self, cfg: ModelConfig, spec: TowerSpec, target: Target, key: jax.Array, head: HeadSpec
    ):
        super().__init__(cfg, spec, target, key)
        self.head = LabelHead(cfg, head, Init(key))

    def logits(
        self,
        x_BTD: jax.Array,
        segments_BT: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 logits from the output of `hidden`, of one example per row.

        (B, T, C) for labels of tokens, (B, C) for labels of sequences, and (B, T, 2) for spans:
        scores of the first and the last token, the lowest float at padding. Without labels, the
        vector of each sequence (B, D).

        Args:
          segments_BT: 0 at padding; None if there is none.
          keys_B: a dropout key per sequence; None for no dropout.
        """
        return self.head(x_BTD, segments_BT, keys_B)
