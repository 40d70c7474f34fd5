"""Runs of every task through the training loop: rows, files, resuming, stopping."""

import contextlib
import json
import os
import signal
from math import nan

import jax
import numpy as np
import pytest

from gpt2_jax.config import Config, difference
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED, UserError
from gpt2_jax.evaluate.run_texts import TEXTS
from gpt2_jax.intervals import Interval
from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from gpt2_jax.train.run import TextFns
from gpt2_jax.train.storage.open_run import open_examples, open_run, open_run_examples
from tests import tools
from tests.tasks.small import TASKS, small, write_data
from tests.train.distributed.test_processes import kill, wait_for_step
from tests.train.distributed.test_several_processes import free_port

FAST = ("translate", "classify")
STEPS = 12
SCORES = {
    "translate": "val/bleu",
    "tag": "val/entity_f1_strict",
    "classify": "val/macro_f1",
    "answer": "val/exact_match",
}
BEST_BY = {"tag": "entity_f1_strict", "classify": "accuracy", "answer": "answer_f1"}
TIMES = ("perf/",)


pytestmark = pytest.mark.usefixtures("compiled_once")


def by_task(names=TASKS, fast=FAST):
    return [pytest.param(t, marks=[] if t in fast else [pytest.mark.slow]) for t in names]


class Place:
    """A folder with the data of a task, and the runs on it."""

    def __init__(self, folder, task):
        self.folder, self.task = folder, task
        self.data = write_data(folder, task)

    def config(self, **changes):
        return small(self.task, self.data, **changes)

    def train(self, name, texts=TEXTS, **changes):
        return loop.train(self.config(**changes), str(self.folder / name), texts)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    found = {}

    def place(task):
        if task not in found:
            found[task] = Place(tmp_path_factory.mktemp(task), task)
            assert found[task].train("run") == EXIT_FINISHED
        return found[task]

    return place


def rows_of(workdir):
    """Returns the rows of a run without what is measured in seconds."""
    rows = read_rows(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def assert_same_run(workdir, other, tolerance=0.0):
    rows, others = rows_of(workdir), rows_of(other)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    values, expected = (
        np.array([v for row in one for v in row.values()]) for one in (rows, others)
    )
    np.testing.assert_allclose(values, expected, atol=tolerance, rtol=0)
    ours, theirs = (jax.tree.leaves(open_run(str(one)).params) for one in (workdir, other))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=tolerance, rtol=0)


def check_best(folder, rows, best_by):
    """The best checkpoint is the one with the highest score, or the lowest loss, in the rows."""
    stored = json.loads((folder / "config.json").read_text())["train"]["best_by"]
    info = json.loads((folder / "run.json").read_text())["best"]
    assert stored == best_by and info["by"] == (best_by or "loss")
    sign, name = (-1, f"val/{best_by}") if best_by else (1, "val/loss")
    scored = [row for row in rows if name in row]
    best = min(scored, key=lambda row: sign * row[name])
    assert (info["step"], info["value"]) == (best["step"], best[name])
    saved = min((row for row in scored if row["step"]), key=lambda row: sign * row[name])
    assert open_run(str(folder), "best").step == saved["step"]
    meta = json.loads((folder / "checkpoints" / f"{saved['step']:08d}" / "meta.json").read_text())
    assert (meta["best_by"], meta["score"]) == (info["by"], saved[name])


@pytest.mark.parametrize("task", by_task())
def test_rows_and_files(places, task):
    folder = places(task).folder / "run"
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 4, 8, 12]
    assert {"train/loss", "train/grad_norm", "train/lr", "tokens"} <= rows[1].keys()
    assert rows[-1]["val/loss"] < rows[0]["val/loss"] and 0 <= rows[-1]["val/accuracy"] <= 1
    scored = [row["step"] for row in rows if SCORES.get(task) in row]
    assert scored == {"translate": [12], "mlm": [], "sft": []}.get(task, [0, 4, 8, 12])
    check_best(folder, rows, BEST_BY.get(task))
    assert (folder / "sample.txt").exists() == (task != "mlm")
    assert (folder / "tokenizer.json").exists() and (folder / "loss.png").exists()
    info = json.loads((folder / "run.json").read_text())
    expected = {"classify": ["blue", "green", "red"]}.get(task)
    assert task == "tag" or info.get("labels") == expected
    if task == "tag":
        assert info["labels"] == ["O", *(f"{e}-{t}" for t in ("LOC", "ORG", "PER") for e in "BI")]


