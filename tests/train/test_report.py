"""What a run prints before and after training."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.task import TASKS
from gpt2_jax.track.progress import Progress
from gpt2_jax.train import report
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.run import Run
from gpt2_jax.train.storage.rundir import RunDirectory
from tests.tasks.small import small
from tests.tools import tiny

LM = TASKS["lm"]
START = {"step": 0, "val/loss": 5.5452, "val/bits_per_byte": 8.0001}


def trained(step, loss):
    return {"step": step, "train/loss": loss}


def test_stopped_run_shows_its_training_loss_and_last_validation():
    first, second = report.result_lines([START, trained(50, 3.0), trained(60, 2.5)], LM)
    assert "2.5000" in first and "step 60" in first
    assert "5.5452" in second and "last validated at step 0" in second


def test_run_without_an_evaluation_shows_its_training_loss():
    (line,) = report.result_lines([trained(60, 2.5)], LM)
    assert "2.5000" in line
    assert report.result_lines([], LM) == []


def test_run_that_was_just_validated_shows_only_the_validation_loss():
    row = trained(60, 2.5) | {"val/loss": 2.4, "val/bits_per_byte": 1.0}
    (line,) = report.result_lines([START, row], LM)
    assert "2.4000" in line and "step 60" in line and "2.5" not in line


@pytest.mark.parametrize(
    ("bits", "numbers"),
    [
        (3.4652, ["2.4019", "3.4652"]),  # 2.4019 nats: a token is a byte
        (1.2, ["2.4019", "0.8318", "1.2000"]),
        (None, ["2.4019"]),
    ],
)
def test_equal_numbers_are_printed_once(bits, numbers):
    row = {"step": 9, "val/loss": 2.4019} | ({"val/bits_per_byte": bits} if bits else {})
    (line,) = report.result_lines([row], LM)
    assert [word for word in line.split() if word[0].isdigit() and "." in word] == numbers


def test_result_of_a_task_has_its_target_and_scores():
    row = {"step": 9, "val/loss": 0.25, "val/accuracy": 0.5, "val/entity_f1_strict": 0.875}
    (line,) = report.result_lines([row], TASKS["tag"])
    assert line == "validation loss 0.2500 nats per word; entity_f1_strict 0.8750 (step 9)"
    (line,) = report.result_lines([row], LM)
    assert line == "validation loss 0.2500 nats per token (step 9)"


@pytest.mark.parametrize(
    ("best_by", "scores"),
    [
        ("entity_f1_lenient", "entity_f1_strict 0.8750, entity_f1_lenient 0.9000"),
        ("entity_f1_strict", "entity_f1_strict 0.8750"),
        ("loss", "entity_f1_strict 0.8750"),
        (None, "entity_f1_strict 0.8750"),
    ],
)
def test_score_of_the_best_checkpoint_is_shown(best_by, scores, capsys):
    row = {"step": 9, "val/loss": 0.25, "val/entity_f1_strict": 0.875, "val/entity_f1_lenient": 0.9}
    assert TASKS["tag"].describe(row, best_by) == scores
    (line,) = report.result_lines([row], TASKS["tag"], best_by)
    assert line == f"validation loss 0.2500 nats per word; {scores} (step 9)"
    config, progress = small("tag", {"train.best_by": best_by}), Progress(9)
    run = SimpleNamespace(config=config, progress=progress, step=9)
    Run._report(run, SimpleNamespace(loss=0.25, metrics=lambda: row))
    assert capsys.readouterr().err == f"step 9: validation loss 0.2500, {scores}\n"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/a/long/path/to/input.txt", "input.txt"),
        ("corpus/*.jsonl.zst", "*.jsonl.zst"),
        ("hf:org/name@train", "hf:org/name@train"),
        ("/data/" + "x" * 200, "…"),
    ],
)
def test_title_of_the_loss_curve_names_run_and_text_without_a_path(tmp_path, source, shown):
    title = report.curve_title(tiny(data__source=source), RunDirectory(str(tmp_path / "run")))
    assert title.startswith("run: pre_ln on ") and title.endswith(shown)
    assert len(title) <= 80 and "/data" not in title and "/a/" not in title


def test_start_report_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    model = define_model(tiny().model, tiny().placement)
    monkeypatch.setattr(report, "facts", lambda *_: {
        "devices": ["cpu"], "platform": "cpu", "parameters": 1, "flops_per_token": 1, "flops": 1,
    })  # fmt: skip
    program = SimpleNamespace(
        model_def=model, attention="xla", peak_bytes=None, compile_seconds=1.0,
        mesh=make_mesh(TrainConfig(batch_size=1), MeshConfig()),
        shapes=SimpleNamespace(frozen=None),
        tokens_per_step=96,
    )  # fmt: skip
    corpus = SimpleNamespace(
        streams={}, is_mixture=False, n_tokens=lambda split: 10, describe=lambda: "10 tokens"
    )
    lines = report.start_report(tiny(), program, corpus, 0, 0.1).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line[0] != " " for line in lines) == 10 and "trained" not in "".join(lines)
    program.shapes = SimpleNamespace(frozen={}, params={"a": np.zeros((2, 3)), "b": np.zeros(1)})
    words = report.start_report(tiny(), program, corpus, 0, 0.1).split()
    assert "1 parameters (7 trained)" in " ".join(words)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "float32"),
        ({"model.matmul_dtype": "bfloat16"}, "float32, matrix products of bfloat16"),
        ({"model.dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_precision_names_the_dtype_of_products_if_it_differs(changes, shown):
    config = tiny(**changes)
    assert report._precision(define_model(config.model, config.placement)) == shown
