"""Log-likelihoods of continuations, many at a time, batched by length with few compilations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.model.structure import Structure

BATCH_TOKENS = 2048
SHORTEST = 16  # tokens; lengths are rounded up to powers of two


@dataclass(frozen=True)
class Request:
    """A continuation to score, given its context.

    Raises:
      ValueError: if either is empty: nothing is certain, and would beat every other continuation.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("context and continuation need at least one token each")


@dataclass(frozen=True)
class Answer:
    """A continuation's log-probability in nats, and whether greedy decoding would have given it."""

    log_p: float
    is_greedy: bool


class Scorer:
    """Scores requests under a model.

    Args:
      step: updates that the parameters have behind them.
      window: tokens that the model sees at most; of a longer request the beginning is cut off. A
        continuation longer than that is scored in full, half a window at a time, each part after
        the tokens before it.
    """

    def __init__(self, structure: Structure, params: Any, step: int, window: int) -> None:
        self._structure, self._params, self._window = structure, params, window
        self._step = np.int32(step)

    def score(
        self, requests: Sequence[Request], said: Callable[[int, Answer], None] = lambda i, a: None
    ) -> list[Answer]:
        """Returns an answer for each request, in their order.

        Args:
          said: called with the index of each request and its answer once it is known.
        """
        parts: list[Request] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            parts += (own := self._parts(request))
            owners += [i] * len(own)
        missing = Counter(owners)
        totals = [Answer(0.0, True)] * len(requests)
        for part, found in self._score_parts(parts):
            i = owners[part]
            before = totals[i]
            totals[i] = Answer(before.log_p + found.log_p, before.is_greedy and found.is_greedy)
            missing[i] -= 1
            if missing[i] == 0:
                said(i, totals[i])
        return totals

    def _parts(self, request: Request) -> list[Request]:
        """Returns requests whose continuations fit into the window and follow one another."""
        context, continuation = request.context, request.continuation
        if len(continuation) <= self._window:
            return [request]
        size = max(1, self._window // 2)
        return [
            Request(context + continuation[:start], continuation[start : start + size])
            for start in range(0, len(continuation), size)
        ]

    def _score_parts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        for indices, inputs_BT, targets_BC, at_BC, mask_BC in self._batches(requests):
            log_p_B, greedy_B = _score(
                self._structure, self._params, self._step, inputs_BT, targets_BC, at_BC, mask_BC
            )
            pairs = zip(np.asarray(log_p_B).tolist(), np.asarray(greedy_B).tolist(), strict=True)
            for i, (log_p, greedy) in zip(indices, pairs, strict=False):
                yield i, Answer(log_p, greedy)

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[Any, ...]]:
        """Yields indices, inputs, targets, where they are predicted, and which are real."""
        rows: dict[tuple[int, int], list[int]] = {}
        for i, request in enumerate(requests):
            n = min(len(request.context) + len(request.continuation) - 1, self._window)
            n_scored = bucket(len(request.continuation), 4)
            width = min(bucket(n, SHORTEST), self._window)
            rows.setdefault((width, min(n_scored, width)), []).append(i)
        for width, n_scored in sorted(rows, reverse=True):
            indices = rows[width, n_scored]
            size = max(1, BATCH_TOKENS // width)
            for start in range(0, len(indices), size):
                some = indices[start : start + size]
                yield some, *self._batch([requests[i] for i in some], size, width, n_scored)

    def _batch(
        self, requests: list[Request], size: int, width: int, n_scored: int
    ) -> tuple[np.ndarray, ...]:
        inputs_BT = np.zeros((size, width), np.int32)
        targets_BC = np.zeros((size, n_scored), np.int32)
        at_BC = np.zeros((size, n_scored), np.int32)
        mask_BC = np.zeros((size, n_scored), bool)
        for row, request in enumerate(requests):
            tokens = (request.context + request.continuation)[-(self._window + 1) :]
            n = len(tokens) - 1
            scored = len(request.continuation)
            inputs_BT[row, :n] = tokens[:-1]
            targets_BC[row, :scored] = tokens[-scored:]
            at_BC[row, :scored] = np.arange(n - scored, n)
            mask_BC[row, :scored] = True
        return inputs_BT, targets_BC, at_BC, mask_BC


def bucket(n: int, smallest: int) -> int:
    """Returns the power of two that `n` is rounded up to."""
    return max(smallest, 1 << (n - 1).bit_length())


@partial(jax.jit, static_argnames=("structure",))
def _score(
    structure: Structure,
    params: Any,
    step: jax.Array,
    inputs_BT: jax.Array,
    targets_BC: jax.Array,
    at_BC: jax.Array,
    mask_BC: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns sums of log-probabilities (B) and whether each target is the likeliest token (B)."""
    model = structure.bind(params)
    x_BTD = model.hidden(inputs_BT, step=step)
    # The head is as large as several blocks: only where something is predicted.
    x_BCD = jnp.take_along_axis(x_BTD, at_BC[..., None], axis=1)
    logits_BCV = model.logits(x_BCD)
    log_p_BCV = jax.nn.log_softmax(logits_BCV)
    log_p_BC = jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)[..., 0]
    hit_BC = logits_BCV.argmax(-1) == targets_BC
    return jnp.where(mask_BC, log_p_BC, 0.0).sum(-1), (hit_BC | ~mask_BC).all(-1)
