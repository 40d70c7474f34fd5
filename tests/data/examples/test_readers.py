"""Readers return the records of each format, and name file and line of what is not valid."""

import gzip
import json
from collections import Counter

import pytest

from gpt2_jax.data.examples.records import record_from_json, record_to_json
from gpt2_jax.data.examples.sources import RecordSource
from gpt2_jax.data.examples.spans import span_questions
from gpt2_jax.errors import UserError
from tests.tools import SHARED

TASKS = SHARED / "tasks"
needs_tasks = pytest.mark.skipif(not TASKS.exists(), reason="needs ../shared/data/tasks")
SLOTS = (
    "text=userInput.text,spans=labels,span_label=slot,span_start=valueSpan.startIndex,"
    "span_end=valueSpan.endIndex,context=context.requestedSlots"
)


def read(task, spec, columns="", scheme="iob2"):
    counts = Counter()
    return list(RecordSource(task, str(spec), columns, scheme).records(counts)), counts


def error(task, spec, columns="", scheme="iob2"):
    with pytest.raises(UserError) as found:
        read(task, spec, columns, scheme)
    assert "\n" not in str(found.value)
    return str(found.value)


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_rows(path, *rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


# -- Aligned files


def test_aligned_files_compressed_or_not(tmp_path):
    write(tmp_path / "a.en", "one\u2028two \r\nthree")
    write(tmp_path / "a.de.gz", gzip.compress(b"eins zwei\ndrei\n"))
    write(tmp_path / "a.de", "eins zwei\ndrei\n")
    for spec in ("a.{en,de}", "{a.en,a.de.gz}"):
        pairs, _ = read("translate", tmp_path / spec)
        assert [(p.source, p.references) for p in pairs] == [
            ("one\u2028two", ("eins zwei",)),
            ("three", ("drei",)),
        ]


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("a\nb\nc\n", "x\ny\n", "a.en line 3 has no counterpart: {0}/a.de has 2 lines"),
        ("a\n", "x\ny\n", "a.de line 2 has no counterpart: {0}/a.en has 1 lines"),
        ("a\nb\n", "x\n \n", "a.de line 2: the target is empty"),
        ("a\n\n", "x\ny\n", "a.en line 2: the source is empty"),
        (b"a\n\xff\n", "x\ny\n", "a.en line 2 is not UTF-8 text"),
    ],
)
def test_bad_aligned_files_are_one_line_errors(tmp_path, source, target, message):
    write(tmp_path / "a.en", source)
    write(tmp_path / "a.de", target)
    found = error("translate", tmp_path / "a.{en,de}")
    assert f"{tmp_path}/{message.format(tmp_path)}" in found


def test_missing_side_is_named(tmp_path):
    write(tmp_path / "a.en", "a\n")
    assert "a.de does not exist" in error("translate", tmp_path / "a.{en,de}")


# -- Rows


def test_pairs_with_lists_of_sentences_and_several_targets(tmp_path):
    row = {"abstract": ["One.", "Two."], "short": ["first", "second"]}
    path = write_rows(tmp_path / "a.jsonl", row)
    (pair,), _ = read("translate", path, "source=abstract,target=short")
    assert pair.source == "One. Two." and pair.references == ("first", "second")


@pytest.mark.parametrize(
    "name, text, columns",
    [
        ("a.tsv", 'good "film\t1\nbad\t0\n', "text=0,label=-1"),
        ("a.txt", 'good "film\t1\nbad\t0\n', "text=0,label=1"),
        ("a.tsv", 'n\tlabel\ttext\n0\t1\tgood "film\n1\t0\tbad\n', ""),
        ("a.csv", 'label,text\n1,"good ""film"\n0,bad\n', ""),
        ("a.jsonl", '{"text": "good \\"film", "label": 1}\n{"text": "bad", "label": 0}\n', ""),
        ("a.json", '[{"t": "good \\"film", "y": "1"},\n{"t": "bad", "y": "0"}]', "text=t,label=y"),
        ("a.json", '[["good \\"film", "1"], ["bad", "0"]]', "text=0,label=1"),
    ],
)
def test_labeled_texts_in_each_format(tmp_path, name, text, columns):
    records, _ = read("classify", write(tmp_path / name, text), columns)
    assert [(r.text, r.label) for r in records] == [('good "film', "1"), ("bad", "0")]


