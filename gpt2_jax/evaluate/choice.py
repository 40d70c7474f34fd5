"""How the next token is chosen from the model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from gpt2_jax.errors import UserError


@dataclass(frozen=True)
class Choice:
    """Rules for drawing a token, applied in the order of the fields.

    Attributes:
      repetition_penalty: logits of ids that are already in the text are divided by it where
        positive and multiplied where negative (Keskar et al. 2019, CTRL, section 4.1).
      temperature: divides the logits; 0 takes the likeliest id.
      top_k: draws among this many likeliest ids; 0 for all (Fan et al. 2018).
      top_p: draws among the fewest likeliest ids that hold this much probability (Holtzman et al.
        2020, nucleus sampling, eq. 2).
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Refuses values that mean nothing.

        Raises:
          UserError: naming the value.
        """
        hot = self.temperature
        for name, holds, words in (
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100"),
            # Quotients of logits and any smaller temperature would leave float32.
            ("temperature", hot == 0 or 1e-3 <= hot <= 1e3, "0, or between 0.001 and 1000"),
            ("top_k", 0 <= self.top_k < 2**31, "0 or more, and below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not holds:
                raise UserError(f"--{name}={getattr(self, name)} must be {words}")


GREEDY = Choice(temperature=0.0)
# Logits divided by less overflow; by more, those of the vocabulary's padding are drawn too.
TEMPERATURES = (1e-30, 1e30)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """Returns logits with those of ids seen before made less likely."""
    lower_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lower_BV, logits_BV)


def draw(choice: Choice, logits_BV: jax.Array, seen_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Returns an id for each row, (B).

    Args:
      seen_BV: which ids are in the row's text; read only where there is a penalty.
      keys_B: a key for each row, so that what a row draws does not depend on its neighbours.
    """
    if choice.repetition_penalty != 1.0:
        logits_BV = penalize(logits_BV, seen_BV, choice.repetition_penalty)
    if choice.temperature == 0.0:
        return logits_BV.argmax(-1)
    least, most = TEMPERATURES
    logits_BV = logits_BV / min(max(choice.temperature, least), most)
    n_ids = logits_BV.shape[-1]
    if choice.top_p == 1.0 and not 0 < choice.top_k < n_ids:
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV)
    best_BK, ids_BK = lax.top_k(logits_BV, min(choice.top_k or n_ids, n_ids))
    if choice.top_p < 1.0:
        p_BK = jax.nn.softmax(best_BK)
        before_BK = p_BK.cumsum(-1) - p_BK
        best_BK = jnp.where(before_BK < choice.top_p, best_BK, -jnp.inf)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, best_BK)
    return jnp.take_along_axis(ids_BK, drawn_B[:, None], axis=1)[:, 0]