@pytest.mark.parametrize("task", by_task())
def test_finished_run_compiles_nothing(places, task, monkeypatch, capsys):
    place = places(task)
    monkeypatch.setattr(loop, "compile_step", None)
    assert place.train("run") == EXIT_FINISHED
    assert "is finished: raise train.steps to continue it" in capsys.readouterr().out


@pytest.mark.parametrize("task", by_task())
def test_extended_run_equals_a_long_one(places, task):
    place = places(task)
    assert place.train("extended", train__steps=8) == EXIT_FINISHED
    sample = place.folder / "extended" / "sample.txt"
    first = sample.read_text() if sample.exists() else None
    assert place.train("extended") == EXIT_FINISHED
    whole = rows_of(place.folder / "run")
    found = rows_of(place.folder / "extended")
    extra = [k for k in found[4] if k not in whole[4]]  # BLEU of what was the last step
    for name in extra:
        del found[4][name]
    assert found == whole
    if first is not None:
        assert sample.read_text() == (place.folder / "run" / "sample.txt").read_text()


@pytest.mark.parametrize("task", by_task(fast=()))
def test_run_continues_on_another_mesh(places, task):
    place = places(task)
    assert place.train("mesh", train__steps=8) == EXIT_FINISHED
    assert place.train("mesh", mesh__data=2, mesh__fsdp=4) == EXIT_FINISHED
    losses = [
        [
            row[k]
            for row in rows_of(place.folder / name)
            for k in ("train/loss", "val/loss")
            if k in row
        ]
        for name in ("run", "mesh")
    ]
    np.testing.assert_allclose(*losses, atol=1e-4)


def test_rerun_writes_a_missing_sample(places):
    """As after a kill between the last checkpoint and the sample."""
    place = places("classify")
    sample = place.folder / "run" / "sample.txt"
    text = sample.read_text()
    sample.unlink()
    assert place.train("run") == EXIT_FINISHED
    assert sample.read_text() == text
    assert "gold" in text and "model" in text


def padding_free_share(place, lengths):
    """Returns the share of positions of an epoch whose segment is not 0, counted in its batches."""
    config = place.config(data__lengths=lengths)
    layout = open_examples(config).sampler(48, 8, config.seed)
    segments = [layout.batch(step).inputs.segments_BT for step in range(layout.steps(1.0))]
    return sum((one > 0).sum() for one in segments) / sum(one.size for one in segments)


def test_rows_of_several_lengths_and_diagnostics(places, capsys):
    place = places("classify")
    changes = {"data__lengths": ("8", "12"), "track__diagnostics_every": 4}
    assert place.train("buckets", **changes) == EXIT_FINISHED
    rows = read_rows(place.folder / "buckets" / "metrics.jsonl")
    figures = [row["step"] for row in rows if "depth/stream_rms/block_01" in row]
    assert figures == [0, 4, 8, 12]
    shares = [padding_free_share(place, lengths) for lengths in ((), ("8", "12"))]
    report = " ".join(capsys.readouterr().out.split())
    assert f"({shares[1]:.0%} of the positions)" in report
    assert "best highest val/accuracy" in report
    assert shares[0] < shares[1] - 0.1
    assert all(np.isfinite(row["depth/skip_cost/block_01"]) for row in rows if row["step"] % 4 == 0)
    padded = rows_of(place.folder / "run")
    assert rows[0]["val/loss"] == padded[0]["val/loss"]
    assert rows[-1]["train/loss"] != padded[-1]["train/loss"]  # other batches


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_diagnostics_of_every_task(places, task):
    place = places(task)
    assert place.train("depth", track__diagnostics_every=6) == EXIT_FINISHED
    last = read_rows(place.folder / "depth" / "metrics.jsonl")[-1]
    towers = ("encoder/", "decoder/") if task == "translate" else ("",)
    for tower in towers:
        for name in ("stream_rms", "attn_ratio", "entropy", "grad_norm", "skip_cost"):
            assert np.isfinite(last[f"depth/{tower}{name}/block_01"])
    plain = rows_of(place.folder / "run")[-1]
    # The step also returns the norms of blocks' gradients, so it rounds differently.
    assert {k: v for k, v in last.items() if k in plain} == pytest.approx(plain, rel=1e-4)


