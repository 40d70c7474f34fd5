"""Values of `data.source`: files, folders, globs, datasets and the included texts."""

import hashlib
import json
import os
import sysconfig

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_jax.cli import die
from gpt2_jax.config import Config, replace
from gpt2_jax.config.check import check
from gpt2_jax.data import readers, sources
from gpt2_jax.data import text as texts
from gpt2_jax.data.separator import SeparatedSource
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


def write_arrow(path, kind):
    table = pa.table({"id": [0, 1, 2], "text": DOCS})
    with kind(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "a.jsonl": write_jsonl,
    "content.jsonl": lambda p: write_jsonl(p, "content"),
    "strings.json": lambda p: p.write_text(json.dumps(DOCS)),
    "a.parquet": lambda p: pq.write_table(pa.table({"id": [0, 1, 2], "text": DOCS}), p),
    "stream.arrow": lambda p: write_arrow(p, pa.ipc.new_stream),
    "file.arrow": lambda p: write_arrow(p, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", WRITERS)
def test_record_files(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert documents(tmp_path / name) == DOCS


def test_folder_and_glob_are_read_in_order(tmp_path):
    for i, doc in enumerate(DOCS):
        (tmp_path / f"{i}.txt").write_text(doc)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    assert documents(tmp_path) == documents(tmp_path / "*.txt") == DOCS


def test_hub_dataset_from_local_folder(tmp_path):
    """`datasets.load_dataset` treats a folder like a name on the hub."""
    write_jsonl(tmp_path / "train.jsonl")
    assert documents(f"hf:{tmp_path}@train") == DOCS
    again = open_source(f"hf:{tmp_path}@train")
    assert again.fingerprint() == open_source(f"hf:{tmp_path}@train").fingerprint()


def test_stdlib_source():
    source = open_source("stdlib")
    assert 8e6 < source.size < 16e6
    names = [str(path) for path in source.paths]
    assert any(name.endswith("dataclasses.py") for name in names)
    assert not any("/test/" in name or "site-packages" in name for name in names)


def test_unreadable_stdlib_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "dangling.py").symlink_to("nothing")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match=r"source stdlib.*dangling\.py"):
        open_source("stdlib")


def test_pieces_have_the_tokens_of_the_document(monkeypatch):
    monkeypatch.setattr(texts, "PIECE_CHARS", 50)
    text = make_text(2000).replace("stream", "  \n\n stream's 12345")
    pieces = [piece.text for piece in split_long(text)]
    assert len(pieces) > 30 and "".join(pieces) == text
    tokenizer = load_tokenizer("gpt2")
    whole = tokenizer.encode([text])[0].tolist()
    assert [i for ids in tokenizer.encode(pieces) for i in ids.tolist()] == whole
    # cuts elsewhere change the tokens
    cut = [text[i : i + 50] for i in range(0, len(text), 50)]
    assert [i for ids in tokenizer.encode(cut) for i in ids.tolist()] != whole


def test_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE_CHARS", 1000)
    text = make_text(5000).replace("norm", "nörm")
    (tmp_path / "a.txt").write_text(text)
    pieces = list(open_source(str(tmp_path / "a.txt")).pieces())
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_fingerprint_depends_on_the_format(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        write_jsonl(tmp_path / name)
    txt, jsonl = (open_source(str(tmp_path / n)).fingerprint() for n in ("a.txt", "a.jsonl"))
    assert txt != jsonl


def test_existing_path_is_not_a_glob(tmp_path):
    """As a glob, `[2024]` would match one digit."""
    folder = tmp_path / "dir [v2]"
    folder.mkdir()
    (folder / "corpus [2024].txt").write_text("one")
    (folder / "corpus 2.txt").write_text("two")
    assert documents(folder / "corpus [2024].txt") == ["one"]
    assert documents(folder) == documents(folder / "*.txt") == ["two", "one"]
    assert documents(folder / "corpus [0-9].txt") == ["two"]


def test_folder_summary_lists_read_and_skipped_files(tmp_path):
    for name in (
        *("b.txt", "sub/a.JSONL", "README.md", "table.xlsx", "c.txt.bz2"),
        *(".ipynb_checkpoints/b.txt", ".hidden.txt", "sub/.cache/x.txt"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    source = open_source(str(tmp_path))
    assert [path.name for path in source.paths] == ["b.txt", "c.txt.bz2", "a.JSONL"]
    for part in ("3 files", "1 .txt,", "1 .txt.bz2", "3 hidden", "README.md", "1 .xlsx"):
        assert part in source.summary
    assert open_source(str(tmp_path / "b.txt")).summary == ""
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    assert "1 linked folder" in open_source(str(tmp_path)).summary
    (tmp_path / "guide.md").write_text("a guide")  # now .md is the format of a document
    assert "README.md" in [path.name for path in open_source(str(tmp_path)).paths]


def test_unusual_file_names(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("one")  # not UTF-8
    (tmp_path / "two\nlines.txt").write_text("two")
    source = open_source(str(tmp_path))
    assert documents(tmp_path) == ["one", "two"] and source.fingerprint()
    (tmp_path / "x.txt").symlink_to("a" * 300)  # its target name is too long
    with pytest.raises(UserError, match=r"x\.txt cannot be read"):
        open_source(str(tmp_path))


def test_shakespeare_equals_nanogpts_file():
    text = "".join(piece.text for piece in open_source("shakespeare").pieces())
    assert len(text) == 1_115_394 and text.startswith("First Citizen:\nBefore we proceed")
    digest = (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # nanoGPT's input.txt
    )
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_damaged_shakespeare_is_rejected(monkeypatch):
    monkeypatch.setattr(sources.lzma, "decompress", lambda packed: b"First Murderer:")
    with pytest.raises(UserError, match="shakespeare is damaged"):
        documents("shakespeare")


def test_saved_dataset(tmp_path):
    rows = datasets.Dataset.from_dict({"id": [0, 1, 2], "text": DOCS})
    rows.save_to_disk(str(tmp_path / "one"))
    assert documents(tmp_path / "one") == DOCS
    before = open_source(str(tmp_path / "one")).fingerprint()
    assert before == open_source(str(tmp_path / "one")).fingerprint()
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "both"))
    assert documents(tmp_path / "both" / "train") == DOCS
    with pytest.raises(UserError, match=r"several splits.*both/train"):
        open_source(str(tmp_path / "both"))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("nowhere/*.txt", "matches no file"),
        ("n" * 5000, "matches no file"),
        ("zero\0byte", "matches no file"),
        ("/dev/null", "/dev/null is a device"),
        ("gs://bucket/a.txt", "is remote, which only data.source of a run can be"),
        ("hf:name", "names no split; write hf:name@train"),
    ],
)
def test_missing_sources(spec, line):
    with pytest.raises(UserError, match=line):
        open_source(spec)


def test_pipe_as_source_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is a device, a pipe"):
        open_source(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="matches no file"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "url", ["https://bob:SECRET@host/x", "s3://SECRET@host/a@b", "a://b:SEC@RET@h"]
)
def test_error_hides_the_password_of_a_url(url):
    with pytest.raises(UserError, match=r"://\*\*\*@") as caught:
        open_source(url)
    assert "SEC" not in str(caught.value) and "RET" not in str(caught.value)


@pytest.mark.parametrize("field", ["source", "val_source", "tokenizer"])
def test_url_with_password_in_the_config_is_rejected(field, capsys):
    config = replace(Config(), {f"data.{field}": "https://bob:SECRET@host/x"})
    with pytest.raises(UserError, match=rf"data\.{field}=https://\*\*\*@host/x"):
        check(config)
    with pytest.raises(SystemExit):
        die("no such file: https://bob:SECRET@host/x")
    assert "SECRET" not in capsys.readouterr().err


def test_file_without_read_permission_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(readers, "open_text", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt.*Permission denied"):
        documents(path)


# -- documents split at a separator


EOT = "<|endoftext|>"


@pytest.mark.parametrize("piece_chars", [1, 3, 7, 20, 1000])
def test_documents_are_split_at_a_separator(tmp_path, monkeypatch, piece_chars):
    monkeypatch.setattr(texts, "PIECE_CHARS", piece_chars)
    text = f"{EOT}\nA fox.\n  Two lines.\n\n{EOT}\n{EOT}a < b<|endo|>{EOT}\nlast\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(f"next file{EOT}")
    source = SeparatedSource(open_source(str(tmp_path)), EOT)
    got, held = [], ""
    for piece in source.pieces():
        held += piece.text
        if piece.last:
            got.append(held)
            held = ""
    expected = ["A fox.\n  Two lines.", "a < b<|endo|>", "last\n", "next file"]
    assert held == ""
    assert got == expected
    assert source.fingerprint() != source.source.fingerprint()
