"""Cross-entropy, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """Returns -log softmax(logits)[target] + z_loss log^2 Z for each position, float32 (B, T).

    Z = sum(exp(logits)); the second term keeps it near 1 (Chowdhery et al. 2022, PaLM, section 5).
    Targets are picked by comparison: the gradient of a gather is a scatter, for which a GPU would
    write all logits' gradients in float32 and read them again.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
    picked_BT = jnp.where(is_target_BTV, logits_BTV, 0.0).sum(-1)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nll_BT = log_z_BT - picked_BT
    return nll_BT + z_loss * jnp.square(log_z_BT) if z_loss else nll_BT


def smoothed_cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, epsilon: float, n_classes: int
) -> jax.Array:
    """Returns the cross-entropy with label smoothing, float32 (B, T).

    The target has probability 1 - epsilon, and each other class epsilon / (C - 1) (Szegedy et al.
    2016, section 7, as in fairseq and T5X).

    Args:
      logits_BTV: of C classes, followed by padding, which has no probability.
      n_classes: C.
    """
    logits_BTC = logits_BTV[..., :n_classes].astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTC, axis=-1)
    is_target_BTC = targets_BT[..., None] == jnp.arange(n_classes)
    picked_BT = jnp.where(is_target_BTC, logits_BTC, 0.0).sum(-1)
    others_BT = (n_classes - 1) * log_z_BT - (logits_BTC.sum(-1) - picked_BT)
    return (1 - epsilon) * (log_z_BT - picked_BT) + epsilon / (n_classes - 1) * others_BT
