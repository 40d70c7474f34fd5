"""Loss and accuracy on a fixed sequence of tokens, each predicted once, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
        """Mean nats per token."""
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


def choose_windows(
    n_tokens: int, seq_len: int, limit: int | None, stride: int | None = None
) -> list[tuple[int, int, int]]:
    """Returns the windows over all tokens, or over about `limit` of them, always the same ones."""
    if limit is None or max(limit, seq_len) >= n_tokens - 1:
        return list(windows(n_tokens, seq_len, stride or seq_len))
    return list(spread_windows(n_tokens, seq_len, limit))


def masked_batches(
    tokens: Tokens, chosen: list[tuple[int, int, int]], batch_size: int, seq_len: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields token ids (B, T+1), and 1 for each prediction (B, T) that is scored."""
    for first in range(0, len(chosen), batch_size):
        batch = np.zeros((batch_size, seq_len + 1), np.int32)
        mask = np.zeros((batch_size, seq_len), np.float32)
        for row, (start, length, scored) in enumerate(chosen[first : first + batch_size]):
            batch[row, : length + 1] = tokens.window(start, length + 1)
            mask[row, length - scored : length] = 1.0
        yield batch, mask


def batch_sums(
    structure: Structure, params: Any, step: jax.Array, tokens_BT1: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Returns the nats of a batch's predictions and how many of them are right, (2)."""
    logits_BTV = structure.bind(params)(tokens_BT1[:, :-1], step=step)
    targets_BT = tokens_BT1[:, 1:]
    nats = (cross_entropy(logits_BTV, targets_BT) * mask_BT).sum()
    hits = ((logits_BTV.argmax(-1) == targets_BT) * mask_BT).sum()
    return jnp.stack([nats, hits.astype(jnp.float32)])


class Evaluator:
    """Scores tokens under a model; compiled once.

    Args:
      batch_size: windows at a time, a multiple of the mesh's data axis.
    """

    def __init__(self, structure: Structure, mesh: Mesh, seq_len: int, batch_size: int) -> None:
        self._mesh, self._seq_len, self._batch_size = mesh, seq_len, batch_size
        everywhere, rows = PartitionSpec(), PartitionSpec(DATA)

        local = lambda *inputs: batch_sums(structure, *inputs)[None]
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
        between_batches: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Returns the score of `tokens`, or of about `limit` of them, always the same ones.

        The sums stay on the devices until the one read at the end.

        Args:
          step: steps that the parameters have been trained for.
          between_batches: called with the batches done and their number; what it raises ends the
            evaluation.
        """
        chosen = choose_windows(len(tokens), self._seq_len, limit, stride)
        sums, at = [], jax.device_put(np.int32(step), replicated(self._mesh))
        for batch, mask in masked_batches(tokens, chosen, self._batch_size, self._seq_len):
            sharding = by_rows(self._mesh)
            sums.append(self._sums(params, at, *jax.device_put((batch, mask), sharding)))
            if len(sums) > AHEAD:
                sums[-AHEAD].block_until_ready()  # not all batches at once on the devices
            if between_batches is not None:
                between_batches(len(sums), -(-len(chosen) // self._batch_size))
        nats, correct = np.concatenate(jax.device_get(sums)).sum(0, dtype=np.float64).tolist()
        return Score(nats, round(correct), sum(scored for _, _, scored in chosen))
