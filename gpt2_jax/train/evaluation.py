"""Loss and accuracy on a fixed sequence of tokens, each predicted once, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.structure import Structure
from gpt2_jax.train.loss import cross_entropy
from gpt2_jax.train.mesh import DATA, by_rows, replicated


def spread_windows(n_tokens: int, seq_len: int, limit: int) -> Iterator[tuple[int, int, int]]:
    """Yields windows of about `limit` predictions in all, spread evenly over all the tokens."""
    n = max(1, limit // seq_len)
    room = n_tokens - 1 - seq_len
    for i in range(n):
        yield room * i // max(1, n - 1), seq_len, seq_len


@dataclass(frozen=True)
class Score:
    """Sums over the predicted tokens."""

    nats: float
    correct: int
    tokens: int

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.tokens

    def metrics(self, bytes_per_token: float | None) -> dict[str, float]:
        """Returns `val/*` as `metrics.jsonl` has them; bits per byte where bytes are known."""
        out = {"val/loss": self.loss, "val/accuracy": self.correct / self.tokens}
        if bytes_per_token:
            out["val/bits_per_byte"] = self.loss / math.log(2) / bytes_per_token
        return out


AHEAD = 8  # batches on the devices at a time


def windows(n_tokens: int, seq_len: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, length, scored): windows that predict tokens 1 .. n_tokens-1 once each.

    A window reads `length` + 1 tokens from `start` and scores its last `scored` predictions.
    Without overlap each makes `seq_len` predictions. With a stride below `seq_len` they are those
    of Hugging Face's guide to perplexity: spans of `seq_len` tokens, of which the last `stride`
    are scored and the others are context, scored before.
    """
    if stride == seq_len:
        for start in range(0, n_tokens - 1, seq_len):
            length = min(seq_len, n_tokens - 1 - start)
            yield start, length, length
        return
    done = 1  # the first token is predicted by none
    for start in range(0, n_tokens, stride):
        end = min(start + seq_len, n_tokens)
        yield start, end - start - 1, end - done
        done = end
        if end == n_tokens:
            return


class Evaluator:
    """Scores tokens under a model; compiled once.

    Args:
      batch_size: windows at a time, a multiple of the mesh's data axis.
    """

    def __init__(self, structure: Structure, mesh: Mesh, seq_len: int, batch_size: int) -> None:
        self._mesh, self._seq_len, self._batch_size = mesh, seq_len, batch_size
        everywhere, rows = PartitionSpec(), PartitionSpec(DATA)

        def local(
            params: Any, step: jax.Array, tokens_bT1: jax.Array, mask_bT: jax.Array
        ) -> jax.Array:
            logits_bTV = structure.bind(params)(tokens_bT1[:, :-1], step=step)
            targets_bT = tokens_bT1[:, 1:]
            nats = (cross_entropy(logits_bTV, targets_bT) * mask_bT).sum()
            hits = ((logits_bTV.argmax(-1) == targets_bT) * mask_bT).sum()
            return jnp.stack([nats, hits.astype(jnp.float32)])[None]

        # One row of sums for each device, added up by the host: batches do not wait for each
        # other, and programs with collectives in flight together can lock up a CPU's few threads.
        specs = (everywhere, everywhere, rows, rows)
        self._sums = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows))

    def score(
        self,
        params: Any,
        step: int,
        tokens: Tokens,
        limit: int | None = None,
        stride: int | None = None,
    ) -> Score:
        """Returns the score of `tokens`, or of about `limit` of them, always the same ones.

        The sums stay on the devices until the one read at the end.

        Args:
          step: updates that the parameters have behind them.
        """
        if limit is None or max(limit, self._seq_len) >= len(tokens) - 1:
            chosen = list(windows(len(tokens), self._seq_len, stride or self._seq_len))
        else:
            chosen = list(spread_windows(len(tokens), self._seq_len, limit))
        sums, at = [], jax.device_put(np.int32(step), replicated(self._mesh))
        for batch, mask in self._batches(tokens, chosen):
            sharding = by_rows(self._mesh)
            sums.append(self._sums(params, at, *jax.device_put((batch, mask), sharding)))
            if len(sums) > AHEAD:
                sums[-AHEAD].block_until_ready()  # not all batches at once on the devices
        nats, correct = np.concatenate(jax.device_get(sums)).sum(0, dtype=np.float64).tolist()
        return Score(nats, round(correct), sum(scored for _, _, scored in chosen))

    def _batches(
        self, tokens: Tokens, chosen: list[tuple[int, int, int]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows, shape = 0, (self._batch_size, self._seq_len)
        for start, length, scored in chosen:
            if rows == 0:
                batch = np.zeros((shape[0], shape[1] + 1), np.int32)
                mask = np.zeros(shape, np.float32)
            batch[rows, : length + 1] = tokens.window(start, length + 1)
            mask[rows, length - scored : length] = 1.0
            rows += 1
            if rows == self._batch_size:
                yield batch, mask
                rows = 0
        if rows:
            yield batch, mask
