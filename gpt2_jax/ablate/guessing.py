"""What one loses who knows how frequent each token is, and nothing else."""

from __future__ import annotations

import numpy as np

from gpt2_jax.data.shards import Tokens

MOST = 10_000_000  # tokens counted


def guessing(tokens: Tokens) -> float:
    """Returns the entropy of the tokens' frequencies, nats a token.

    A model that is not below it on a text has learned nothing of what stands beside what.
    """
    counts = np.bincount(tokens.window(0, min(len(tokens), MOST)))
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
