"""Sources, and names in `data.columns`, that would have no effect are refused in one line."""

import json
import re
from collections import Counter

import pytest

from gpt2_jax.data.examples.encode import Limits
from gpt2_jax.data.examples.prepare import ExampleSources, open_examples
from gpt2_jax.data.examples.sources import RecordSource
from gpt2_jax.errors import UserError

QUESTION = {"id": "1", "question": "who?", "context": "Ada left", "answers": []}
FILES = {
    "squad.json": {"data": [{"paragraphs": [{"context": "Ada left", "qas": [QUESTION]}]}]},
    "rows.jsonl": QUESTION,
    "spans.jsonl": {"text": "Ada left", "spans": [{"label": "PER", "start": 0, "end": 3}]},
    "words.jsonl": {"words": ["Ada", "left"], "tags": ["B-PER", "O"]},
}
SPANS = "is read as texts with labeled spans; leave it out"
ROWS = "has a question per row, without labeled spans; leave it out, or set spans=COLUMN"
LISTS = "has lists of words and tags; leave it out"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file of each form, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content) + "\n")
    (tmp_path / "a.conll").write_text("Ada B-PER\nleft O\n")
    for language in ("en", "de"):
        (tmp_path / f"a.{language}").write_text("Ada left\nAda\n")
    return tmp_path


def prepare(task, folder, train, val, columns):
    source, val_source = (
        name if name.startswith("toy:") else f"{folder}/{name}" for name in (train, val)
    )
    sources = ExampleSources(task, source, val_source, columns=columns)
    return open_examples(sources, "bytes", Limits((64,) * (2 if task == "translate" else 1)))


@pytest.mark.parametrize(
    "task, name, columns, reason",
    [
        ("answer", "squad.json", "question=q", "is in SQuAD's format; leave it out"),
        ("answer", "squad.json", "text=t", "is in SQuAD's format; leave it out"),
        ("answer", "rows.jsonl", "text=t", ROWS),
        ("answer", "rows.jsonl", "id=id,span_end=to", ROWS),
        ("answer", "spans.jsonl", "spans=spans,question=q", SPANS),
        ("tag", "spans.jsonl", "spans=spans,words=text", SPANS),
        ("tag", "words.jsonl", "text=t", f"{LISTS}, or set spans=COLUMN"),
        ("tag", "words.jsonl", "words=words,context=tags", f"{LISTS}, or set spans=COLUMN"),
        ("tag", "a.conll", "span_label=1", "is a column file of words and tags; leave it out, or"),
        ("tag", "toy:tags", "words=0", "is generated; leave it out"),
        ("translate", "a.{en,de}", "source=0", "is a pair of aligned files; leave it out"),
    ],
)
def test_name_without_effect_is_refused(folder, task, name, columns, reason):
    unused = columns.split(",")[-1]
    where = name if name.startswith("toy:") else f"{folder}/{name}"
    message = f"data.columns: {unused} has no effect, since source {where} {reason}"
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(task, folder, name, name, columns)
    assert not (folder / "cache").exists()


@pytest.mark.parametrize(
    "task, train, val, columns",
    [
        ("answer", "squad.json", "rows.jsonl", "id=id,question=question"),
        ("answer", "spans.jsonl", "spans.jsonl", "text=text,spans=spans,span_end=end"),
        ("tag", "spans.jsonl", "spans.jsonl", "text=text,spans=spans,span_start=start"),
        ("tag", "words.jsonl", "words.jsonl", "words=words,tags=tags"),
        ("tag", "a.conll", "a.conll", "words=0,tags=1"),
    ],
)
def test_names_that_some_source_uses(folder, task, train, val, columns):
    assert len(prepare(task, folder, train, val, columns).splits["val"])


@pytest.mark.parametrize(
    "task, readable",
    [
        ("tag", "column files (CoNLL), jsonl or json files, or toy:tags"),
        ("classify", "a path or glob of jsonl, json, csv or tab-separated files"),
        ("answer", "json files (SQuAD, or a list of rows) or jsonl files"),
        ("translate", "use PATH.{source,target} for two aligned files, "),
        ("sft", "a path or glob of jsonl, json, csv or tab-separated files"),
    ],
)
def test_missing_file_lists_what_the_task_reads(task, readable, tmp_path):
    with pytest.raises(UserError, match=re.escape(readable)) as caught:
        RecordSource(task, str(tmp_path / "none")).paths()
    assert "matches no file" in str(caught.value) and "shakespeare" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.en", "a.csv"])
def test_one_of_two_aligned_files(folder, name):
    (folder / "a.csv").write_text("Ada left\nAda\n")
    message = "2 has one cell, but a pair needs two; to read two aligned files, name both as in --"
    with pytest.raises(UserError, match=f"{message}config.data.source='DIR/train.{{en,de}}'"):
        list(RecordSource("translate", str(folder / name)).records(Counter()))


@pytest.mark.parametrize("task, name", [("tag", "a.conll"), ("mlm", "a.en"), ("sft", "rows.jsonl")])
def test_keys_of_a_file_that_is_not_json(folder, task, name):
    message = rf"{name}#val: only \.json files have keys; remove #val"
    with pytest.raises(UserError, match=message):
        list(RecordSource(task, f"{folder / name}#val").records(Counter()))
