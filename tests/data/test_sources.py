"""Text out of every kind of file, and one line for what is not text."""

import csv
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gpt2_jax.data import readers
from gpt2_jax.data import text as texts
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.text import split_long
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from tests.tools import make_text

DOCS = ["first document", "zweites Dökument\nwith two lines", "third, the last"]


def documents(spec):
    out, open_ = [], ""
    for piece in open_source(str(spec)).pieces():
        open_ += piece.text
        if piece.last:
            out.append(open_)
            open_ = ""
    assert open_ == ""
    return out


def write_jsonl(path, field="text"):
    path.write_text("".join(json.dumps({"id": i, field: d}) + "\n" for i, d in enumerate(DOCS)))


def write_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows({"id": i, "text": d} for i, d in enumerate(DOCS))


def write_arrow(path, kind):
    table = pa.table({"id": [0, 1, 2], "text": DOCS})
    with kind(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "a.jsonl": write_jsonl,
    "content.jsonl": lambda p: write_jsonl(p, "content"),
    "a.json": lambda p: p.write_text(json.dumps([{"text": d} for d in DOCS])),
    "strings.json": lambda p: p.write_text(json.dumps(DOCS)),
    "wrapped.json": lambda p: p.write_text(json.dumps({"data": [{"text": d} for d in DOCS]})),
    "a.csv": write_csv,
    "a.parquet": lambda p: pq.write_table(pa.table({"id": [0, 1, 2], "text": DOCS}), p),
    "stream.arrow": lambda p: write_arrow(p, pa.ipc.new_stream),
    "file.arrow": lambda p: write_arrow(p, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", WRITERS)
def test_records(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert documents(tmp_path / name) == DOCS


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_compressed(tmp_path, name, suffix):
    plain = tmp_path / name
    if name == "a.txt":
        plain.write_text(DOCS[1])
    else:
        write_jsonl(plain)
    pack = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }[suffix]
    (tmp_path / (name + suffix)).write_bytes(pack(plain.read_bytes()))
    assert documents(tmp_path / (name + suffix)) == documents(plain)


def test_a_folder_and_a_glob_are_their_files_in_order(tmp_path):
    for i, doc in enumerate(DOCS):
        (tmp_path / f"{i}.txt").write_text(doc)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    assert documents(tmp_path) == documents(tmp_path / "*.txt") == DOCS


def test_a_hub_dataset_from_a_local_folder(tmp_path):
    """`datasets.load_dataset` reads a folder as it reads a name on the hub."""
    write_jsonl(tmp_path / "train.jsonl")
    assert documents(f"hf:{tmp_path}@train") == DOCS
    again = open_source(f"hf:{tmp_path}@train")
    assert again.fingerprint() == open_source(f"hf:{tmp_path}@train").fingerprint()


def test_the_standard_library_is_10_to_14_megabytes_of_text():
    source = open_source("stdlib")
    assert 8e6 < source.size < 16e6
    names = [str(path) for path in source.paths]
    assert any(name.endswith("dataclasses.py") for name in names)
    assert not any("/test/" in name or "site-packages" in name for name in names)


def test_a_document_in_pieces_has_the_tokens_of_the_whole(monkeypatch):
    monkeypatch.setattr(texts, "PIECE_CHARS", 50)
    text = make_text(2000).replace("stream", "  \n\n stream's 12345")
    pieces = [piece.text for piece in split_long(text)]
    assert len(pieces) > 30 and "".join(pieces) == text
    tokenizer = load_tokenizer("gpt2")
    whole = tokenizer.encode([text])[0].tolist()
    assert [i for ids in tokenizer.encode(pieces) for i in ids.tolist()] == whole
    # and a cut elsewhere would show
    cut = [text[i : i + 50] for i in range(0, len(text), 50)]
    assert [i for ids in tokenizer.encode(cut) for i in ids.tolist()] != whole


def test_a_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE_CHARS", 1000)
    text = make_text(5000).replace("norm", "nörm")
    (tmp_path / "a.txt").write_text(text)
    pieces = list(open_source(str(tmp_path / "a.txt")).pieces())
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"abc\0def", "is binary, not text"),
        ("a.txt", b"abc \xff\xfe def", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", b'{"a": "x", "b": "y"}\n', "no column named text or content or body; its"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1 \('text'\) has no text, but int"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogates not allowed"),
        ("a.jsonl", b'{"text": "\xff"}\n', "cannot read|is not JSON"),
        ("a.json", b"[", "is not JSON"),
        ("a.json", b"3", "entry 1 has no text, but int"),
        ("a.parquet", b"no", "cannot read .*a.parquet"),
        ("a.arrow", b"no arrow here", "cannot read .*a.arrow"),
        ("a.csv", b"text\n\xff\n", "cannot read .*a.csv"),
        ("a.gz", b"not packed", "cannot read"),
        ("a.txt.xz", b"not packed", "cannot read"),
    ],
)
def test_what_is_not_text_is_one_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=line):
        documents(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_truncated_file_is_not_read_as_a_whole_one(tmp_path, suffix):
    text = make_text(400_000).encode()
    pack = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }[suffix]
    packed = pack(text)
    (tmp_path / f"a.txt{suffix}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="cannot read"):
        documents(tmp_path / f"a.txt{suffix}")


def test_a_csv_field_may_hold_any_line_break(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"one\ntwo\u2028three\x0cfour"\n2,five\n')
    assert documents(tmp_path / "a.csv") == ["one\ntwo\u2028three\x0cfour", "five"]


def test_empty_rows_are_no_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n{"text": "x"}\n')
    assert documents(tmp_path / "a.jsonl") == ["x"]


def test_a_json_string_is_one_document(tmp_path):
    (tmp_path / "a.json").write_text('"whole text"')
    assert documents(tmp_path / "a.json") == ["whole text"]


def test_the_same_bytes_under_another_kind_are_another_corpus(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        write_jsonl(tmp_path / name)
    txt, jsonl = (open_source(str(tmp_path / n)).fingerprint() for n in ("a.txt", "a.jsonl"))
    assert txt != jsonl


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("nowhere/*.txt", "matches no file"),
        ("gs://bucket/a.txt", "is a remote path"),
        ("hf:name", "names no split; write hf:name@train"),
    ],
)
def test_a_source_that_is_not_there(spec, line):
    with pytest.raises(UserError, match=line):
        open_source(spec)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(readers, "open_text", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt.*Permission denied"):
        documents(path)
