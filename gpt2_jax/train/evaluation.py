"""Loss and accuracy on a fixed token sequence; each token is predicted once, all weigh the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.dataset import Dataset, Part
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.train.distributed.mesh import to_host
from gpt2_jax.train.loss import batch_loss
from gpt2_jax.train.row_program import RowProgram

Window = tuple[int, int, int]  # start, length, scored: see `windows`


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

    @property
    def accuracy(self) -> float:
        """Fraction of tokens predicted as the most likely one."""
        return self.correct / self.tokens


@dataclass(frozen=True)
class DatasetScore:
    """The score of each validation text of a dataset, in the order of its parts."""

    data: Dataset
    scores: tuple[Score, ...]

    @property
    def loss(self) -> float:
        """Mean nats per token, the validation texts weighted by their share of the rows."""
        return self.data.mean([score.loss for score in self.scores])

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return sum(score.tokens for score in self.scores)

    def losses(self) -> dict[str, float]:
        """Returns the loss of each source of a mixture by name; empty for a single corpus."""
        parts = self.data.parts if self.data.is_mixture else ()
        return {part.name: s.loss for part, s in zip(parts, self.scores, strict=False)}

    def metrics(self) -> dict[str, float]:
        """Returns the `val/*` fields of metrics.jsonl."""
        accuracy = self.data.mean([score.accuracy for score in self.scores])
        out = {"val/loss": self.loss, "val/accuracy": accuracy}
        if bytes_per_token := self.data.bytes_per_token("val"):
            out["val/bits_per_byte"] = self.loss / math.log(2) / bytes_per_token
        return out | {f"val/{name}/loss": loss for name, loss in self.losses().items()}


def windows(n_tokens: int, seq_len: int, stride: int) -> Iterator[Window]:
    """Yields (start, length, scored): windows that predict tokens 1 .. n_tokens-1 once each.

    A window reads `length` + 1 tokens from `start` and scores its last `scored` predictions.
    Without overlap, each window makes `seq_len` predictions. With a stride below `seq_len`, the
    windows are those of Hugging Face's perplexity guide: `seq_len` tokens each, of which the last
    `stride` are scored and the others are context that an earlier window scored.
    """
    if stride == seq_len:
        for start in range(0, n_tokens - 1, seq_len):
            length = min(seq_len, n_tokens - 1 - start)
            yield start, length, length
        return
    done = 1  # no window predicts the first token
    for start in range(0, n_tokens, stride):
        end = min(start + seq_len, n_tokens)
        yield start, end - start - 1, end - done
        done = end
        if end == n_tokens:
            return


def evenly_spaced_windows(n_tokens: int, seq_len: int, limit: int) -> Iterator[Window]:
    """Yields windows with about `limit` predictions in total, spread evenly over all tokens."""
    n = max(1, limit // seq_len)
    last = n_tokens - 1 - seq_len
    for i in range(n):
        yield last * i // max(1, n - 1), seq_len, seq_len


def choose_windows(
    n_tokens: int, seq_len: int, limit: int | None, stride: int | None = None
) -> list[Window]:
    """Returns the windows over all tokens, or over about `limit` of them; always the same ones."""
    if limit is None or max(limit, seq_len) >= n_tokens - 1:
        return list(windows(n_tokens, seq_len, stride or seq_len))
    return list(evenly_spaced_windows(n_tokens, seq_len, limit))


def share_of(limit: int | None, part: Part) -> int | None:
    """Returns the part of a limit on the evaluated tokens that falls on one validation text."""
    return limit and max(1, int(limit * part.share))


def evaluation_batches(
    tokens: Tokens,
    chosen: list[Window],
    batch_size: int,
    seq_len: int,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields batches with weight 1 for each scored prediction and 0 for the others.

    Args:
      rows: the rows of each batch to yield; None for all.
    """
    rows = range(batch_size) if rows is None else rows
    for first in range(0, len(chosen), batch_size):
        tokens_BT1 = np.zeros((len(rows), seq_len + 1), np.int32)
        weights_BT = np.zeros((len(rows), seq_len), np.float32)
        for row, index in enumerate(first + row for row in rows):
            if index >= len(chosen):
                break
            start, length, scored = chosen[index]
            tokens_BT1[row, : length + 1] = tokens.window(start, length + 1)
            weights_BT[row, length - scored : length] = 1.0
        yield Batch(tokens_BT1, weights_BT)


def batch_sums(model_def: ModelDef, params: Any, step: jax.Array, batch: Batch) -> jax.Array:
    """Returns the weighted sums of a batch's losses in nats and of its correct predictions, (2)."""
    logits_BTV = model_def.bind(params)(batch.inputs_BT, step=step)
    nats = batch_loss(logits_BTV, batch, total_weight=1.0)
    correct = ((logits_BTV.argmax(-1) == batch.targets_BT) * batch.weights_BT).sum()
    return jnp.stack([nats, correct.astype(jnp.float32)])


class Evaluator:
    """Scores tokens under a model; compiled once.

    Args:
      batch_size: windows per batch, a multiple of the number of devices that share rows.
    """

    def __init__(self, model_def: ModelDef, mesh: Mesh, seq_len: int, batch_size: int) -> None:
        self._seq_len, self._batch_size = seq_len, batch_size
        # One row of sums per device.
        sums = lambda *inputs: batch_sums(*inputs)[None]
        self._program = RowProgram(model_def, mesh, batch_size, sums)

    def compile(self, shapes: Any) -> None:
        """Compiles for parameters of these shapes and shardings, before the first `score`."""
        tokens_BT1 = np.zeros((0, self._seq_len + 1), np.int32)
        weights_BT = np.zeros((0, self._seq_len), np.float32)
        self._program.compile(shapes, [Batch(tokens_BT1, weights_BT)])

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

        The sums stay on the devices and are read once, at the end.

        Args:
          step: number of steps the parameters were trained for.
          between_batches: called with the number of batches done and their total; an exception
            that it raises ends the evaluation.
        """
        chosen = choose_windows(len(tokens), self._seq_len, limit, stride)
        rows, seq_len = self._program.rows.tolist(), self._seq_len
        batches = evaluation_batches(tokens, chosen, self._batch_size, seq_len, rows)
        sums = []
        for one in self._program.outputs(params, step, batches):
            sums.append(one)
            if between_batches is not None:
                between_batches(len(sums), -(-len(chosen) // self._batch_size))
        nats, correct = np.concatenate(to_host(sums)).sum(0, dtype=np.float64).tolist()
        return Score(nats, round(correct), sum(scored for _, _, scored in chosen))

    def score_dataset(
        self,
        params: Any,
        step: int,
        data: Dataset,
        limit: int | None = None,
        stride: int | None = None,
        between_batches: Callable[[int, int], None] | None = None,
    ) -> DatasetScore:
        """Returns the score of each validation text; the arguments are those of `score`.

        `limit` is divided among the texts by their share, and `between_batches` counts the batches
        of each text.
        """
        score = lambda part: self.score(
            params, step, part.corpus.val, share_of(limit, part), stride, between_batches
        )
        return DatasetScore(data, tuple(score(part) for part in data.parts))
