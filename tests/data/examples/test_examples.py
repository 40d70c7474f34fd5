"""Records become columns, which are prepared once and opened memory-mapped."""

import json
from collections import Counter

import numpy as np
import pytest

from gpt2_jax.data.examples import prepare
from gpt2_jax.data.examples.chat import ChatTemplate
from gpt2_jax.data.examples.encode import Encoder, Limits
from gpt2_jax.data.examples.labels import Labels, labels_of
from gpt2_jax.data.examples.prepare import ExampleSources, open_examples
from gpt2_jax.data.examples.records import (
    Completion,
    Dialogue,
    LabeledText,
    Pair,
    Question,
    Span,
    SpanText,
    TaggedWords,
)
from gpt2_jax.data.examples.store import examples_in_memory
from gpt2_jax.data.json_tokenizer import JsonTokenizer
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir
from tests import tools
from tests.data import tokenizers

THE, RIVER, S, BENDS, UNK, SEP, CLS = 2, 3, 4, 5, 0, 1, 6


def bert():
    content = tokenizers.wordpiece()
    content["model"]["vocab"]["[CLS]"] = CLS
    content["added_tokens"].append({"id": CLS, "content": "[CLS]", **tokenizers.END})
    return PieceEncoder(JsonTokenizer("t.json", json.dumps(content).encode()))


def encode(record, task, labels=(), length=(99, 99), too_long="cut", pieces=None, template=None):
    counts = Counter()
    encoder = Encoder(task, pieces or bert(), Labels(labels), Limits(length, too_long), template)
    found = [
        {name: np.asarray(value).tolist() for name, value in columns.items()}
        for _, columns in encoder.encode([record], counts)
    ]
    return found[0] if len(found) == 1 else found, counts


def test_pairs_end_with_eos():
    pair = Pair("the river", ("rivers", "the"), "a line 1")
    columns, counts = encode(pair, "translate")
    assert columns == {"source": [THE, RIVER, SEP], "target": [RIVER, S, SEP]} and not counts


def test_long_pairs_are_cut_or_refused():
    pair = Pair("the river bends the", ("rivers the river bends",), "a line 1")
    columns, counts = encode(pair, "translate", length=(4, 4))
    assert columns == {"source": [THE, RIVER, BENDS, SEP], "target": [RIVER, S, THE, RIVER]}
    assert counts == {"cut": 2}
    message = "a line 1: the source has 5 tokens, but at most 4 fit; .*data.too_long=cut"
    with pytest.raises(UserError, match=message):
        encode(pair, "translate", length=(4, 4), too_long="refuse")


def test_labeled_texts_are_framed():
    one = LabeledText("the river", None, "b", "w")
    assert encode(one, "classify", ["a", "b"])[0] == {
        "inputs": [CLS, THE, RIVER, SEP],
        "types": [0, 0, 0, 0],
        "label": 1,
    }
    two = LabeledText("the river", "bends", "a", "w")
    assert encode(two, "classify", ["a", "b"])[0] == {
        "inputs": [CLS, THE, RIVER, SEP, BENDS, SEP],
        "types": [0, 0, 0, 0, 1, 1],
        "label": 0,
    }
    long = LabeledText("the river bends the", None, "a", "w")
    columns, counts = encode(long, "classify", ["a"], length=(4,))
    assert columns["inputs"] == [CLS, THE, RIVER, SEP] and counts == {"cut": 1}


def test_tags_are_at_the_first_token_of_each_word():
    tagged = TaggedWords(("the", "rivers", "bends"), ("O", "B-X", "I-X"), "w")
    columns, _ = encode(tagged, "tag", ["O", "B-X", "I-X"])
    assert columns == {
        "inputs": [CLS, THE, RIVER, S, BENDS, SEP],
        "types": [0] * 6,
        "targets": [0, 1, 2, 0, 3, 0],
        "words": [0, 1, 2, 2, 3, 0],
    }
    columns, counts = encode(tagged, "tag", ["O", "B-X", "I-X"], length=(5,))
    assert columns["targets"] == [0, 1, 2, 0, 0] and counts == {"cut": 1}


