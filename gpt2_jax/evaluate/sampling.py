"""Samples the next token from the model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from gpt2_jax.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters, applied in the order of the fields.

    Attributes:
      repetition_penalty: divides positive logits, and multiplies negative ones, of ids that are
        already in the text (Keskar et al. 2019, CTRL, section 4.1).
      temperature: divides the logits; 0 is greedy decoding.
      top_k: samples from the k most likely ids; 0 for all (Fan et al. 2018).
      top_p: samples from the smallest set of most likely ids with at least this probability
        (Holtzman et al. 2020, nucleus sampling, eq. 2).
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Checks the ranges of all values.

        Raises:
          UserError: naming the value that is out of range.
        """
        t = self.temperature
        for name, holds, words in (
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100"),
            # Logits divided by a smaller temperature would overflow float32.
            ("temperature", t == 0 or 1e-3 <= t <= 1e3, "0, or between 0.001 and 1000"),
            ("top_k", 0 <= self.top_k < 2**31, "0 or more, and below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not holds:
                raise UserError(f"--{name}={getattr(self, name)} must be {words}")


GREEDY = SamplingParams(temperature=0.0)
# Below, logits overflow; above, the vocabulary's padding is sampled too.
TEMPERATURES = (1e-30, 1e30)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """Returns logits in which ids seen before are less likely."""
    lower_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lower_BV, logits_BV)


def sample(
    params: SamplingParams, logits_BV: jax.Array, seen_BV: jax.Array, keys_B: jax.Array
) -> jax.Array:
    """Samples an id for each row, (B).

    Args:
      seen_BV: which ids are in the row's text; only used for the repetition penalty.
      keys_B: one key per row, which makes rows independent of each other.
    """
    if params.repetition_penalty != 1.0:
        logits_BV = penalize(logits_BV, seen_BV, params.repetition_penalty)
    if params.temperature == 0.0:
        return logits_BV.argmax(-1)
    least, most = TEMPERATURES
    logits_BV = logits_BV / min(max(params.temperature, least), most)
    n_ids = logits_BV.shape[-1]
    if params.top_p == 1.0 and not 0 < params.top_k < n_ids:
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV)
    best_BK, ids_BK = lax.top_k(logits_BV, min(params.top_k or n_ids, n_ids))
    if params.top_p < 1.0:
        p_BK = jax.nn.softmax(best_BK)
        before_BK = p_BK.cumsum(-1) - p_BK
        best_BK = jnp.where(before_BK < params.top_p, best_BK, -jnp.inf)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, best_BK)
    return jnp.take_along_axis(ids_BK, drawn_B[:, None], axis=1)[:, 0]