def test_epochs(places, capsys):
    """96 examples are 12 batches of 8."""
    place = places("classify")
    changes = {"train__epochs": 0.5, "train__eval_every": 6}
    assert place.train("epochs", **changes) == EXIT_FINISHED
    assert rows_of(place.folder / "epochs")[-1]["step"] == 6
    assert place.train("epochs", **changes) == EXIT_FINISHED
    assert "is finished: raise train.epochs to continue it" in capsys.readouterr().out
    assert place.train("epochs", **changes | {"train__epochs": 1.1}) == EXIT_FINISHED
    assert rows_of(place.folder / "epochs")[-1]["step"] == 14
    with pytest.raises(UserError, match="different config"):
        place.train("epochs", **changes)


def test_patience_generates_at_the_end(places):
    place = places("translate")
    changes = {"optimizer__peak_lr": 3.0, "optimizer__grad_clip": 0.0, "train__patience": 1}
    assert place.train("patience", **changes, train__steps=40) == EXIT_FINISHED
    rows = rows_of(place.folder / "patience")
    assert rows[-1]["step"] < 40 and rows[-1]["val/loss"] > rows[0]["val/loss"]
    assert [row["step"] for row in rows if "val/bleu" in row] == [rows[-1]["step"]]
    assert (place.folder / "patience" / "sample.txt").exists()


def test_generation_every_few_steps(places):
    """The best checkpoint has the highest BLEU; evaluations without BLEU do not use up patience."""
    place, bleu = places("translate"), {4: 1.0, 8: 3.0, 12: 2.0, 16: 1.0}

    def scored(model):
        values = {"bleu": Interval(bleu[model.step], nan, nan), "chrf": Interval(1.0, nan, nan)}
        return Scores("texts", "pairs", 1, values, {}, Bootstrap(0))

    changes = {"eval__generate_every": 4, "train__patience": 2, "train__steps": 40}
    changes |= {"train__eval_every": 2, "train__keep_checkpoints": 1}
    texts = TextFns(TEXTS.sample, scored)
    assert place.train("often", texts, **changes) == EXIT_FINISHED
    folder = place.folder / "often"
    rows = rows_of(folder)
    assert [row["step"] for row in rows if "val/chrf" in row] == [4, 8, 12, 16]
    assert rows[-1]["step"] == 16 and not (folder / "checkpoints" / "00000012").exists()
    check_best(folder, rows, "bleu")
    assert open_run(str(folder), "best").step == 8


def test_best_by_must_be_a_score_of_the_task(places):
    place = places("classify")
    with pytest.raises(UserError, match=r"=bleu is not a score .*choose one of loss, accuracy, m"):
        place.train("other", train__best_by="bleu")
    with pytest.raises(UserError, match="is unknown; choose one of accuracy, answer_f1"):
        place.train("other", train__best_by="perplexity")
    with pytest.raises(UserError, match="needs text that is generated while training"):
        places("translate").train("other", train__best_by="bleu")


def test_best_by_may_change_when_a_run_continues(places, capsys):
    """The rows of metrics.jsonl have all scores, so the best checkpoint follows the new one."""
    place = places("classify")
    assert place.train("by", train__steps=8) == EXIT_FINISHED
    assert place.train("by", train__best_by="loss", train__steps=12) == EXIT_FINISHED
    assert "train.best_by was 'accuracy', is now 'loss'" in capsys.readouterr().out
    rows = rows_of(place.folder / "by")
    best = min(rows[1:], key=lambda row: row.get("val/loss", 9.0))
    assert open_run(str(place.folder / "by"), "best").step == best["step"]


def test_generation_every_few_steps_is_repeated_with_its_evaluation_after_a_stop(places, capsys):
    place = places("translate")

    def stopping(model):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal should have ended the evaluation")

    changes = {"eval__generate_every": 8, "train__best_by": "chrf"}
    assert place.train("unstopped", **changes) == EXIT_FINISHED
    rows = rows_of(place.folder / "unstopped")
    scores = next(row for row in rows if "val/chrf" in row)
    line = f"step 8: bleu {scores['val/bleu']:.2f}, chrf {scores['val/chrf']:.2f}"
    assert line in capsys.readouterr().err.splitlines()
    assert [row["step"] for row in rows if "val/chrf" in row] == [8, 12]
    texts = TextFns(TEXTS.sample, stopping)
    assert place.train("stopped", texts, **changes) == EXIT_STOPPED
    stopped = rows_of(place.folder / "stopped")
    assert stopped[-1]["step"] == 8 and "val/loss" not in stopped[-1]
    assert place.train("stopped", **changes) == EXIT_FINISHED
    assert_same_run(place.folder / "stopped", place.folder / "unstopped")


