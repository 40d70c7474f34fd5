"""Loss, accuracy and predictions on the examples of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.tasks.losses import AnyBatch, outputs
from gpt2_jax.tasks.predictions import predicted_values, prediction_scores
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.train.distributed.mesh import to_host
from gpt2_jax.train.row_program import RowProgram


class RowOutputs(NamedTuple):
    """Outputs of a batch's rows.

    Attributes:
      nats_B, weights_B, hits_B: sums over the targets of a row, float32, each target by its weight.
      predicted: as in `tasks.losses.Outputs`.
    """

    nats_B: jax.Array
    weights_B: jax.Array
    hits_B: jax.Array
    predicted: jax.Array | None


@dataclass(frozen=True)
class Evaluated:
    """Sums over all targets, and the predictions of all rows in order.

    Attributes:
      rows: predictions of each row, in the order of the batches, with those of rows that only fill
        a batch; empty if the task predicts text.
    """

    nats: float
    weight: float
    hits: float
    rows: list[np.ndarray]

    @property
    def loss(self) -> float:
        """Mean nats per target."""
        return self.nats / self.weight

    @property
    def accuracy(self) -> float:
        """Share of targets predicted as the most likely one."""
        return self.hits / self.weight


def row_outputs(
    model_def: ModelDef,
    params: Any,
    step: jax.Array,
    batch: AnyBatch,
    probabilities: bool = False,
) -> RowOutputs:
    """Returns the outputs of each row of a batch; `probabilities` is as in `outputs`."""
    found = outputs(model_def.bind(params), batch, step, probabilities)
    weights = batch.weights
    total = lambda x: (weights * x).reshape(len(weights), -1).sum(-1).astype(jnp.float32)
    return RowOutputs(total(found.nll), total(1.0), total(found.hits), found.predicted)


class ExampleEvaluator:
    """Evaluates a model on batches of examples, with one compiled program per shape of a batch.

    Args:
      n_rows: rows of a batch, a multiple of the number of devices that share them.
      shapes: batches of the shapes to compile, with any number of rows.
      probabilities: as in `outputs`.
    """

    def __init__(
        self,
        model_def: ModelDef,
        mesh: Mesh,
        n_rows: int,
        shapes: Sequence[AnyBatch] = (),
        probabilities: bool = False,
    ) -> None:
        compute = partial(row_outputs, probabilities=probabilities)
        self._program = RowProgram(model_def, mesh, n_rows, compute)
        self.n_rows, self._shapes = n_rows, shapes

    @property
    def rows(self) -> np.ndarray:
        """The rows of a batch that this process reads."""
        return self._program.rows

    def compile(self, shapes: Any) -> None:
        """Compiles for parameters of these shapes and shardings, before the first evaluation."""
        self._program.compile(shapes, self._shapes)

    def evaluate(
        self,
        params: Any,
        step: int,
        batches: Iterable[AnyBatch],
        n_batches: int,
        between_batches: Callable[[int, int], None] | None = None,
    ) -> Evaluated:
        """Returns sums and predictions over batches.

        Args:
          step: number of steps the parameters were trained for.
          batches: this process's `rows` of each.
          between_batches: as in `Evaluator.score`.
        """
        found: list[RowOutputs] = []
        for one in self._program.outputs(params, step, batches):
            found.append(one)
            if between_batches is not None:
                between_batches(len(found), n_batches)
        of_rows = ([getattr(one, name) for one in found] for name in RowOutputs._fields[:3])
        sums = [np.concatenate(to_host(arrays)) for arrays in of_rows]
        nats, weight, hits = (float(x.sum(dtype=np.float64)) for x in sums)
        predicted = [one.predicted for one in found if one.predicted is not None]
        rows = [row for array in to_host(predicted) for row in array] if predicted else []
        return Evaluated(nats, weight, hits, rows)


@dataclass(frozen=True)
class ExampleScore:
    """The score of the examples of a split.

    Attributes:
      scores: of the predictions; None if the task predicts text.
    """

    sums: Evaluated
    scores: Scores | None

    @property
    def loss(self) -> float:
        """Mean nats per target."""
        return self.sums.loss

    def metrics(self) -> dict[str, float]:
        """Returns the `val/*` fields of metrics.jsonl."""
        out = {"val/loss": self.loss, "val/accuracy": self.sums.accuracy}
        return out if self.scores is None else out | self.scores.metrics("val/")


def score_examples(
    evaluator: ExampleEvaluator,
    params: Any,
    step: int,
    data: ExampleData,
    out_of_scope: str | None = None,
    between_batches: Callable[[int, int], None] | None = None,
) -> ExampleScore:
    """Returns the score of the validation examples.

    Args:
      step: number of steps the parameters were trained for.
      out_of_scope: as in `prediction_scores`. between_batches: as in `Evaluator.score`.
    """
    task, examples = data.task.name, data.splits["val"]
    ordered = data.evaluation("val", evaluator.n_rows)
    batches = (ordered.batch(i, evaluator.rows) for i in range(ordered.n_batches))
    sums = evaluator.evaluate(params, step, batches, ordered.n_batches, between_batches)
    if not sums.rows:
        return ExampleScore(sums, None)
    predicted = predicted_values(task, examples, data.labels, sums.rows)
    scores = prediction_scores(task, examples, data.labels, predicted, out_of_scope)
    return ExampleScore(sums, scores)
