"""Drives a beam search by a step function whose caches have a row per hypothesis."""

import jax.numpy as jnp


def reordering(step, reorder):
    """Returns a step function for `beam_search`.

    Args:
      step: returns the logits (N, V) of the next token of N = B K rows, row b K + k that of slot k,
        and the caches.
      reorder: returns the caches in which row n is the given row `rows_N[n]`.
    """

    def reordered(caches, beams):
        n_rows, n_beams = beams.parents_BK.shape
        rows_BK = jnp.arange(n_rows)[:, None] * n_beams + beams.parents_BK
        return step(reorder(caches, rows_BK.reshape(-1)), beams.tokens_BK.reshape(-1))

    return reordered
