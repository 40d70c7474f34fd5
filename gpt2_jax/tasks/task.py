"""The head of each task, and whether a row may have several of its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_jax.config.sections import HeadConfig, TaskConfig
from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.model.heads import HeadSpec


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      head: kind of the model's head, as in `HeadSpec`.
      has_labels: whether the head predicts the labels of the training data.
      packs: whether a row may have several examples.
      target: what the loss is the mean over, for texts such as `nats per token`.
      shown: the scores that are printed, of those that an evaluation has.
      has_sample: whether there are predictions to show in sample.txt.
    """

    name: str
    head: str
    has_labels: bool = False
    packs: bool = True
    target: str = "token"
    shown: tuple[str, ...] = ()
    has_sample: bool = True

    def describe(self, metrics: Mapping[str, Any], best_by: str | None = None) -> str:
        """Returns the scores among the `val/*` fields of metrics.jsonl as text; empty if none.

        Args:
          best_by: as in `train.best_by`; a score that is printed as well.
        """
        names = dict.fromkeys([*self.shown, *([best_by] if best_by not in (None, LOSS) else [])])
        found = {name: metrics.get(f"val/{name}") for name in names}
        listed = {name: value for name, value in found.items() if value is not None}
        return ", ".join(f"{name} {v:.{4 if v <= 1 else 2}f}" for name, v in listed.items())


ACCURACIES = ("in_scope_accuracy", "accuracy", "macro_f1")
GENERATED = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "accuracy")
TASKS = {
    task.name: task
    for task in (
        Task("lm", "lm"),
        Task("mlm", "mlm", target="masked token", shown=("accuracy",), has_sample=False),
        Task("translate", "lm", shown=GENERATED),
        Task("tag", "tokens", has_labels=True, target="word", shown=("entity_f1_strict",)),
        Task("classify", "sequence", True, packs=False, target="text", shown=ACCURACIES),
        Task(
            "answer",
            "span",
            packs=False,
            target="question",
            shown=("span_f1", "exact_match", "answer_f1"),
        ),
        Task("sft", "lm", target="completion token", shown=("accuracy",)),
    )
}


def head_of(task: TaskConfig, head: HeadConfig) -> HeadSpec:
    """Returns the head of a model for a task; `head.n_labels` must be known if it has labels.

    Without it, a model that classifies is one without labels, such as an imported BERT.
    """
    kind = TASKS[task.name]
    if not kind.has_labels:
        return HeadSpec(kind.head, 0, head.pool, head.transform)
    if kind.head == "sequence" and head.n_labels is None:
        return HeadSpec("pooled", 0, head.pool, head.transform)
    return HeadSpec(kind.head, head.n_labels or 0, head.pool, head.transform)
