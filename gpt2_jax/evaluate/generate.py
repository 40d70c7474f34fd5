"""Generation with a key/value cache: prefill and token loop in one compiled program.

The prompts of a batch may differ in length: they are padded on the left, and padding is masked.
A model sees at most `window` tokens. When the window is full, its last half becomes the prompt of a
new window; a prompt that fills the window is shortened to its last half in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gpt2_jax.evaluate.sampling import SamplingParams, sample
from gpt2_jax.model.beam import BeamParams, Hypotheses, beam_search
from gpt2_jax.model.decode import (
    Caches,
    UnstackedModel,
    UnstackedParams,
    bind_unstacked,
    decode,
    decode_beams,
    first_caches,
    unstack_params,
)
from gpt2_jax.model.definition import ModelDef

MIN_LENGTH = 16  # minimum padded length of prompts and caches


class Decoding(NamedTuple):
    """The state of a batch between two tokens.

    Attributes:
      column: cache column of the next token.
      logits_BV: logits of the next token.
      seen_BV: which ids are in each row's text.
      first_B: the first column that later tokens attend to, as in `decode`.
      done_B: which rows have ended.
    """

    caches: Caches
    column: jax.Array
    logits_BV: jax.Array
    seen_BV: jax.Array
    first_B: jax.Array
    done_B: jax.Array


class Generator:
    """Continues prompts with one model.

    Args:
      step: number of steps the parameters were trained for.
      window: maximum number of tokens that the model sees, at most `n_positions`.
      end: id that ends a text without being part of it; None if there is none.
    """

    def __init__(
        self, model_def: ModelDef, params: Any, step: int, window: int, end: int | None = None
    ) -> None:
        self._model_def, self._window, self._end = model_def, window, end
        self._unstacked = unstack_params(model_def, params, step)

    def generate(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: SamplingParams, seed: int = 0
    ) -> list[list[int]]:
        """Returns up to `n_new` ids that continue each prompt, excluding `end`."""
        contexts: list[list[int]] = [list(prompt) for prompt in prompts]
        texts: list[list[int]] = [[] for _ in prompts]
        n_done = 0
        done_B = np.zeros(len(texts), bool)
        while n_done < n_new and not done_B.all():
            contexts = [self._cut(context) for context in contexts]
            tokens_BT, padding_B, free = self._pad(contexts)
            n = min(free, n_new - n_done)
            new_BN, done_B = _generate(
                self._model_def,
                self._unstacked,
                tokens_BT,
                padding_B,
                done_B,
                jax.random.key(seed),
                n_done,
                n,
                length=tokens_BT.shape[1] + next_power_of_two(n, MIN_LENGTH),
                sampling=sampling,
                end=self._end,
            )
            done_B = np.asarray(done_B)
            for text, context, new in zip(texts, contexts, np.asarray(new_BN), strict=True):
                text.extend(new[:n].tolist())
                context.extend(new[:n].tolist())
            n_done += n
        return [self._until_end(text) for text in texts]

    def stream(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: SamplingParams, seed: int = 0
    ) -> Iterator[list[int | None]]:
        """Like `generate`, but yields ids column by column; None for rows that have ended."""
        contexts: list[list[int]] = [list(prompt) for prompt in prompts]
        n_done = 0
        done_B = np.zeros(len(contexts), bool)
        while n_done < n_new:
            contexts = [self._cut(context) for context in contexts]
            tokens_BT, padding_B, free = self._pad(contexts)
            n = min(free, n_new - n_done)
            length = tokens_BT.shape[1] + next_power_of_two(n, MIN_LENGTH)
            state = _prefill(
                self._model_def, self._unstacked, tokens_BT, padding_B, done_B, length=length
            )
            for _ in range(n):
                key = jax.random.fold_in(jax.random.key(seed), n_done)
                ids_B, state = _advance(
                    self._model_def, self._unstacked, state, key, sampling=sampling, end=self._end
                )
                done_B, n_done = np.asarray(state.done_B), n_done + 1
                yield [None if d else int(i) for i, d in zip(ids_B, done_B, strict=True)]
                for context, i in zip(contexts, np.asarray(ids_B), strict=True):
                    context.append(int(i))
                if done_B.all():
                    return

    def search(
        self, prompts: Sequence[Sequence[int]], n_new: int, params: BeamParams
    ) -> list[list[tuple[list[int], float]]]:
        """Returns the best continuations of each prompt and their scores, the best first.

        Continuations have up to `n_new` ids, excluding `end`, or fewer if the window is full.
        """
        contexts = [self._cut(list(prompt)) for prompt in prompts]
        tokens_BT, padding_B, free = self._pad(contexts)
        n = min(n_new, free)
        found = _search(
            self._model_def,
            self._unstacked,
            tokens_BT,
            padding_B,
            n,
            length=next_power_of_two(n, MIN_LENGTH),
            params=params,
            end=self._end,
        )
        ids_BKT, lengths_BK, scores_BK = (np.asarray(x) for x in found)
        return [
            [
                (
                    self._until_end(ids_BKT[b, k, : lengths_BK[b, k]].tolist()),
                    float(scores_BK[b, k]),
                )
                for k in range(params.n_beams)
                if lengths_BK[b, k]
            ]
            for b in range(len(contexts))
        ]

    def next_distribution(self, prompt: Sequence[int]) -> np.ndarray:
        """Returns the log-probabilities (V) of the token after a prompt."""
        tokens_BT, padding_B, _ = self._pad([self._cut(list(prompt))])
        done_B = np.zeros(1, bool)
        state = _prefill(
            self._model_def,
            self._unstacked,
            tokens_BT,
            padding_B,
            done_B,
            length=tokens_BT.shape[1],
        )
        log_p_BV = jax.nn.log_softmax(state.logits_BV)
        return np.asarray(log_p_BV)[0, : self._model_def.cfg.vocab_size]

    def logits(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns float32 logits (B, T, V) after each token of prompts of equal length.

        V is the vocabulary size, without padding.

        Raises:
          ValueError: if the prompts are empty, differ in length, or are longer than the window.
        """
        lengths = {len(prompt) for prompt in prompts}
        if len(lengths) != 1 or not 1 <= lengths.copy().pop() <= self._window:
            raise ValueError(f"prompts must have the same length, from 1 to {self._window} tokens")
        tokens_BT = np.array(prompts, np.int32)
        logits_BTV = _logits(self._model_def, self._unstacked, tokens_BT)
        return np.asarray(logits_BTV, np.float32)[..., : self._model_def.cfg.vocab_size]

    def _cut(self, context: list[int]) -> list[int]:
        """Returns the context to continue: all of it, or the last half of a full window."""
        if not context:
            raise ValueError("a prompt needs at least one token")
        return context if len(context) < self._window else context[-max(1, self._window // 2) :]

    def _pad(self, contexts: list[list[int]]) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns a padded batch, each row's padding, and how many tokens fit after the longest."""
        longest = max(map(len, contexts))
        width = min(self._window, next_power_of_two(longest, MIN_LENGTH))
        tokens_BT = np.zeros((len(contexts), width), np.int32)
        padding_B = np.zeros(len(contexts), np.int32)
        for row, context in enumerate(contexts):
            padding_B[row] = width - len(context)
            tokens_BT[row, padding_B[row] :] = context
        return tokens_BT, padding_B, max(1, self._window - longest)

    def _until_end(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self._end)] if self._end in ids else ids


def next_power_of_two(n: int, minimum: int) -> int:
    """Returns the padded length of `n` columns; few different lengths need to be compiled."""
    return max(minimum, 1 << (n - 1).bit_length())


def prefill(
    bound: UnstackedModel,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    done_B: jax.Array,
    length: int,
) -> Decoding:
    """Reads padded prompts (B, T) into caches of `length` columns."""
    n_rows, width = tokens_BT.shape
    caches = first_caches(bound, n_rows, length)
    x_BTD, caches, first_B = decode(bound, tokens_BT, caches, 0, padding_B)
    logits_BV = bound.model.logits(x_BTD[:, -1:])[:, 0]
    real_BT = jnp.arange(width) >= padding_B[:, None]
    rows = jnp.arange(n_rows)[:, None]
    seen_BV = jnp.zeros(logits_BV.shape, bool).at[rows, tokens_BT].max(real_BT)
    return Decoding(caches, jnp.int32(width), logits_BV, seen_BV, first_B, jnp.asarray(done_B))


def advance(
    bound: UnstackedModel,
    state: Decoding,
    key: jax.Array,
    sampling: SamplingParams,
    end: int | None,
) -> tuple[jax.Array, Decoding]:
    """Returns the next id of each row (`end` if the row has ended) and the next state."""
    rows_B = jnp.arange(state.done_B.shape[0])
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)
    ids_B = sample(sampling, state.logits_BV, state.seen_BV, keys_B).astype(jnp.int32)
    done_B = state.done_B
    if end is not None:
        ids_B = jnp.where(done_B, end, ids_B)
        done_B = ids_B == end
    x_B1D, caches, first_B = decode(
        bound, ids_B[:, None], state.caches, state.column, state.first_B
    )
    seen_BV = state.seen_BV.at[rows_B, ids_B].set(True)
    logits_BV = bound.model.logits(x_B1D)[:, 0]
    return ids_B, Decoding(caches, state.column + 1, logits_BV, seen_BV, first_B, done_B)


