"""The loss of predicting every token by its frequency alone."""

from __future__ import annotations

import numpy as np

from gpt2_jax.data.shards import Tokens

MAX_TOKENS = 10_000_000  # maximum number of tokens to count


def unigram_entropy(tokens: Tokens) -> float:
    """Returns the entropy of the token frequencies, in nats per token.

    A model whose loss is not below it has learned nothing from context.
    """
    return entropy(np.bincount(tokens.window(0, min(len(tokens), MAX_TOKENS))))


def entropy(counts: np.ndarray) -> float:
    """Returns the entropy in nats of the frequencies that counts give."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
