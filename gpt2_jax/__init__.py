"""Pretraining GPT-2 in JAX, to compare residual connections and norm placements."""

__version__ = "0.1.0"