def write_config(path, config):
    """Writes a config file that returns a config."""
    changes = {name: new for name, (_, new) in difference(Config(), config).items()}
    path.write_text(
        "from gpt2_jax import config\n\n\ndef get_config():\n    c = config.default()\n"
        f"    c.update_from_flattened_dict({changes!r})\n    return c\n"
    )
    return path


def start(place, name, *flags, **changes):
    """Starts a training process."""
    path = write_config(place.folder / "config.py", place.config(**changes))
    words = ["train.py", f"--config={path}", f"--workdir={place.folder / name}", *flags]
    return tools.start(*words, tmp=place.folder)


def finish(*processes):
    for process in processes:
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out


@pytest.mark.parametrize("task", by_task(fast=("translate",)))
def test_killed_run_has_the_same_result(places, task):
    place = places(task)
    packed = task not in ("classify", "answer")
    changes = {"train__steps": 40, "train__log_every": 1, "train__checkpoint_every": 5}
    changes |= {"train__eval_every": 20, "model__dropout": 0.1, "train__accumulation": 2}
    changes |= {} if packed else {"data__lengths": ("8", "12")}
    finish(start(place, "alone", **changes))
    process = start(place, "killed", **changes)
    wait_for_step(process, place.folder / "killed", 12)
    kill(process)
    finish(start(place, "killed", **changes))
    info = json.loads((place.folder / "killed" / "run.json").read_text())
    assert len(info["starts"]) == 2 and info["starts"][1]["from_step"] >= 5
    assert_same_run(place.folder / "killed", place.folder / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_are_like_one(places, task):
    place = places(task)
    changes = {"train__log_every": 1, "eval__generate_every": 8} if task == "translate" else {}
    finish(start(place, "one", **changes))
    flags = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    pair = [start(place, "two", *flags, f"--process_id={k}", **changes) for k in range(2)]
    try:
        finish(*pair)
    finally:
        for process in pair:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert_same_run(place.folder / "two", place.folder / "one", tolerance=1e-4)
    samples = [place.folder / name / "sample.txt" for name in ("one", "two")]
    if task != "mlm":
        assert samples[0].read_text() == samples[1].read_text()


def test_chat_template_is_kept_with_the_run(tmp_path):
    """The run continues, and its examples are the same, after the template has gone."""
    messages = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "dog"}]
    lines = [json.dumps({"messages": messages})] * 8
    source, template = tmp_path / "chats.jsonl", tmp_path / "chat.jinja"
    source.write_text("\n".join(lines) + "\n")
    template.write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    data = {"data.source": str(source), "data.val_source": str(source)}
    data |= {"data.tokenizer": "bytes", "data.chat_template": str(template)}
    steps = {"train__eval_every": 2, "train__sample_tokens": 0}
    workdir = str(tmp_path / "run")
    assert loop.train(small("sft", data, **steps, train__steps=2), workdir) == EXIT_FINISHED
    template.unlink()
    assert loop.train(small("sft", data, **steps, train__steps=4), workdir) == EXIT_FINISHED
    opened = open_run(workdir)
    assert len(open_run_examples(opened, workdir).splits["train"]) == 8


def test_labeled_spans_are_questions(tmp_path):
    """A question per label, whose number is not one of the model's outputs."""
    rows = [
        {"text": f"{c} {t}", "spans": [{"label": "color", "start": 0, "end": len(c)}]}
        for c in ("red", "green")
        for t in ("dog", "tree", "cat", "bird")
    ]
    rows[0]["spans"].append({"label": "thing", "start": 4, "end": 7})
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    source = str(tmp_path / "spans.jsonl")
    data = {"data.source": source, "data.val_source": source, "data.columns": "spans=spans"}
    config = small("answer", data, train__steps=2, train__eval_every=2)
    assert loop.train(config, str(tmp_path / "run"), TEXTS) == EXIT_FINISHED
    last = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0 <= last["val/span_f1"] <= 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["labels"] == ["color", "thing"]
    assert open_run(str(tmp_path / "run")).config.head.n_labels is None
