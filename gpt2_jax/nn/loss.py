"""Next-token cross-entropy, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns -log softmax(logits)[target] for each position, float32 (B, T).

    Targets are picked by comparison: the gradient of a gather is a scatter, for which a GPU would
    write all logits' gradients in float32 and read them again.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
    picked_BT = jnp.where(is_target_BTV, logits_BTV, 0.0).sum(-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT
