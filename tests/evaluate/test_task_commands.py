"""`gpt2-jax eval`, `predict` and `translate` on runs of tasks."""

import csv
import json
import math
import os
import subprocess
import sys

import pytest

from gpt2_jax.train import loop
from tests import tools
from tests.tasks.small import small, write_data

TASKS = ("classify", "tag", "answer", "translate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a short run of each task, by its name; `answer` has no test examples."""
    folder = tmp_path_factory.mktemp("commands")
    for task in TASKS:
        (folder / f"{task}_data").mkdir()
        data = write_data(folder / f"{task}_data", task, n=32)
        if task == "answer":
            del data["data.test_source"]
        windows = {"data__seq_len": 12, "data__doc_stride": 3} if task == "answer" else {}
        steps = windows | {"train__steps": 2, "train__eval_every": 2, "train__sample_tokens": 0}
        assert loop.train(small(task, data, **steps), str(folder / task)) == 0
    return folder


def gpt2_jax(place, command, task, *flags):
    words = ("-m", "gpt2_jax", command, f"--workdir={place / task}", *flags)
    return tools.run(*words, tmp=place, XDG_CACHE_HOME=cache())


def cache():
    return os.environ["XDG_CACHE_HOME"]


def output(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(place, *texts):
    path = place / "lines.txt"
    path.write_text("\n".join(texts) + "\n")
    return f"--input={path}"


def test_eval_writes_scores_of_the_test_examples(place):
    found = json.loads(output(gpt2_jax(place, "eval", "classify", "--json")))
    assert (found["task"], found["split"], found["step"], found["examples"]) == (
        *("classify", "test", 2),
        8,
    )
    accuracy = found["scores"]["values"]["accuracy"]
    assert accuracy["low"] <= accuracy["estimate"] <= accuracy["high"]
    (written,) = (place / "classify" / "evals").glob("classify_test_2_*.json")
    assert json.loads(written.read_text()) == found
    assert written.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("classify", ("val, 8 examples", "accuracy", "macro_f1")),
        pytest.param("tag", ("val, 250 examples", "entity_f1_strict"), marks=pytest.mark.slow),
        pytest.param("answer", ("val, 8 examples", "exact_match"), marks=pytest.mark.slow),
        pytest.param("translate", ("val, 250 examples", "nrefs:1|case:"), marks=pytest.mark.slow),
    ],
)
def test_eval_prints_a_report(place, task, words):
    decoding = ("--beam=1", "--length_penalty=0.5") if task == "translate" else ()
    text = output(gpt2_jax(place, "eval", task, "--split=val", *decoding))
    assert ("\nbeam 1, length_penalty 0.5\n" in text) == (task == "translate")
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("answer", ["--split=test"], "has no test examples; leave out --split for its validation"),
        ("classify", ["--split=dev"], "--split=dev is not a split; use val (the examples of data"),
        ("tag", ["--data=text.txt"], "--data has no effect on"),
        ("classify", ["--stride=4"], "--stride has no effect on"),
        ("tag", ["--length_penalty=0"], "--length_penalty has no effect on"),
    ],
)
def test_eval_refuses(place, task, flags, message):
    assert message in tools.one_line_error(gpt2_jax(place, "eval", task, *flags))


def test_predict_labels(place):
    texts = ("red dog", "", '{"text": "blue cat"}', "grün " * 60)
    rows = output(gpt2_jax(place, "predict", "classify", lines(place, *texts), "--top=3"))
    found = [json.loads(row) for row in rows.splitlines()]
    for row in found:
        top = row["top"]
        assert {k: row[k] for k in ("label", "probability")} == top[0]
        assert sum(one["probability"] for one in top) == pytest.approx(1, abs=1e-5)
        assert top == sorted(top, key=lambda one: -one["probability"]) and len(top) == 3
    assert [row["text"] for row in found] == ["red dog", "blue cat", "grün " * 60]
    assert {row["label"] for row in found} <= {"red", "green", "blue"}


