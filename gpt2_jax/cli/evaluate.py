"""Evaluates a run: `python eval.py --workdir=runs/quickstart [--data=SOURCE] [--stride=S]`."""

from __future__ import annotations

from absl import flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError
from gpt2_jax.files import to_json
from gpt2_jax.train.storage.rundir import RunDirectory

SPLITS = ("val", "test")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory")
_STEP = flags.DEFINE_string("step", None, "checkpoint: a step, or best; default: the latest")
_DATA = flags.DEFINE_string("data", None, "text to evaluate on; default: the run's validation text")
_STRIDE = flags.DEFINE_integer(
    "stride", None, "tokens between windows; default: seq_len, without overlap", 1, 2**24
)
_SPLIT = flags.DEFINE_string(
    "split", None, "examples of a task, val or test; default: test if there are any"
)
_TASKS = flags.DEFINE_list("tasks", None, "evaluate these lm-evaluation-harness tasks instead")
_TASK_DATA = flags.DEFINE_string(
    "task_data", None, "folder with the tasks' data; default: download it"
)
_LIMIT = flags.DEFINE_integer("limit", None, "documents per task; default: all", 1, 2**31 - 1)
_INT8 = flags.DEFINE_bool(
    "int8", False, "also evaluate with weights in 8 bits, and show how much the loss rises"
)
_BEAM = flags.DEFINE_integer("beam", None, "translate: beams; default: those of the run", 1, 64)
_PENALTY = flags.DEFINE_float(
    "length_penalty", None, "translate: exponent of the length; default: that of the run"
)
_JSON = flags.DEFINE_bool("json", False, "print one JSON object instead of lines")
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Prints loss, accuracy, perplexity and bits per byte."""
    del argv
    if not _WORKDIR.value:
        raise UserError("pass --workdir, the directory of a run")
    if _TASKS.value:
        evaluate_tasks(_WORKDIR.value, _TASKS.value)
        return
    task = RunDirectory(_WORKDIR.value).read_config().task.name
    _check_flags(task)
    if task != "lm":
        from gpt2_jax.evaluate.task_report import evaluate_task

        decoding = _BEAM.value, _PENALTY.value
        report = evaluate_task(_WORKDIR.value, _STEP.value, _SPLIT.value, *decoding)
        print(to_json(report.to_json()) if _JSON.value else report.text())
        return
    from gpt2_jax.evaluate.perplexity import as_lines, evaluate_run

    result = evaluate_run(_WORKDIR.value, _STEP.value, _DATA.value, _STRIDE.value, _INT8.value)
    print(to_json(result) if _JSON.value else "\n".join(as_lines(result)))


def _check_flags(task: str) -> None:
    """Refuses flags that a run's task does not use."""
    unused: list[flags.FlagHolder] = [_SPLIT] if task == "lm" else [_DATA, _STRIDE, _INT8]
    unused += [] if task == "translate" else [_BEAM, _PENALTY]
    if given := [flag for flag in unused if flag.value is not None and flag.value is not False]:
        raise UserError(
            f"--{given[0].name} has no effect on {_WORKDIR.value}, which has task.name={task}; "
            "leave it out"
        )
    if _SPLIT.value not in (None, *SPLITS):
        raise UserError(
            f"--split={_SPLIT.value} is not a split; use val (the examples of data.val_source, or "
            "those held out) or test (those of data.test_source)"
        )


def evaluate_tasks(workdir: str, names: list[str]) -> None:
    """Prints the harness's results as a table or as JSON."""
    from gpt2_jax.evaluate.extra import load_harness

    harness = load_harness()
    results = harness.evaluate_tasks(workdir, names, _STEP.value, _TASK_DATA.value, _LIMIT.value)
    print(to_json(results) if _JSON.value else harness.table(results))