@partial(jax.jit, static_argnames=("model_def", "length", "sampling", "end"))
def _generate(
    model_def: ModelDef,
    unstacked: UnstackedParams,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    done_B: jax.Array,
    key: jax.Array,
    n_done: jax.Array,
    n: jax.Array,
    *,
    length: int,
    sampling: SamplingParams,
    end: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns ids (B, length - T), of which the first `n` are sampled, and which rows are done.

    Args:
      n_done: number of ids sampled in earlier calls, so that each id has its own key.
    """
    bound = bind_unstacked(model_def, unstacked)
    width = tokens_BT.shape[1]
    state = prefill(bound, tokens_BT, padding_B, done_B, length)
    blank = 0 if end is None else end
    new_NB = jnp.full((length - width, tokens_BT.shape[0]), blank, jnp.int32)

    def more(carry: tuple[Decoding, jax.Array]) -> jax.Array:
        return (carry[0].column < width + n) & ~carry[0].done_B.all()

    def body(carry: tuple[Decoding, jax.Array]) -> tuple[Decoding, jax.Array]:
        state, new_NB = carry
        i = state.column - width
        ids_B, state = advance(bound, state, jax.random.fold_in(key, n_done + i), sampling, end)
        return state, new_NB.at[i].set(ids_B)

    state, new_NB = lax.while_loop(more, body, (state, new_NB))
    return new_NB.T, state.done_B


@partial(jax.jit, static_argnames=("model_def", "length", "params", "end"))
def _search(
    model_def: ModelDef,
    unstacked: UnstackedParams,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    n: jax.Array,
    *,
    length: int,
    params: BeamParams,
    end: int | None,
) -> Hypotheses:
    """Returns the best continuations of padded prompts, of up to `n` ids."""
    bound = bind_unstacked(model_def, unstacked)
    cfg, (n_rows, width) = model_def.cfg, tokens_BT.shape
    caches = first_caches(bound, n_rows, width + length * params.n_beams)
    # The last token of the prompt is the first one of the search.
    earlier_BT = jnp.roll(tokens_BT, 1, axis=1)
    _, caches, first_B = decode(bound, earlier_BT, caches, 0, padding_B + 1)
    last_B = tokens_BT[:, -1]
    if cfg.document_mask:  # end-of-text begins a document, and so ends any hypothesis
        end = cfg.end_of_text
        first_B = jnp.where(last_B == end, width, first_B)
    step = lambda caches, beams: decode_beams(bound, caches, beams, width, first_B)
    limits_B = jnp.full(n_rows, n)
    return beam_search(step, caches, last_B, limits_B, params, length=length, end=end)


@partial(jax.jit, static_argnames=("model_def",))
def _logits(model_def: ModelDef, unstacked: UnstackedParams, tokens_BT: jax.Array) -> jax.Array:
    bound = bind_unstacked(model_def, unstacked)
    n_rows, width = tokens_BT.shape
    caches = first_caches(bound, n_rows, width)
    x_BTD, _, _ = decode(bound, tokens_BT, caches, 0, jnp.zeros(n_rows, jnp.int32))
    return bound.model.logits(x_BTD)


@partial(jax.jit, static_argnames=("model_def", "length"))
def _prefill(
    model_def: ModelDef,
    unstacked: UnstackedParams,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    done_B: jax.Array,
    *,
    length: int,
) -> Decoding:
    return prefill(bind_unstacked(model_def, unstacked), tokens_BT, padding_B, done_B, length)


@partial(jax.jit, static_argnames=("model_def", "sampling", "end"), donate_argnames="state")
def _advance(
    model_def: ModelDef,
    unstacked: UnstackedParams,
    state: Decoding,
    key: jax.Array,
    *,
    sampling: SamplingParams,
    end: int | None,
) -> tuple[jax.Array, Decoding]:
    return advance(bind_unstacked(model_def, unstacked), state, key, sampling, end)
