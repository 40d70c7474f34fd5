"""Wrong data and fields of tasks end a training command in one line, before it creates anything."""

import json
import re

import pytest

from gpt2_jax.config import Config, difference, replace, to_json
from gpt2_jax.config.task_rules import check_task
from gpt2_jax.errors import UserError
from gpt2_jax.train import loop
from gpt2_jax.train.storage.open_run import open_examples
from tests import tools
from tests.tasks.small import small

LABELED = [{"text": f"{color} dog", "label": color} for color in ("red", "blue")] * 4
TAGGED = ["Ada B-PER", "left O", "", "Oslo B-LOC", ""] * 4
QUESTIONS = [
    {
        "question": "what?",
        "context": "red dog",
        "answers": [{"text": "dog", "answer_start": 4}],
    }
] * 8


def jsonl(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


# Name: the task, the content of each file, fields, and what the error says.
CASES = {
    "sides of unequal length": (
        "translate",
        {"train.en": "a\nb\nc\n", "train.de": "x\ny\n"},
        {"data.source": "train.{en,de}"},
        "train.en line 3 has no counterpart",
    ),
    "empty target": (
        "translate",
        {"train.jsonl": jsonl([{"source": "a", "target": "x"}, {"source": "b", "target": " "}])},
        {"data.source": "train.jsonl"},
        "train.jsonl line 2",
    ),
    "source longer than the model": (
        "translate",
        {"train.jsonl": jsonl([{"source": "a " * 90, "target": "x"}] * 8)},
        {"data.source": "train.jsonl", "data.too_long": "refuse"},
        "train.jsonl line 1: the source has 91 tokens, but at most 48 fit; raise data.seq_len, sh",
    ),
    "unknown label in the validation set": (
        "classify",
        {
            "train.jsonl": jsonl(LABELED),
            "val.jsonl": jsonl([LABELED[0], {"text": "a", "label": "gren"}]),
        },
        {"data.source": "train.jsonl", "data.val_source": "val.jsonl"},
        "val.jsonl line 2: the training data has no label 'gren'",
    ),
    "one label": (
        "classify",
        {"train.jsonl": jsonl(LABELED[:1] * 4)},
        {"data.source": "train.jsonl"},
        "has 1 label; classification needs two",
    ),
    "missing field": (
        "classify",
        {"train.jsonl": jsonl([{"text": "a"}])},
        {"data.source": "train.jsonl"},
        "train.jsonl line 1",
    ),
    "not a tag": (
        "tag",
        {"train.txt": "Ada B-PER\nleft out\n"},
        {"data.source": "train.txt"},
        "train.txt line 2",
    ),
    "answer outside its text": (
        "answer",
        {
            "train.jsonl": jsonl(
                [QUESTIONS[0], QUESTIONS[0] | {"answers": [{"text": "dog", "answer_start": 5}]}]
            )
        },
        {"data.source": "train.jsonl"},
        "train.jsonl line 2",
    ),
    "class weight of an unknown label": (
        "classify",
        {"train.jsonl": jsonl(LABELED), "val.jsonl": jsonl(LABELED)},
        {
            "data.source": "train.jsonl",
            "data.val_source": "val.jsonl",
            "task.class_weights": ("rde=2",),
        },
        "task.class_weights: the training data has no label 'rde'; did you mean 'red'?",
    ),
    "packed rows of one label": (
        "classify",
        {"train.jsonl": jsonl(LABELED), "val.jsonl": jsonl(LABELED)},
        {
            "data.source": "train.jsonl",
            "data.val_source": "val.jsonl",
            "data.layout": "packed",
        },
        "data.layout=packed does not work with task.name=classify",
    ),
    "lengths that are too long": (
        "classify",
        {},
        {"data.lengths": ("8", "48")},
        "data.lengths: 48 is not below data.seq_len=48, the length of the longest rows; leave it",
    ),
    "no validation examples": (
        "classify",
        {"train.jsonl": jsonl(LABELED)},
        {"data.source": "train.jsonl", "data.val_fraction": 0.0},
        "there are no validation examples; set data.val_source or data.val_fraction",
    ),
    "no mask token": (
        "mlm",
        {"train.txt": tools.make_text(4000)},
        {"data.source": "train.txt", "data.tokenizer": "bytes"},
        "has no mask token",
    ),
    "another architecture": (
        "tag",
        {},
        {"model.architecture": "decoder"},
        "task.name=tag needs model.architecture=encoder, not decoder",
    ),
    "a field of another task": (
        "tag",
        {},
        {"eval.generate_every": 4},
        "eval.generate_every=4 has no effect with task.name=tag; unset it (it is for translate)",
    ),
    "smoothed answers": (
        "answer",
        {},
        {"optimizer.label_smoothing": 0.1},
        "optimizer.label_smoothing=0.1 has no effect with task.name=answer",
    ),
    "a label that the data does not have": (
        "classify",
        {"train.jsonl": jsonl(LABELED), "val.jsonl": jsonl(LABELED)},
        {"data.source": "train.jsonl", "data.val_source": "val.jsonl", "eval.out_of_scope": "oos"},
        "eval.out_of_scope='oos' is not a label of the training data; choose one of blue, red",
    ),
    "generation between evaluations": (
        "translate",
        {},
        {"eval.generate_every": 6},
        "eval.generate_every=6 must be a multiple of train.eval_every=4",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path):
    task, files, fields, message = CASES[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    paths = {n: v if n not in PATHS else str(tmp_path / v) for n, v in fields.items()}
    config = small(task, paths)
    changes = {n: new for n, (_, new) in difference(Config(), config).items()}
    (tmp_path / "config.py").write_text(
        "from gpt2_jax import config\n\n\ndef get_config():\n    c = config.default()\n"
        f"    c.update_from_flattened_dict({changes!r})\n    return c\n"
    )
    workdir = tmp_path / "run"
    words = [f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"]
    error = tools.one_line_error(tools.run("train.py", *words, tmp=tmp_path))
    assert message in error
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("classify", {"data.lengths": ("8",), "data.layout": "packed"}, "data.layout=padded"),
        ("translate", {"data.source_len": 49}, "longer than model.n_positions=48; shorten it"),
        ("classify", {"data.lengths": ("8,x",)}, "data.lengths: 'x' is not a number of tokens"),
        ("classify", {"data.lengths": ("0",)}, "data.lengths: '0' is not a number of tokens"),
        ("answer", {"data.lengths": ("²",)}, "data.lengths: '²' is not a number of tokens"),
        ("classify", {"data.lengths": ("8", "16", "08")}, "data.lengths has 08 twice; leave one"),
        (
            "translate",
            {"data.lengths": ("24",), "data.seq_len": 16, "data.source_len": 24},
            "data.lengths: 24 is not below data.seq_len=16",
        ),
        ("answer", {"data.doc_stride": 48}, "must be below data.seq_len=48, so that windows"),
        (
            "classify",
            {"optimizer.label_smoothing": 0.1, "train.z_loss": 1e-4},
            "optimizer.label_smoothing does not support train.z_loss",
        ),
    ],
)
def test_fields_that_contradict_each_other(task, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_task(small(task, fields))


LONG = "the dog " * 30


@pytest.mark.parametrize(
    ("task", "record", "fields", "message"),
    [
        (
            "translate",
            {"source": LONG, "target": "a"},
            {"data.source_len": 24},
            "the source has 61 tokens, but at most 24 fit; raise data.source_len, shorten the so",
        ),
        (
            "translate",
            {"source": "a", "target": LONG},
            {"data.source_len": 24},
            "the target has 61 tokens, but at most 48 fit; raise data.seq_len, shorten the target",
        ),
        (
            "classify",
            {"text": "a", "second": LONG, "label": "b"},
            {"data.columns": "second=second"},
            "the second text has 60 tokens, but at most 44 fit; raise data.seq_len, shorten the s",
        ),
        (
            "answer",
            {"question": "a", "context": LONG, "answers": []},
            {},
            "the context has 60 tokens, but at most 44 fit; raise data.seq_len, set data.doc_str",
        ),
        (
            "answer",
            {"question": LONG, "context": "a", "answers": []},
            {"data.doc_stride": 8},
            "the question has 60 tokens, but at most 22 fit; raise data.seq_len, shorten the qu",
        ),
    ],
)
def test_text_that_is_refused_names_the_field_to_raise(task, record, fields, message, tmp_path):
    (tmp_path / "train.jsonl").write_text(jsonl([record, record | {"label": "c"}]))
    source = {"data.source": str(tmp_path / "train.jsonl"), "data.val_fraction": 0.0}
    config = small(task, source | {"data.too_long": "refuse"} | fields)
    with pytest.raises(UserError, match=re.escape(f"line 1: {message}")):
        open_examples(config)


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("data.source", "missing.jsonl", "(with train.init_from={} to start from its weights)"),
        ("data.val_source", "val.jsonl", "train.init_from={}"),
        ("data.test_source", "test.jsonl", "train.init_from={}"),
        ("data.columns", "text=question", "train.init_from={}"),
        ("data.tokenizer", "bytes", "use another --workdir, or change these fields back"),
        ("optimizer.peak_lr", 0.5, "use another --workdir, or change these fields back"),
    ],
)
def test_run_is_not_continued_on_other_data(field, value, advice, tmp_path, monkeypatch):
    config = small("classify", {"data.source": "train.jsonl", "data.tokenizer": "gpt2"})
    sizes = {"head.n_labels": 2, "model.vocab_size": 50257, "model.n_inner": 64}
    started = replace(config, sizes)
    old = difference(started, replace(started, {field: value}))[field][0]
    (tmp_path / "config.json").write_text(to_json(started))
    (tmp_path / "run.json").write_text('{"starts": [{}]}')
    monkeypatch.setattr(loop, "open_examples", None)
    with pytest.raises(UserError) as caught:
        loop.train(replace(config, {field: value}), str(tmp_path))
    assert f"with a different config: {field} (was {old!r}, now {value!r})" in str(caught.value)
    assert advice.format(tmp_path) in str(caught.value)


def test_changed_file_of_a_run_is_named(tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(jsonl(LABELED))
    sources = {f"data.{n}": str(tmp_path / f) for n, f in SPLITS.items()}
    config = small("classify", sources | {"data.tokenizer": "bytes"})
    sizes = {"head.n_labels": 2, "model.vocab_size": 257, "model.n_inner": 64}
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(to_json(replace(config, sizes)))
    (run / "run.json").write_text('{"starts": [{}], "corpus": "0", "labels": ["blue", "red"]}')
    with pytest.raises(UserError) as caught:
        loop.train(config, str(run))
    named = " with ".join(f"{name}={value}" for name, value in sources.items())
    assert f"was trained on another text than {named} contains now" in str(caught.value)


SPLITS = {"source": "train.jsonl", "val_source": "val.jsonl"}
PATHS = ("data.source", "data.val_source")
