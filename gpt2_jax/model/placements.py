"""Residual connections and norm placements, as data that needs no jax to be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Where the norms stand around a sublayer F and how its output meets the stream.

    Attributes:
      equation: one sublayer, in the notation of its source.
      citation: the paper (and code) that defines it.
      final_norm: whether a norm follows the last block.
    """

    equation: str
    citation: str
    final_norm: bool


PRESETS: dict[str, Placement] = {
    "pre_ln": Placement(
        equation="x' = x + F(N(x))",
        citation="GPT-2 (Radford et al. 2019), openai/gpt-2 src/model.py",
        final_norm=True,
    ),
}
