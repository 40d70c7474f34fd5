"""Scores a run on the test or validation examples of its task, with bootstrap intervals."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_jax.config.sections import EvalConfig
from gpt2_jax.errors import UserError, counted
from gpt2_jax.evaluate.run_texts import generated_scores, make_translator, with_decoding
from gpt2_jax.files import disk_errors, write_json
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.tasks.predictions import predicted_values, prediction_scores
from gpt2_jax.tasks.scores.bootstrap import DEFAULT
from gpt2_jax.tasks.scores.classification import confusion_matrix
from gpt2_jax.tasks.scores.confusion_plot import plot_confusion
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.tasks.task import TASKS
from gpt2_jax.train.example_evaluation import Evaluated, ExampleEvaluator
from gpt2_jax.train.storage.open_run import OpenedRun, open_run, open_run_examples


@dataclass(frozen=True)
class TaskReport:
    """The result of evaluating a run on a split.

    Attributes:
      loss: mean nats per target. scores: None if the task has no predictions to score.
      decoding: how targets were generated; None for a task that generates none.
      path: of the JSON file in `evals/`.
    """

    run: OpenedRun
    split: str
    n: int
    loss: float
    scores: Scores | None
    decoding: EvalConfig | None
    path: Path

    def to_json(self) -> dict[str, Any]:
        """Returns what is written to `evals/`."""
        return {
            "task": self.run.config.task.name,
            "split": self.split,
            "step": self.run.step,
            "examples": self.n,
            "data": self.run.corpus,
            "checkpoint": self.run.sums,
            "loss": self.loss,
            **({} if self.decoding is None else {"decoding": self._decoding()}),
            "scores": None if self.scores is None else self.scores.to_json(),
        }

    def text(self) -> str:
        """Returns the report as plain text."""
        task = TASKS[self.run.config.task.name]
        lines = [
            f"{task.name} after step {self.run.step}: {self.split}, {counted(self.n, 'example')}, "
            f"loss {self.loss:.4f} nats per {task.target}"
        ]
        if self.decoding is not None:
            lines.append(", ".join(f"{name} {value:g}" for name, value in self._decoding().items()))
        if self.scores is not None:
            lines += ["", self.scores.text()]
        return "\n".join([*lines, "", f"written to {self.path}"])

    def _decoding(self) -> dict[str, float]:
        assert self.decoding is not None
        return {"beam": self.decoding.beam, "length_penalty": self.decoding.length_penalty}


def evaluate_task(
    workdir: str,
    step: int | str | None,
    split: str | None,
    beam: int | None = None,
    length_penalty: float | None = None,
) -> TaskReport:
    """Evaluates a checkpoint on a split, and writes the result to `evals/`.

    Args:
      step: as in `CheckpointRef`.
      split: `val` or `test`; None for the test examples if there are any.
      beam, length_penalty: as in `EvalConfig`; None for those of the run.

    Raises:
      UserError: if there is no such run, checkpoint or split.
    """
    run = open_run(workdir, step)
    data = open_run_examples(run, workdir)
    split = split or ("test" if "test" in data.splits else "val")
    if split not in data.splits:
        raise UserError(
            f"{workdir} was trained without data.{split}_source, so it has no {split} examples; "
            "leave out --split for its validation examples"
        )
    decoding = None
    if data.task.name == "translate":
        decoding = with_decoding(run.config.eval, beam, length_penalty)
    found = evaluate_split(run, data, split)
    scores = _scores(run, data, split, found, decoding)
    folder = Path(workdir) / "evals"
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = folder / f"{data.task.name}_{split}_{run.step}_{stamp}.json"
    n = len(data.splits[split].windows)
    report = TaskReport(run, split, n, found.loss, scores, decoding, path)
    with disk_errors("evals/"):
        folder.mkdir(exist_ok=True)
        write_json(path, report.to_json())
        if data.task.name == "classify":
            _draw_confusion(data, split, found, path.with_suffix(".png"))
    return report


def evaluate_split(run: OpenedRun, data: ExampleData, split: str) -> Evaluated:
    """Returns the loss and the predictions of a run's model on a split."""
    train = run.config.train
    evaluator = ExampleEvaluator(run.model_def, run.mesh, train.batch_size // train.accumulation)
    ordered = data.evaluation(split, evaluator.n_rows)
    batches = (ordered.batch(i, evaluator.rows) for i in range(ordered.n_batches))
    return evaluator.evaluate(run.params, run.step, batches, ordered.n_batches)


def _scores(
    run: OpenedRun, data: ExampleData, split: str, found: Evaluated, decoding: EvalConfig | None
) -> Scores | None:
    if decoding is not None:
        of_model = run.model_def, run.params, run.step
        translator = make_translator(decoding, data.lengths, *of_model, data.tokenizer)
        hypotheses = translator.translate([r.source for r in data.splits[split].records])
        return generated_scores(decoding.score, data, split, hypotheses, DEFAULT)
    if not found.rows:
        return None
    task, examples = data.task.name, data.splits[split]
    predicted = predicted_values(task, examples, data.labels, found.rows)
    outside = run.config.eval.out_of_scope
    return prediction_scores(task, examples, data.labels, predicted, outside, DEFAULT)


def _draw_confusion(data: ExampleData, split: str, found: Evaluated, path: Path) -> None:
    examples, names = data.splits[split], data.labels
    predicted = [int(row) for row in found.rows[: len(examples)]]
    matrix = confusion_matrix(examples.scalars["label"], predicted, len(names))
    plot_confusion(matrix, names, path, f"{path.parent.parent.name}: {split}")
