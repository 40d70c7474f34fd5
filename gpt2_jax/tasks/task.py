"""The head of each task, and whether a row may have several of its examples."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.config.sections import HeadConfig, TaskConfig
from gpt2_jax.model.heads import HeadSpec


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      head: kind of the model's head, as in `HeadSpec`.
      has_labels: whether the head predicts the labels of the training data.
      packs: whether a row may have several examples.
      has_sample: whether there are predictions to show in sample.txt.
    """

    name: str
    head: str
    has_labels: bool = False
    packs: bool = True
    has_sample: bool = True


TASKS = {
    task.name: task
    for task in (
        Task("lm", "lm"),
        Task("mlm", "mlm", has_sample=False),
        Task("translate", "lm"),
        Task("tag", "tokens", has_labels=True),
        Task("classify", "sequence", has_labels=True, packs=False),
        Task("answer", "span", packs=False),
        Task("sft", "lm"),
    )
}


def head_of(task: TaskConfig, head: HeadConfig) -> HeadSpec:
    """Returns the head of a model for a task; `head.n_labels` must be known if it has labels."""
    kind = TASKS[task.name]
    n_labels = head.n_labels if kind.has_labels else None
    return HeadSpec(kind.head, n_labels or 0, head.pool, head.transform)
