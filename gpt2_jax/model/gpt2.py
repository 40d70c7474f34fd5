"""GPT-2 (Radford et al. 2019): embeddings, stacked blocks under a scan, final norm, head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model import placements
from gpt2_jax.model.norm import LayerNorm
from gpt2_jax.model.parts import Context, Init, Role, dropout
from gpt2_jax.model.residual import Block

Params = dict[str, Any]  # nested dict of arrays, by the modules' attribute names


def padded_vocab(cfg: ConfigDict | FrozenConfigDict) -> int:
    """Returns the vocabulary's size inside: the next multiple of `vocab_multiple`."""
    return -(-cfg.vocab_size // cfg.vocab_multiple) * cfg.vocab_multiple


class GPT2(nnx.Module):
    """Token ids (B, T) to next-token logits (B, T, V).

    Logits of padded ids (from `vocab_size` to V) are the lowest float: never likely, never drawn.
    """

    def __init__(self, cfg: FrozenConfigDict, key: jax.Array):
        init, v, d = Init(key), padded_vocab(cfg), cfg.n_embd
        self.cfg = cfg
        self.wte = nnx.Param(init.normal("wte", (v, d), cfg.init_std), role=Role.EMBEDDING)
        self.wpe = nnx.Param(
            init.normal("wpe", (cfg.n_positions, d), cfg.init_std), role=Role.POSITION
        )
        self.blocks = nnx.vmap(lambda layer: Block(cfg, Init(key, layer)))(jnp.arange(cfg.n_layer))
        if placements.PRESETS[cfg.placement].final_norm:
            self.ln_f = LayerNorm(d, cfg.norm_eps, cfg.dtype)
        if not cfg.tie_head:
            self.head = nnx.Param(init.normal("head", (v, d), cfg.init_std), role=Role.HEAD)

    def __call__(self, tokens_BT: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Returns float32 logits (B, T, V).

        Args:
          tokens_BT: integer ids, T at most `n_positions`.
          keys_B: a dropout key for each sequence, or None for no dropout.
        """
        x_BTD = self.embed(tokens_BT, jnp.arange(tokens_BT.shape[1]))
        x_BTD = dropout(x_BTD, keys_B, self.cfg.dropout, "embedding")
        return self.logits(self.run_blocks(x_BTD, keys_B))

    def embed(self, tokens_BT: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the sum of token and position embeddings, (B, T, D) in the compute dtype.

        Args:
          positions: (T) or (B, T).
        """
        x_BTD = self.wte[...][tokens_BT] + self.wpe[...][positions]
        return x_BTD.astype(self.cfg.dtype)

    def run_blocks(self, x_BTD: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """Applies the stacked blocks in order by a scan over layers."""
        graphdef, params_L = nnx.split(self.blocks)

        def body(x_BTD: jax.Array, layer: tuple[jax.Array, nnx.State]) -> tuple[jax.Array, None]:
            index, params = layer
            block = nnx.merge(graphdef, params)
            keys = (
                None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
            )
            return block(x_BTD, Context(index, keys)), None

        unroll = self.cfg.n_layer if self.cfg.unroll else 1
        layers = (jnp.arange(self.cfg.n_layer), params_L)
        return lax.scan(self._remat(body), x_BTD, layers, unroll=unroll)[0]

    def _remat(self, body: Any) -> Any:
        if self.cfg.remat == "none":
            return body
        keep = jax.checkpoint_policies
        policy = {
            "elementwise": keep.dots_with_no_batch_dims_saveable,
            "block": keep.nothing_saveable,
        }[self.cfg.remat]
        # Without the barrier an unrolled scan would share the recomputation with the forward pass.
        return jax.checkpoint(body, policy=policy, prevent_cse=self.cfg.unroll)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits of the final stream: final norm, head, mask of padded ids."""
        if hasattr(self, "ln_f"):
            x_BTD = self.ln_f(x_BTD)
        head_VD = self.wte if self.cfg.tie_head else self.head
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NV = project(x_ND, head_VD[...].astype(self.cfg.dtype))
        if self.cfg.vocab_size < logits_NV.shape[-1]:
            real_V = jnp.arange(logits_NV.shape[-1]) < self.cfg.vocab_size
            logits_NV = jnp.where(real_V, logits_NV, jnp.finfo(jnp.float32).min)
        return logits_NV.reshape(*x_BTD.shape[:-1], -1)


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
