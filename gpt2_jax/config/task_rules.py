"""Rules for the fields of a task: its architecture, and fields that others do not use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpt2_jax.config.sections import Config, TaskConfig
from gpt2_jax.config.table import FIELDS, replace, value_of, words
from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.errors import UserError, quoted

ARCHITECTURE = {  # of each task
    "lm": "decoder",
    "mlm": "encoder",
    "translate": "encoder_decoder",
    "tag": "encoder",
    "classify": "encoder",
    "answer": "encoder",
    "sft": "decoder",
}
EXAMPLES = frozenset({"translate", "tag", "classify", "answer", "sft"})  # read from records
LABELS = frozenset({"tag", "classify"})
# Scores that `train.best_by` may name besides the loss; the first is the default.
SPAN_SCORES = ("span_f1",)  # of labeled spans
TAG_SCORES = ("entity_f1_strict", "entity_f1_lenient")
BLEU_SCORES, ROUGE_SCORES = ("bleu", "chrf"), ("rougeL", "rouge1", "rouge2")
# The tasks that use a field; others refuse a value that is not the default.
USED_BY = {
    "task.class_weights": LABELS,
    "task.mask_share": frozenset({"mlm"}),
    "task.whole_words": frozenset({"mlm"}),
    "head.pool": frozenset({"classify"}),
    "head.transform": frozenset({"classify", "mlm"}),
    "head.n_labels": LABELS,
    "data.test_source": EXAMPLES,
    "data.columns": EXAMPLES,
    "data.too_long": EXAMPLES,
    "data.tag_scheme": frozenset({"tag"}),
    "data.chat_template": frozenset({"sft"}),
    "data.source_len": frozenset({"translate"}),
    "data.doc_stride": frozenset({"answer"}),
    "data.layout": EXAMPLES | {"mlm"},
    "data.lengths": EXAMPLES | {"mlm"},
    "optimizer.label_smoothing": frozenset(ARCHITECTURE) - {"answer"},  # scores of padding
    "train.epochs": EXAMPLES | {"mlm"},
    "eval.generate_every": frozenset({"translate"}),
    "eval.beam": frozenset({"translate"}),
    "eval.length_penalty": frozenset({"translate"}),
    "eval.score": frozenset({"translate"}),
    "eval.out_of_scope": frozenset({"classify"}),
    "data.document_separator": frozenset({"lm", "mlm"}),
    "train.eval_tokens": frozenset({"lm"}),
    "train.teacher": frozenset({"lm"}),
}


def check_task(config: Config) -> None:
    """Refuses an architecture that the task does not support, and fields that it does not use.

    Raises:
      UserError: naming the field, its value and the fix.
    """
    task = config.task.name
    needed = ARCHITECTURE[task]
    if config.model.architecture != needed:
        raise UserError(
            f"task.name={task} needs model.architecture={needed}, not "
            f"{config.model.architecture}; set model.architecture={needed}"
        )
    _check_used(config)
    _check_rows(config)
    check_best_by(config)
    if config.optimizer.label_smoothing and config.train.z_loss:
        raise UserError(
            "optimizer.label_smoothing does not support train.z_loss; set one of them to 0"
        )
    every = config.eval.generate_every
    if every is not None and every % config.train.eval_every:
        raise UserError(
            f"eval.generate_every={every} must be a multiple of train.eval_every="
            f"{config.train.eval_every}"
        )


def _check_used(config: Config) -> None:
    """Refuses fields that the task does not use."""
    task = config.task.name
    for name, tasks in USED_BY.items():
        value = value_of(config, name)
        if value != FIELDS[name].default and task not in tasks:
            raise UserError(
                f"{name}={value!r} has no effect with task.name={task}; unset it (it is for "
                f"{', '.join(t for t in ARCHITECTURE if t in tasks)})"
            )


def _check_rows(config: Config) -> None:
    """Refuses lengths of rows and windows that contradict each other."""
    if config.data.lengths and config.data.layout == "packed":
        raise UserError("data.lengths needs data.layout=padded; unset it, or change the layout")
    source_len, n_positions = config.data.source_len, config.model.n_positions
    if source_len is not None and source_len > n_positions:
        raise UserError(
            f"data.source_len={source_len} is longer than model.n_positions={n_positions}; shorten "
            "it, or raise model.n_positions"
        )
    stride, seq_len = config.data.doc_stride, config.data.seq_len
    if stride is not None and stride >= seq_len:
        raise UserError(
            f"data.doc_stride={stride} must be below data.seq_len={seq_len}, so that windows "
            "overlap; half of it is usual"
        )
    _check_lengths(config)


def _check_lengths(config: Config) -> None:
    """Refuses a `data.lengths` that does not have different numbers below the longest row."""
    seq_len, given = config.data.seq_len, words(config.data.lengths)
    for number, text in enumerate(given):
        if not re.fullmatch("0*[1-9][0-9]{0,8}", text, re.ASCII):
            raise UserError(f"data.lengths: {quoted(text)} is not a number of tokens, such as 32")
        if int(text) >= max(seq_len, config.data.source_len or 0):
            raise UserError(
                f"data.lengths: {text} is not below data.seq_len={seq_len}, the length of the "
                "longest rows; leave it out, or raise data.seq_len"
            )
        if int(text) in map(int, given[:number]):
            raise UserError(f"data.lengths has {text} twice; leave one out")


def check_best_by(config: Config, labels: Sequence[str] | None = None) -> None:
    """Refuses a `train.best_by` that the evaluations of the task do not have.

    Args:
      labels: label names of the data; None if they are not known yet.

    Raises:
      UserError: naming the scores to choose from.
    """
    best_by, valid = config.train.best_by, [LOSS, *_scores(config, labels)]
    if best_by in (None, *valid):
        return
    task = config.task.name
    if task == "translate" and config.eval.generate_every is None:
        raise UserError(
            f"train.best_by={best_by} needs text that is generated while training: set "
            "eval.generate_every, or train.best_by=loss"
        )
    raise UserError(
        f"train.best_by={best_by} is not a score of the evaluations of task.name={task} here; "
        f"choose one of {', '.join(valid)}"
    )


def with_best_by(config: Config, labels: Sequence[str]) -> Config:
    """Returns the config with `train.best_by` filled in, if the task has scores.

    Args:
      labels: label names of the data; empty if it has none.

    Raises:
      UserError: as `check_best_by`.
    """
    check_best_by(config, labels)
    scores = () if config.task.name in ("mlm", "sft") else _scores(config, labels)
    if config.train.best_by is not None or not scores:
        return config
    return replace(config, {"train.best_by": scores[0]})


def _scores(config: Config, labels: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the scores of the evaluations of a task, the default for `train.best_by` first."""
    answers = ("answer_f1", "exact_match")
    match config.task.name:
        case "tag":
            return TAG_SCORES
        case "classify":
            scoped = ("in_scope_accuracy",) if config.eval.out_of_scope is not None else ()
            return ("accuracy", "macro_f1", *scoped)
        case "answer" if labels is None:
            return answers + SPAN_SCORES
        case "answer":
            return SPAN_SCORES if labels else answers
        case "translate" if config.eval.generate_every is not None:
            return BLEU_SCORES if config.eval.score == "bleu" else ROUGE_SCORES
        case "mlm" | "sft":
            return ("accuracy",)
    return ()


def check_continues(task: TaskConfig, what: str) -> None:
    """Refuses a task whose models do not continue text.

    Args:
      what: the command that needs one, or the run that is not.

    Raises:
      UserError: naming the task.
    """
    if ARCHITECTURE[task.name] != "decoder":
        continuing = " or ".join(name for name, kind in ARCHITECTURE.items() if kind == "decoder")
        raise UserError(
            f"{what} has task.name={task.name}, whose model does not continue text; this needs "
            f"task.name={continuing} (see `gpt2-jax eval`, `predict` and `translate`)"
        )


def check_is_lm(task: TaskConfig, command: str) -> None:
    """Refuses a task in a command for language modeling alone.

    Raises:
      UserError: naming the task.
    """
    if task.name != "lm":
        raise UserError(f"{command} supports only task.name=lm, not {task.name}")