def test_lists_of_a_json_file_by_key_with_lines(tmp_path):
    text = '{"val": [],\n "train": [["a", "x"],\n\n ["b", "y"]],\n "more": [["c", "z"]]}'
    path = write(tmp_path / "a.json", text)
    records, _ = read("classify", f"{path}#train+more", "text=0,label=1")
    assert [(r.text, r.label) for r in records] == [("a", "x"), ("b", "y"), ("c", "z")]
    assert [r.where for r in records] == [f"{path} line {n}" for n in (2, 4, 5)]
    assert "no list named test; its fields are val, train, more" in error(
        "classify", f"{path}#test"
    )
    assert "name the list" in error("classify", path)


@pytest.mark.parametrize(
    "name, text, columns, message",
    [
        ("a.tsv", "a\t1\nb\n", "text=0,label=1", "a.tsv line 2 has no column 1; it has 1 cell"),
        ("a.tsv", "text\tlabel\na\t1\t2\n", "", "a.tsv line 2 has 3 cells, but the header has 2"),
        ("a.tsv", "a\t\n", "text=0,label=1", "a.tsv line 1: the label is empty"),
        ("a.tsv", " \t1\n", "text=0,label=1", "a.tsv line 1: the text is empty"),
        ("a.jsonl", '{"text": "a"}\n', "", "a.jsonl line 1 has no column label; its columns are"),
        ("a.jsonl", '{"text": {}, "label": 1}\n', "", "line 1 column text is not text but dict"),
        ("a.jsonl", "{}\n{]\n", "", "a.jsonl line 1 has no column label"),
        ("a.json", '[["a", "b"],\n["c" "d"]]', "text=0,label=1", "a.json line 2 is not JSON"),
        ("a.tsv", "a\t1\n", "txt=0", "data.columns: unknown name txt; did you mean 'text'?"),
        ("a.tsv", "a\t1\n", "text", "data.columns: 'text' is not NAME=COLUMN"),
        ("a.tsv", "a\t1\n", "text=0,text=1", "data.columns sets text twice"),
    ],
)
def test_bad_rows_are_one_line_errors(tmp_path, name, text, columns, message):
    assert message in error("classify", write(tmp_path / name, text), columns)


# -- Column files

IOB1 = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC
call NN I-NP O