def test_tags_with_a_context():
    tagged = TaggedWords(("rivers",), ("B-X",), "w", context="the")
    columns, _ = encode(tagged, "tag", ["O", "B-X", "I-X"])
    assert columns["inputs"] == [CLS, THE, SEP, RIVER, S, SEP]
    assert columns["types"] == [0, 0, 0, 1, 1, 1]
    assert columns["targets"] == [0, 0, 0, 2, 0, 0] and columns["words"] == [0, 0, 0, 1, 1, 0]


def test_words_without_tokens_are_counted():
    content = tokenizers.wordpiece()
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "-"}, "content": ""}
    pieces = PieceEncoder(JsonTokenizer("t.json", json.dumps(content).encode()))
    tagged = TaggedWords(("the", "-", "river"), ("O", "B-X", "I-X"), "w")
    columns, counts = encode(tagged, "tag", ["O", "B-X", "I-X"], pieces=pieces)
    assert columns["targets"] == [1, 3, 0] and counts == {"words_without_pieces": 1}


def test_answers_are_positions_of_tokens():
    context = "the rivers bends"
    question = Question("q", "the", context, ((4, "rivers"),), "w")
    columns, counts = encode(question, "answer")
    assert columns == {
        "inputs": [CLS, THE, SEP, THE, RIVER, S, BENDS, SEP],
        "types": [0, 0, 0, 1, 1, 1, 1, 1],
        "char_starts": [0, 0, 0, 0, 4, 9, 11, 0],
        "char_ends": [0, 0, 0, 3, 9, 10, 16, 0],
        "start": 5,
        "end": 6,
        "window": 0,
    }
    assert not counts
    none = Question("q", "the", context, (), "w")
    columns, _ = encode(none, "answer")
    assert (columns["start"], columns["end"]) == (1, 1)
    last = Question("q", "the", context, ((11, "bends"),), "w")
    columns, counts = encode(last, "answer", length=(7,))
    assert (columns["start"], columns["end"]) == (0, 0)
    assert counts == {"cut": 1, "answers_cut": 1}


@pytest.mark.parametrize(("stride", "starts"), [(1, [0, 1, 2, 3]), (2, [0, 2, 4]), (9, [0, 4])])
def test_windows_of_a_long_context(stride, starts):
    """Four tokens fit; each window has the answer if it has all of it, and else no answer."""
    context = "the river bends the rivers bends"  # 7 tokens
    ids = [THE, RIVER, BENDS, THE, RIVER, S, BENDS]
    question = Question("q", "the", context, ((20, "rivers"),), "w")
    counts = Counter()
    encoder = Encoder("answer", bert(), Labels(()), Limits((8,), doc_stride=stride))
    found = [columns for _, columns in encoder.encode([question], counts)]
    assert [one["window"] for one in found] == starts
    assert counts == {"contexts_split": 1, "windows": len(starts)}
    for one, start in zip(found, starts, strict=True):
        assert one["inputs"].tolist() == [CLS, THE, SEP, *ids[start : start + 4], SEP]
        inside = start <= 4 and start + 4 >= 6
        expected = (4 + 4 - start, 4 + 5 - start) if inside else (1, 1)
        assert (one["start"], one["end"]) == expected
        assert one["char_ends"][3] == [3, 9, 15, 19, 25][start]
    refusing = Encoder("answer", bert(), Labels(()), Limits((8,), "refuse", stride))
    assert len(list(refusing.encode([question], counts))) == len(starts)
    whole = Question("q", "the", context, ((0, context),), "w")
    assert all(columns["start"] == 0 for _, columns in encoder.encode([whole], counts))
    assert counts["answers_cut"] == 1


