"""Log-likelihoods of continuations, batched by length so that few programs are compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.evaluate.generate import next_power_of_two
from gpt2_jax.model.definition import ModelDef

BATCH_TOKENS = 2048
MIN_SCORED = 4  # minimum padded length of continuations
MIN_LENGTH = 16  # minimum padded length of requests


@dataclass(frozen=True)
class Request:
    """A continuation to score, given its context.

    Raises:
      ValueError: if either is empty: an empty continuation would always have probability 1.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("context and continuation need at least one token each")


@dataclass(frozen=True)
class LogLikelihood:
    """A continuation's log-probability in nats, and whether greedy decoding produces it."""

    log_p: float
    is_greedy: bool


class Scorer:
    """Scores requests with a model.

    Args:
      step: number of steps the parameters were trained for.
      window: maximum number of tokens that the model sees. The beginning of a longer request is
        cut off. A continuation longer than the window is scored in full, half a window at a time,
        given the tokens before it.
    """

    def __init__(self, model_def: ModelDef, params: Any, step: int, window: int) -> None:
        self._model_def, self._params, self._window = model_def, params, window
        self._step = np.int32(step)

    def score(
        self,
        requests: Sequence[Request],
        on_result: Callable[[int, LogLikelihood], None] = lambda i, a: None,
    ) -> list[LogLikelihood]:
        """Returns the log-likelihood of each request, in the order of the requests.

        Args:
          on_result: called with the index of each request and its result, once it is known.
        """
        parts: list[Request] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            parts += (own := self._parts(request))
            owners += [i] * len(own)
        missing = Counter(owners)
        totals = [LogLikelihood(0.0, True)] * len(requests)
        for part, found in self._score_parts(parts):
            i = owners[part]
            before = totals[i]
            totals[i] = LogLikelihood(
                before.log_p + found.log_p, before.is_greedy and found.is_greedy
            )
            missing[i] -= 1
            if missing[i] == 0:
                on_result(i, totals[i])
        return totals

    def _parts(self, request: Request) -> list[Request]:
        """Returns consecutive requests whose continuations fit into the window."""
        context, continuation = request.context, request.continuation
        if len(continuation) <= self._window:
            return [request]
        size = max(1, self._window // 2)
        return [
            Request(context + continuation[:start], continuation[start : start + size])
            for start in range(0, len(continuation), size)
        ]

    def _score_parts(self, requests: Sequence[Request]) -> Iterator[tuple[int, LogLikelihood]]:
        for indices, inputs_BT, targets_BC, at_BC, mask_BC in self._batches(requests):
            log_p_B, greedy_B = _score(
                self._model_def, self._params, self._step, inputs_BT, targets_BC, at_BC, mask_BC
            )
            pairs = zip(np.asarray(log_p_B).tolist(), np.asarray(greedy_B).tolist(), strict=True)
            for i, (log_p, greedy) in zip(indices, pairs, strict=False):
                yield i, LogLikelihood(log_p, greedy)

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[Any, ...]]:
        """Yields request indices, inputs, targets, their positions, and a mask of real targets."""
        rows: dict[tuple[int, int], list[int]] = {}
        for i, request in enumerate(requests):
            n = min(len(request.context) + len(request.continuation) - 1, self._window)
            n_scored = next_power_of_two(len(request.continuation), MIN_SCORED)
            width = min(next_power_of_two(n, MIN_LENGTH), self._window)
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


@partial(jax.jit, static_argnames=("model_def",))
def _score(
    model_def: ModelDef,
    params: Any,
    step: jax.Array,
    inputs_BT: jax.Array,
    targets_BC: jax.Array,
    at_BC: jax.Array,
    mask_BC: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns summed log-probabilities (B), and whether all targets are the most likely ids (B)."""
    model = model_def.bind(params)
    x_BTD = model.hidden(inputs_BT, step=step)
    # The head costs as much as several blocks, so it is applied to scored positions only.
    x_BCD = jnp.take_along_axis(x_BTD, at_BC[..., None], axis=1)
    logits_BCV = model.logits(x_BCD)
    log_p_BCV = jax.nn.log_softmax(logits_BCV)
    log_p_BC = jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)[..., 0]
    hit_BC = logits_BCV.argmax(-1) == targets_BC
    return jnp.where(mask_BC, log_p_BC, 0.0).sum(-1), (hit_BC | ~mask_BC).all(-1)