# NN B-NP O
Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
London NNP I-NP I-LOC
Paris NNP I-NP B-LOC
Rome NNP I-NP I-LOC
"""


def test_iob1_of_conll2003_becomes_iob2(tmp_path):
    records, counts = read("tag", write(tmp_path / "eng.train", IOB1), scheme="iob1")
    assert [r.words for r in records] == [
        ("EU", "rejects", "German", "call"),
        ("#", "Peter", "Blackburn", "London", "Paris", "Rome"),
    ]
    assert [r.tags for r in records] == [
        ("B-ORG", "O", "B-MISC", "O"),
        ("O", "B-PER", "I-PER", "B-LOC", "B-LOC", "I-LOC"),
    ]
    assert counts == {"document_starts": 1}


def test_iob2_repairs_and_counts_an_inside_tag_after_another_type(tmp_path):
    text = "a\tI-X\nb\tI-X\nc\tI-Y\nd\tB-Y\n\t\ne\tO\nf\tI-Y\n"
    records, counts = read("tag", write(tmp_path / "a.conll", text))
    assert [r.tags for r in records] == [("B-X", "I-X", "B-Y", "B-Y"), ("O", "B-Y")]
    assert counts == {"tags_repaired": 3}


def test_only_empty_lines_end_sentences_and_only_lf_ends_lines(tmp_path):
    text = "# text = a\n1\ta\tO\n2\t\u00a0\tB-X\n3\tb\u2028c\x85\tO\n\n# x\n1\t#d\tO\n"
    records, _ = read("tag", write(tmp_path / "a.iob2", text), "words=1,tags=2")
    assert [r.words for r in records] == [("a", "\u00a0", "b\u2028c\x85"), ("#d",)]
    assert records[1].where == f"{tmp_path}/a.iob2 line 7"


@pytest.mark.parametrize(
    "text, columns, message",
    [
        ("a\tO\nb\tX\n", "", "a.conll line 2: 'X' is not an IOB tag (O, B-TYPE or I-TYPE)"),
        ("a\tB-\n", "", "line 1: 'B-' is not an IOB tag"),
        ("a\tO\nb\n", "words=0,tags=1", "a.conll line 2 has no column 1"),
        ("\tO\n", "", "line 1: the word is empty"),
        ("a\tO\n", "words=word", "words=word must be the number of a column"),
    ],
)
def test_bad_column_files_are_one_line_errors(tmp_path, text, columns, message):
    assert message in error("tag", write(tmp_path / "a.conll", text), columns)


def test_unknown_scheme_is_named(tmp_path):
    path = write(tmp_path / "a.conll", "a\tO\n")
    assert "data.tag_scheme=iob must be one of iob1, iob2" in error("tag", path, scheme="iob")


def test_tagged_rows(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", {"words": ["a", "b"], "tags": ["I-X", "O"]})
    assert read("tag", path)[0][0].tags == ("B-X", "O")
    path = write_rows(tmp_path / "b.jsonl", {"words": ["a"], "tags": []})
    assert "b.jsonl line 1 has 1 word but 0 tags" in error("tag", path)


# -- Spans

TURN = {
    "userInput": {"text": "table for 2-3 at 7pm"},
    "labels": [
        {"slot": "time", "valueSpan": {"startIndex": 17, "endIndex": 20}},
        {"slot": "people_n", "valueSpan": {"startIndex": 10, "endIndex": 12}},
        {"slot": "who", "valueSpan": {"endIndex": 5}},
        {"slot": "again", "valueSpan": {"startIndex": 9, "endIndex": 11}},
    ],
    "context": {"requestedSlots": ["time", "day"]},
}


def test_labeled_spans_as_questions_and_as_tags(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", TURN, {"userInput": {"text": "hi"}})
    (first, second), _ = read("answer", path, SLOTS)
    assert [(s.label, s.start, s.end) for s in first.spans] == [
        ("who", 0, 5),
        ("again", 9, 11),
        ("people_n", 10, 12),
        ("time", 17, 20),
    ]
    assert second.spans == () and second.context == ""
    asked = list(span_questions(first, ["people_n", "day"]))
    assert [(q.question, q.answers) for q in asked] == [
        ("people n time day", ((10, "2-"),)),
        ("day time day", ()),
    ]
    (tagged, _), counts = read("tag", path, SLOTS)
    assert list(zip(tagged.words, tagged.tags, strict=True)) == [
        ("table", "B-who"),
        ("for", "O"),
        ("2", "B-again"),
        ("-", "O"),
        ("3", "O"),
        ("at", "O"),
        ("7pm", "B-time"),
    ]
    assert tagged.context == "time day" and tagged.starts[2] == 10 and tagged.ends[2] == 11
    assert counts == {"spans_overlapping": 1}


def test_span_within_a_word_is_widened_and_counted(tmp_path):
    path = write_rows(
        tmp_path / "a.jsonl", {"text": "at 7pm", "s": [{"label": "t", "start": 3, "end": 4}]}
    )
    (tagged,), counts = read("tag", path, "spans=s")
    assert tagged.tags == ("O", "B-t") and counts["spans_widened"] == 1


@pytest.mark.parametrize("start, end", [(0, 21), (5, 5), (-1, 2)])
def test_span_outside_its_text_is_an_error(tmp_path, start, end):
    turn = {"text": "table for 2-3 at 7pm", "s": [{"label": "x", "start": start, "end": end}]}
    path = write_rows(tmp_path / "a.jsonl", {"text": "ok"}, turn)
    message = f"a.jsonl line 2: the span {start}:{end} (x) is outside its text of 20 characters"
    assert message in error("answer", path, "spans=s")


def squad(*answers):
    qas = [{"id": "q7", "question": "Who?", "answers": list(answers)}]
    paragraphs = [{"context": "Ada wrote it.", "qas": qas}]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def test_squad(tmp_path):
    answers = [{"answer_start": 0, "text": "Ada"}, {"answer_start": 0, "text": "Ada wrote"}]
    (found,), _ = read("answer", write(tmp_path / "a.json", squad(*answers)))
    assert found.answers == ((0, "Ada"), (0, "Ada wrote")) and found.id == "q7"
    (found,), _ = read("answer", write(tmp_path / "a.json", squad()))
    assert found.answers == ()


@pytest.mark.parametrize(
    "answer, message",
    [
        ({"answer_start": 11, "text": "it."}, "q7: the answer 'it.' at answer_start=11 is outside"),
        ({"answer_start": 1, "text": "Ada"}, "the answer is 'Ada', but the context has 'da "),
        ({"answer_start": 1, "text": ""}, "question q7: an answer is empty"),
        ({"text": "Ada"}, "question q7 has no column answer_start"),
    ],
)
def test_bad_answers_are_one_line_errors(tmp_path, answer, message):
    found = error("answer", write(tmp_path / "a.json", squad(answer)))
    assert message in found and f"{tmp_path}/a.json line 1" in found


def test_questions_in_rows(tmp_path):
    row = {
        "id": 3,
        "q": "Who?",
        "context": "Ada wrote it.",
        "answers": {"text": ["it"], "answer_start": [10]},
    }
    (found,), _ = read("answer", write_rows(tmp_path / "a.jsonl", row), "question=q")
    assert (found.id, found.question, found.answers) == ("3", "Who?", ((10, "it"),))


# -- Prompts and conversations


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a", "completion": " "}, "line 1: the completion is empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 1 has no message of the assist"),
        ({"messages": [{"content": "a"}]}, "line 1: a message has no role"),
        ({"messages": [{"role": "user"}]}, "line 1: a message of the user has no content"),
        ({"text": "a"}, "line 1 has no column completion"),
    ],
)
def test_bad_conversations_are_one_line_errors(tmp_path, row, message):
    assert message in error("sft", write_rows(tmp_path / "a.jsonl", row))


# -- All


def test_records_survive_json(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", TURN)
    for task in ("answer", "tag"):
        (record, *_), _ = read(task, path, SLOTS)
        assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record
    (found,), _ = read(
        "answer", write(tmp_path / "a.json", squad({"answer_start": 0, "text": "Ada"}))
    )
    assert record_from_json(json.loads(json.dumps(record_to_json(found)))) == found


@pytest.mark.parametrize("spec", ["hf:squad@train", "https://u:p@host/a.jsonl", "mixture:a=1,b=1"])
def test_sources_that_are_not_local_are_refused(spec):
    found = error("classify", spec)
    assert "read from local files" in found and "u:p" not in found


def test_source_without_files_is_named(tmp_path):
    assert "matches no file" in error("classify", tmp_path / "none.tsv")


def test_fingerprint_changes_with_content_and_columns(tmp_path):
    path = write(tmp_path / "a.tsv", "a\t1\n")
    make = lambda columns: RecordSource("classify", str(path), columns).fingerprint()
    before = make("text=0,label=1")
    assert before == make("label=1,text=0") != make("text=1,label=0")
    write(path, "b\t1\n")
    assert make("text=0,label=1") != before


@needs_tasks
@pytest.mark.parametrize(
    "task, spec, columns, n, n_targets",
    [
        ("translate", "multi30k_en_de/train.{en,de}.gz", "", 29_000, 29_000),
        ("translate", "multi30k_en_de/val.{en,de}.gz", "", 1014, 1014),
        ("translate", "multi30k_en_de/test_2016_flickr.{en,de}.gz", "", 1000, 1000),
        ("translate", "multi30k_en_de/test_2017_mscoco.{en,de}.gz", "", 461, 461),
        ("tag", "wnut17/wnut17train.conll", "", 3394, 1975),
        ("tag", "wnut17/emerging.dev.conll", "", 1009, 836),
        ("tag", "wnut17/emerging.test.annotated", "", 1287, 1079),
        ("tag", "uner_en_ewt/en_ewt-ud-dev.iob2", "words=1,tags=2", 2001, 966),
        ("tag", "uner_en_ewt/en_ewt-ud-test.iob2", "words=1,tags=2", 2077, 1088),
        ("classify", "clinc150/data_full.json#train+oos_train", "text=0,label=1", 15_100, 151),
        ("classify", "clinc150/data_full.json#val", "text=0,label=1", 3000, 150),
        ("classify", "clinc150/data_full.json#test+oos_test", "text=0,label=1", 5500, 151),
        ("classify", "uci_sentiment/*_labelled.txt", "text=0,label=1", 3000, 2),
        ("classify", "poem_sentiment/train.tsv", "text=1,label=2", 892, 4),
        ("answer", "restaurant8k/train_0.json", SLOTS, 8198, 7635),
        ("answer", "restaurant8k/test.json", SLOTS, 3731, 3477),
        ("answer", "xquad_en/xquad.en.json", "", 1190, 1190),
        ("translate", "scitldr_a/train.jsonl", "", 1992, 1992),
        ("translate", "scitldr_a/test.jsonl", "", 618, 1967),
    ],
)
def test_counts_of_published_sets(task, spec, columns, n, n_targets):
    records, counts = read(task, TASKS / spec, columns)
    targets = {
        "translate": lambda r: len(r.references),
        "tag": lambda r: sum(tag[0] == "B" for tag in r.tags),
        "answer": lambda r: len(r.spans if columns else r.answers),
    }
    if task == "classify":
        assert len({r.label for r in records}) == n_targets
    else:
        assert sum(map(targets[task], records)) == n_targets
    assert len(records) == n and not counts


@pytest.mark.parametrize("name", ["shakespeare", "stdlib"])
def test_text_for_language_modeling_is_not_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"data\.source={name} is text .* task\.name=classify"):
        RecordSource("classify", name).paths()
    (tmp_path / name).write_text("text\tlabel\na\tb\n")
    assert RecordSource("classify", name).paths()