def test_characters_of_an_answer_have_no_space_before_it():
    pieces = PieceEncoder(load_tokenizer("gpt2"))
    question = Question("q", "Who", "It was Ada", ((7, "Ada"),), "w")
    columns, _ = encode(question, "answer", pieces=pieces)
    first, last = columns["start"] - 1, columns["end"] - 1
    text = question.context[columns["char_starts"][first] : columns["char_ends"][last]]
    assert text == "Ada" and columns["char_starts"][first - 1] == 3


def test_labeled_spans_become_a_question_per_label():
    text = SpanText("the river", (Span("river", 4, 9),), "w")
    found, _ = encode(text, "answer", ["bends", "river"])
    assert [one["inputs"][1] for one in found] == [BENDS, RIVER]
    assert [(one["start"], one["end"]) for one in found] == [(1, 1), (5, 5)]
    with pytest.raises(UserError, match="w: the training data has no label 'river'"):
        encode(text, "answer", ["bends"])


def test_completions_alone_are_learned():
    pieces = PieceEncoder(load_tokenizer("bytes"))
    columns, _ = encode(Completion("ab", "cd", "w"), "sft", pieces=pieces)
    assert columns == {"inputs": [97, 98, 99, 100, 256], "learn": [0, 0, 1, 1, 1]}
    columns, counts = encode(Completion("abcd", "ef", "w"), "sft", pieces=pieces, length=(4,))
    assert columns == {"inputs": [97, 98, 99, 100, 101], "learn": [0, 0, 0, 0, 1]}
    _, counts = encode(Completion("abcdefg", "h", "w"), "sft", pieces=pieces, length=(4,))
    assert counts == {"cut": 1, "targets_cut": 1}


def test_the_assistant_is_learned():
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role[0] + m.content + '.' }}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}",
        {},
    )
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yé"}]
    pieces = PieceEncoder(load_tokenizer("bytes"))
    dialogue = Dialogue(messages, None, "w")
    columns, _ = encode(dialogue, "sft", pieces=pieces, template=template)
    assert bytes(columns["inputs"]).decode() == "ux.ayé."
    assert columns["learn"] == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(UserError, match=r"w has messages, but data\.tokenizer=bytes has no chat"):
        encode(dialogue, "sft", pieces=pieces)


def test_label_names():
    assert labels_of([LabeledText("", None, n, "w") for n in ("10", "2", "-1", "b")]) == (
        "-1",
        "b",
        "2",
        "10",
    )
    tagged = TaggedWords(("a", "b"), ("B-Y", "O"), "w")
    assert labels_of([tagged, TaggedWords(("a",), ("B-X",), "w")]) == (
        *("O", "B-X", "I-X", "B-Y", "I-Y"),
    )


def test_label_counts():
    columns = {"inputs": [1, 1], "types": [0, 0], "targets": [2, 0], "words": [1, 2]}
    examples = examples_in_memory("tag", [columns, {**columns, "targets": [2, 3]}])
    assert examples.label_counts(4).tolist() == [0, 2, 1, 0]
    columns = {"inputs": [1], "types": [0], "label": 1}
    assert examples_in_memory("classify", [columns] * 3).label_counts(3).tolist() == [0, 3, 0]


# -- Preparation