def test_predict_tags_and_words(place):
    texts = ("Ada Noor lives in New Oslo.", '{"words": ["Ada", "left", "."]}')
    rows = output(gpt2_jax(place, "predict", "tag", lines(place, *texts))).splitlines()
    first, second = map(json.loads, rows)
    assert first["words"] == ["Ada", "Noor", "lives", "in", "New", "Oslo", "."]
    assert second["words"] == ["Ada", "left", "."]
    for row in (first, second):
        assert len(row["tags"]) == len(row["words"]) == len(row["probabilities"])
        assert all(1 / 7 < p <= 1 for p in row["probabilities"])  # the largest of 7 labels
        for entity in row["entities"]:
            of_words = row["probabilities"][slice(*entity["words"])]
            assert entity["probability"] == pytest.approx(math.prod(of_words), abs=1e-5)
    for entity in first["entities"]:
        assert texts[0][entity["start"] : entity["end"]] == entity["text"]


def test_predict_answers(place):
    question = {"id": "q1", "question": "which dog", "context": "red dog blue cat " * 9}
    row = output(gpt2_jax(place, "predict", "answer", lines(place, json.dumps(question))))
    found = json.loads(row)
    assert (found["id"], found["question"]) == ("q1", "which dog")
    assert question["context"][found["start"] : found["end"]] == found["answer"]
    assert 0 < found["probability"] < 1


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        ("classify", ["red", '{"text": 3}'], "lines.txt line 2 has no text in 'text'"),
        (
            "classify",
            ["{not json"],
            "lines.txt line 1 is not JSON: Expecting property name",
        ),
        ("classify", ['{"text" "a"}'], "is not JSON: Expecting ':' delimiter at column 9"),
        ("classify", ['{"text": "a", "second": 1}'], "lines.txt line 1: second must be text"),
        (
            "answer",
            ["", "what?"],
            "lines.txt line 2 is not a JSON object with question and",
        ),
        ("answer", ['{"question": "a"}'], "lines.txt line 1 has no text in 'context'"),
        ("tag", ['{"words": ["a", ""]}'], "lines.txt line 1: words must be a list of words"),
        ("tag", ['{"words": []}'], "lines.txt line 1: words must be a list of words"),
        ("translate", ["a"], "has task.name=translate; `gpt2-jax predict` is for tag, classify"),
    ],
)
def test_predict_names_the_line(place, task, texts, message):
    done = gpt2_jax(place, "predict", task, lines(place, *texts))
    assert message in tools.one_line_error(done)


def test_translate_keeps_lines(place):
    flags = (lines(place, "a b c", "", "  ", "d e"), "--beam=1")
    rows = output(gpt2_jax(place, "translate", "translate", *flags)).split("\n")
    assert len(rows) == 5 and rows[1] == rows[2] == rows[4] == ""
    refused = gpt2_jax(place, "translate", "classify", flags[0])
    assert "`gpt2-jax translate` needs a run with task.name=translate" in tools.one_line_error(
        refused
    )


def test_sample_refuses_runs_of_tasks(place):
    refused = gpt2_jax(place, "sample", "classify")
    message = "has task.name=classify, whose model does not continue text"
    assert message in tools.one_line_error(refused)


@pytest.mark.slow
def test_diagnose_compares_runs_of_tasks(place):
    """Of one tower and of two; the rows of a run's only tower have no name for it."""
    runs, out = [place / "translate", place / "classify"], place / "diagnosis"
    words = (f"--workdirs={runs[0]},{runs[1]}", "--batches=1", f"--out={out}")
    text = output(
        tools.run("-m", "gpt2_jax", "diagnose", *words, tmp=place, XDG_CACHE_HOME=cache())
    )
    assert f"pre_ln ({runs[0]})"[:28] in text and "1+1" in text
    assert {path.stem for path in out.glob("*.png")} == {
        *("blocks_1", "blocks_encoder_1", "blocks_decoder_1")
    }
    with open(out / "blocks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tower"] for row in rows] == ["encoder", "decoder", ""]
    empty = [[name for name, value in row.items() if not value] for row in rows]
    assert empty == [["cross_ratio"], [], ["tower", "cross_ratio"]]


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("predict", "classify"),
        pytest.param("translate", "translate", marks=pytest.mark.slow),
    ],
)
def test_standard_input_is_utf8(place, command, task):
    done = subprocess.run(
        [sys.executable, "-m", "gpt2_jax", command, f"--workdir={place / task}"],
        input="\ufeffgrün\r\n".encode() + b"\xff\n",
        env=tools.environment(place, LC_ALL="C", PYTHONUTF8="0"),
        capture_output=True,
    )
    assert done.returncode == 2
    error = done.stderr.decode().strip().splitlines()[-1]
    assert error.startswith("error: standard input, line 2 is not UTF-8 text (invalid start byte);")
