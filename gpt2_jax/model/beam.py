"""Beam search over any step function, for decoders and for encoder-decoders.

A search keeps K live hypotheses per row. Each step extends all of them by all ids and ranks the 2K
best extensions. Those of the first K that end are finished; the best K that do not end stay live.
The K best finished hypotheses are kept, ranked by

    score = log p / penalty(n),    n ids, including the one that ends the text

with `power`, penalty(n) = n^alpha (fairseq and transformers), or `gnmt`, penalty(n) =
((5 + n) / 6)^alpha (Wu et al. 2016, eq. 14). The search of a row stops only when no live hypothesis
can become better than the worst of K finished ones. Since log p can only decrease, a live
hypothesis of n ids ends with a score of at most

    log p / max(penalty(n + 1), penalty(limit))

for penalties that increase (alpha > 0) or decrease (alpha < 0) with the length. Stopping earlier
(as transformers does by default, and fairseq once K hypotheses are finished) loses results.

The letter K is the number of beams here, C that of candidates, G that of groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gpt2_jax.errors import UserError

Caches = TypeVar("Caches")

_GROUP = 64  # ids per group; see `_candidates`
_IMPOSSIBLE = -1e30  # ids of the vocabulary's padding have lower logits than any real one


class Beams(NamedTuple):
    """The live hypotheses at a step. Each is in a slot, from 0 to K-1, of its row.

    Attributes:
      column: number of ids that hypotheses have, not counting the first token.
      tokens_BK: the last token of each.
      parents_BK: the slot of the previous step that each extends.
      slots_BKT: the slot of each hypothesis's ancestor at each step up to this one, so that a model
        can look up what the ancestor computed instead of reordering its caches.
    """

    column: jax.Array
    tokens_BK: jax.Array
    parents_BK: jax.Array
    slots_BKT: jax.Array


class Hypotheses(NamedTuple):
    """The K best hypotheses of each row, the best first.

    Attributes:
      ids_BKT: without the first token; after the last id, the id that ends a text (0 without one).
      lengths_BK: number of ids, including the one that ends the text; 0 if there are fewer than K.
      scores_BK: log p / penalty(length); -inf if there are fewer than K.
    """

    ids_BKT: jax.Array
    lengths_BK: jax.Array
    scores_BK: jax.Array


Step = Callable[[Caches, Beams], tuple[jax.Array, Caches]]


@dataclass(frozen=True)
class BeamParams:
    """Parameters of a beam search.

    Attributes:
      n_beams: K, live and finished hypotheses per row. With 1, the search is greedy: it ends with
        the first text that ends.
      alpha: exponent of the length penalty; 0 ranks by log p, which favors short texts.
      penalty: `power` or `gnmt`.
    """

    n_beams: int = 5
    alpha: float = 1.0
    penalty: Literal["power", "gnmt"] = "power"

    def check(self) -> None:
        """Checks the ranges of all values.

        Raises:
          UserError: naming the value that is out of range.
        """
        for name, holds, words in (
            ("beam", 1 <= self.n_beams <= 1000, "from 1 to 1000"),
            ("length_penalty", -10 <= self.alpha <= 10, "from -10 to 10"),
        ):
            if not holds:
                value = self.n_beams if name == "beam" else self.alpha
                raise UserError(f"{name}={value} must be {words}")

    def of_length(self, n: jax.Array) -> jax.Array:
        """Returns the penalty of texts with n ids."""
        base = n.astype(jnp.float32)
        return ((5 + base) / 6 if self.penalty == "gnmt" else base) ** self.alpha


class _State(NamedTuple):
    beams: Beams
    ids_BKT: jax.Array
    log_p_BK: jax.Array  # in descending order; -inf for no hypothesis
    finished: Hypotheses


def beam_search(
    step: Step[Caches],
    caches: Caches,
    first_B: jax.Array,
    limits_B: jax.Array,
    params: BeamParams,
    *,
    length: int,
    end: int | None,
) -> Hypotheses:
    """Returns the best continuations of the first tokens; usable under a trace.

    Rows are independent of each other. Text that reaches its limit is finished there.

    Args:
      step: returns the logits, (B K, V) or (B, K, V), after the last token of each hypothesis, and
        the caches with these tokens. Slots without a hypothesis hold token 0.
      caches: the state before the first tokens, of any type, for B rows or for B K.
      first_B: the first token of each row, such as the one that starts a text.
      limits_B: the largest number of ids of each row, from 1 to `length`.
      length: T, number of columns of the result.
      end: id that ends a text; None if there is none.
    """
    n_beams = params.n_beams

    def body(carry: tuple[_State, Caches]) -> tuple[_State, Caches]:
        state, caches = carry
        logits, caches = step(caches, state.beams)
        logits_BKV = logits.reshape(*state.log_p_BK.shape, -1).astype(jnp.float32)
        return _advance(state, logits_BKV, limits_B, params, end), caches

    def more(carry: tuple[_State, Caches]) -> jax.Array:
        state, _ = carry
        return (state.log_p_BK > -jnp.inf).any() & (state.beams.column < length)

    state = _first_state(first_B, n_beams, length, 0 if end is None else end)
    return lax.while_loop(more, body, (state, caches))[0].finished


def _first_state(first_B: jax.Array, n_beams: int, length: int, blank: int) -> _State:
    """Returns one live hypothesis per row, without ids, in slot 0."""
    shape = (first_B.shape[0], n_beams)
    slots_BK = jnp.broadcast_to(jnp.arange(n_beams), shape)
    tokens_BK = jnp.broadcast_to(first_B[:, None], shape).astype(jnp.int32)
    slots_BKT = jnp.zeros((*shape, length), jnp.int32).at[..., 0].set(slots_BK)
    ids_BKT = jnp.full((*shape, length), blank, jnp.int32)
    none_BK = jnp.full(shape, -jnp.inf)
    finished = Hypotheses(ids_BKT, jnp.zeros(shape, jnp.int32), none_BK)
    beams = Beams(jnp.int32(0), tokens_BK, slots_BK, slots_BKT)
    return _State(beams, ids_BKT, none_BK.at[:, 0].set(0.0), finished)


def _advance(
    state: _State,
    logits_BKV: jax.Array,
    limits_B: jax.Array,
    params: BeamParams,
    end: int | None,
) -> _State:
    """Returns the state with one more id per hypothesis."""
    n_beams, length = params.n_beams, state.beams.column + 1
    log_p_BC, slots_BC, new_BC = _candidates(logits_BKV, state.log_p_BK, 2 * n_beams)
    ids_BCT = _take(state.ids_BKT, slots_BC).at[..., length - 1].set(new_BC)
    ends_BC = jnp.broadcast_to((limits_B <= length)[:, None], new_BC.shape)
    if end is not None:
        ends_BC |= new_BC == end
    finished = _finish(
        state.finished,
        ids_BCT[:, :n_beams],
        jnp.where(ends_BC, log_p_BC, -jnp.inf)[:, :n_beams],
        length,
        params,
    )
    log_p_BK, live_BK = lax.top_k(jnp.where(ends_BC, -jnp.inf, log_p_BC), n_beams)
    is_open_B = _can_improve(log_p_BK[:, 0], finished, length, limits_B, params)
    log_p_BK = jnp.where(is_open_B[:, None], log_p_BK, -jnp.inf)
    tokens_BK = jnp.where(log_p_BK > -jnp.inf, _take(new_BC, live_BK), 0)
    parents_BK = _take(slots_BC, live_BK)
    slots_BKT = _take(state.beams.slots_BKT, parents_BK)
    own_K = jnp.arange(n_beams)  # after the last step, the update is out of bounds and dropped
    slots_BKT = slots_BKT.at[..., length].set(own_K, mode="drop")
    beams = Beams(length, tokens_BK, parents_BK, slots_BKT)
    return _State(beams, _take(ids_BCT, live_BK), log_p_BK, finished)


def _candidates(
    logits_BKV: jax.Array, log_p_BK: jax.Array, n: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns log p, slot and id, each (B, C), of the `n` best extensions, in descending order.

    The n best ids are in the n groups with the largest maxima. Ranking the maxima, and then the ids
    of n groups, takes a quarter of the time of ranking all ids (4096 ids, 5 beams, on a CPU).
    """
    n_beams, n_ids = logits_BKV.shape[1:]
    padding = ((0, 0), (0, 0), (0, -n_ids % _GROUP))
    logits_BKV = jnp.pad(logits_BKV, padding, constant_values=-jnp.inf)
    groups_BKG = logits_BKV.reshape(*log_p_BK.shape, -1, _GROUP)
    maxima_BKG = groups_BKG.max(-1)
    largest_BK = maxima_BKG.max(-1)
    total_BK = jnp.exp(logits_BKV - largest_BK[..., None]).sum(-1)
    offset_BK = log_p_BK - largest_BK - jnp.log(total_BK)
    n_groups = maxima_BKG.shape[2]
    ranked_BG = (maxima_BKG + offset_BK[..., None]).reshape(len(log_p_BK), -1)
    _, group_BC = lax.top_k(ranked_BG, min(n, n_beams * n_groups))
    flat_BGI = groups_BKG.reshape(len(log_p_BK), -1, _GROUP)
    some_BCI = _take(flat_BGI, group_BC) + _take(offset_BK, group_BC // n_groups)[..., None]
    log_p_BC, at_BC = lax.top_k(some_BCI.reshape(len(log_p_BK), -1), n)
    group_BC = _take(group_BC, at_BC // _GROUP)
    ids_BC = group_BC % n_groups * _GROUP + at_BC % _GROUP
    return jnp.where(log_p_BC > _IMPOSSIBLE, log_p_BC, -jnp.inf), group_BC // n_groups, ids_BC


def _finish(
    finished: Hypotheses,
    ids_BKT: jax.Array,
    log_p_BK: jax.Array,
    length: jax.Array,
    params: BeamParams,
) -> Hypotheses:
    """Returns the best of the finished hypotheses and of new ones, whose log p is -inf if none."""
    scores_BK = log_p_BK / params.of_length(length)
    lengths_BK = jnp.where(log_p_BK > -jnp.inf, length, 0)
    new = Hypotheses(ids_BKT, lengths_BK, scores_BK)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), finished, new)
    _, best_BK = lax.top_k(both.scores_BK, params.n_beams)
    return jax.tree.map(lambda x: _take(x, best_BK), both)


def _can_improve(
    log_p_B: jax.Array,
    finished: Hypotheses,
    length: jax.Array,
    limits_B: jax.Array,
    params: BeamParams,
) -> jax.Array:
    """Returns whether the best live hypothesis of a row can become one of the K best, (B).

    Args:
      log_p_B: of the best live hypothesis, with `length` ids.
    """
    if params.n_beams == 1:
        return jnp.isneginf(finished.scores_BK[:, 0])
    largest_B = jnp.maximum(params.of_length(length + 1), params.of_length(limits_B))
    return log_p_B / largest_B > finished.scores_BK[:, -1]


def _take(x_BN: jax.Array, index_BC: jax.Array) -> jax.Array:
    """Returns x[b, index[b, c]], (B, C, ...)."""
    index = index_BC.reshape(*index_BC.shape, *(1,) * (x_BN.ndim - 2))
    return jnp.take_along_axis(x_BN, index, 1, mode="clip")