def write_rows(path, rows):
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return str(path)


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """Sources of a small classification task, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [(tools.make_text(40, seed=i).replace("\n", " "), i % 3) for i in range(60)]
    train = write_rows(tmp_path / "train.tsv", rows)
    val = write_rows(tmp_path / "val.tsv", rows[:7])
    return ExampleSources("classify", train, val, columns="text=0,label=1")


def test_prepared_once_and_the_same_again(classes):
    first = open_examples(classes, "wordpiece:90", Limits((32,)))
    files = sorted((cache_dir() / "examples").glob("*/*"))
    times = [path.stat().st_mtime_ns for path in files]
    again = open_examples(classes, "wordpiece:90", Limits((32,)))
    assert [path.stat().st_mtime_ns for path in files] == times
    assert first.content_hash() == again.content_hash() and first.labels.names == ("0", "1", "2")
    split = again.splits["train"]
    assert len(split) == 60 and len(again.splits["val"]) == 7
    for i in (0, 59):
        text = split.records[i].text
        (ids,) = again.tokenizer.encode([text])
        assert split.ragged["inputs"][i].tolist()[1:-1] == ids.tolist()[:30]
        assert split.scalars["label"][i] == i % 3
    assert split.lengths.tolist() == [[len(split.ragged["inputs"][i])] for i in range(60)]


def test_saved_tokenizer_finds_the_same_examples(classes, tmp_path):
    first = open_examples(classes, "bpe:300", Limits((32,)))
    (tmp_path / "tokenizer.json").write_bytes(first.tokenizer.content)
    again = open_examples(classes, str(tmp_path / "tokenizer.json"), Limits((32,)))
    assert again.splits["train"].folder == first.splits["train"].folder


def test_tokenizer_is_trained_on_training_records_alone(classes, tmp_path):
    first = open_examples(classes, "wordpiece:90", Limits((32,))).tokenizer.fingerprint
    write_rows(tmp_path / "val.tsv", [("zzz zzz zzz zzz", 1)] * 50)
    again = open_examples(classes, "wordpiece:90", Limits((32,)))
    assert again.tokenizer.fingerprint == first and len(again.splits["val"]) == 50


def test_other_options_are_other_examples(classes):
    folders = {
        open_examples(classes, "bytes", limits).splits["train"].folder
        for limits in (Limits((32,)), Limits((99,)), Limits((99,), "refuse"))
    }
    assert len(folders) == 3


def test_unseen_label_in_validation_is_an_error(classes, tmp_path):
    write_rows(tmp_path / "val.tsv", [("a", 1), ("b", 7)])
    with pytest.raises(UserError, match=r"val\.tsv line 2: the training data has no label '7'"):
        open_examples(classes, "bytes", Limits((32,)))
    assert not [p for p in (cache_dir() / "examples").glob("*/*") if p.name != ".lock"]


def test_labels_of_an_earlier_run(classes, tmp_path):
    only = ExampleSources("classify", None, None, classes.val, columns=classes.columns)
    data = open_examples(only, "bytes", Limits((32,)), labels=["2", "1", "0"])
    assert data.splits["test"].scalars["label"].tolist() == [2, 1, 0, 2, 1, 0, 2]
    with pytest.raises(UserError, match=r"label names are those of data\.source, which is not set"):
        open_examples(only, "bytes", Limits((32,)))


def test_new_label_in_the_training_data_of_an_earlier_run_is_a_change(classes):
    message = r"train\.tsv has labels that the run does not have \(2; it has 1, 0\).*--workdir"
    with pytest.raises(UserError, match=message):
        open_examples(classes, "bytes", Limits((32,)), labels=["1", "0"])


def test_run_that_continues_does_not_prepare_its_examples_again(classes, monkeypatch):
    first = open_examples(classes, "bytes", Limits((32,)))
    names = list(first.labels.names)
    monkeypatch.setattr(prepare, "_Preparation", None)
    again = open_examples(classes, "bytes", Limits((32,)), labels=names)
    assert again.splits["train"].folder == first.splits["train"].folder
    with pytest.raises(TypeError):  # other ids: the examples differ
        open_examples(classes, "bytes", Limits((32,)), labels=names[::-1])


def test_one_label_is_refused(classes, tmp_path):
    write_rows(tmp_path / "train.tsv", [("a", 1), ("b", 1)])
    with pytest.raises(UserError, match="has 1 label; classification needs two"):
        open_examples(classes, "bytes", Limits((32,)))


def test_held_out_records(tmp_path, classes):
    rows = [(f"text {i // 2}", i % 2) for i in range(400)]
    write_rows(tmp_path / "train.tsv", rows)
    held_out = ExampleSources("classify", classes.train, val_fraction=0.2, columns=classes.columns)
    data = open_examples(held_out, "bytes", Limits((32,)))
    texts = [{r.text for r in data.splits[name].records} for name in ("train", "val")]
    assert not texts[0] & texts[1] and len(texts[0] | texts[1]) == 200
    assert 20 <= len(texts[1]) <= 60 and len(data.splits["val"]) == 2 * len(texts[1])


def test_all_records_held_out(tmp_path, classes):
    write_rows(tmp_path / "train.tsv", [("same text", 0), ("same text", 1)])
    held_out = ExampleSources("classify", classes.train, val_fraction=1.0, columns=classes.columns)
    message = r"all records of .*train\.tsv are held out .* data\.val_fraction=1, .* set data\.val"
    with pytest.raises(UserError, match=message):
        open_examples(held_out, "wordpiece:90", Limits((32,)))


def test_no_records_are_reported_before_a_tokenizer_is_trained(tmp_path, classes):
    (tmp_path / "train.tsv").write_text("\n")
    with pytest.raises(UserError, match=r"source .*train\.tsv has no records; add some"):
        open_examples(classes, "wordpiece:90", Limits((32,)))


@pytest.mark.parametrize(
    "spec, sizes",
    [
        ("toy:tags#train", {"train": 5000, "val": 250, "test": 250}),
        ("toy:tags#val", {"train": 250, "val": 0}),
        ("toy:tags#test", {"train": 250, "val": 0}),
    ],
)
def test_split_of_a_generated_source_as_training_data(classes, spec, sizes):
    data = open_examples(ExampleSources("tag", spec, val_fraction=0.1), "bytes", Limits((64,)))
    found = {name: len(split) for name, split in data.splits.items()}
    if not sizes["val"]:  # held out
        texts = [{r.group for r in data.splits[name].records} for name in ("train", "val")]
        assert not texts[0] & texts[1] and 10 <= found["val"] <= 50
        found = {"train": found["train"] + found["val"], "val": 0}
    assert found == sizes


def test_repairs_are_counted_in_the_split_of_their_record(tmp_path, classes):
    (tmp_path / "a.conll").write_text("".join(f"w{i}\tI-X\n\n" for i in range(100)))
    sources = ExampleSources("tag", str(tmp_path / "a.conll"), val_fraction=0.3)
    data = open_examples(sources, "bytes", Limits((32,)))
    counts = {name: split.counts["tags_repaired"] for name, split in data.splits.items()}
    assert counts == {name: len(split) for name, split in data.splits.items()}
    assert sum(counts.values()) == 100 and min(counts.values()) > 10


def test_empty_split_is_an_error(tmp_path, classes):
    (tmp_path / "val.tsv").write_text("\n")
    with pytest.raises(UserError, match=r"source .*val\.tsv has no records"):
        open_examples(classes, "bytes", Limits((32,)))


@pytest.mark.parametrize("name", ["train.inputs_000000.bin", "train.inputs.offsets.npy"])
def test_damaged_column_is_named(classes, name):
    folder = open_examples(classes, "bytes", Limits((32,))).splits["train"].folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-2])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        open_examples(classes, "bytes", Limits((32,)))


def test_changed_manifest_is_refused(classes):
    folder = open_examples(classes, "bytes", Limits((32,))).splits["train"].folder
    path = folder / "examples.json"
    path.write_text(path.read_text().replace('"classify"', '"tag"'))
    with pytest.raises(UserError, match=r"examples\.json is not a manifest of examples \(it was"):
        open_examples(classes, "bytes", Limits((32,)))


@pytest.mark.parametrize(
    "limits, message",
    [
        (Limits((32,), "drop"), r"data\.too_long=drop must be cut or refuse"),
        (Limits((2,)), "a maximum length of 2 tokens is too short"),
    ],
)
def test_bad_limits_are_one_line_errors(classes, limits, message):
    with pytest.raises(UserError, match=message):
        open_examples(classes, "bytes", limits)
