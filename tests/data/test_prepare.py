"""Preparation: the split, the shards, and being killed on the way."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from gpt2_jax.data import preparation, sources
from gpt2_jax.data.corpus import open_corpus, open_plan
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.shards import MANIFEST, Manifest, Tokens, header, open_prepared, open_shard
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from tests import tools
from tests.tools import make_text, one_line_error, run

BYTES = load_tokenizer("bytes")


def write_documents(path, n, length=200):
    docs = [make_text(length, seed=i) for i in range(n)]
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in docs))
    return docs


def ids_of(tokens: Tokens) -> list[int]:
    return tokens.window(0, len(tokens)).tolist()


def split_documents(tokens: Tokens) -> list[str]:
    """The text between end-of-text ids."""
    out: list[list[int]] = [[]]
    for i in ids_of(tokens):
        out.append([]) if i == 256 else out[-1].append(i)
    return [bytes(ids).decode() for ids in out]


def test_documents_are_split_whole_once_and_in_order(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 400)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    manifest = prepare(plan, BYTES, tmp_path / "out")
    corpus = open_prepared(tmp_path / "out")
    train, val = split_documents(corpus.train), split_documents(corpus.val)
    assert sorted(train + val) == sorted(docs)
    assert [d for d in docs if d in set(train)] == train
    assert 20 <= len(val) <= 60
    counts = manifest.splits
    assert (counts["train"].documents, counts["val"].documents) == (len(train), len(val))
    assert counts["val"].bytes == sum(len(d.encode()) for d in val)
    assert counts["val"].tokens == counts["val"].bytes + len(val) - 1
    assert manifest.tokenizer["name"] == "bytes" and manifest.source.endswith("a.jsonl")


def test_the_split_of_a_document_does_not_depend_on_the_others(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 400)
    (tmp_path / "b.jsonl").write_text("".join((tmp_path / "a.jsonl").open().readlines()[:300]))
    val = []
    for name in ("a", "b"):
        prepare(open_plan(str(tmp_path / f"{name}.jsonl"), None, 0.1), BYTES, tmp_path / name)
        val.append(set(split_documents(open_prepared(tmp_path / name).val)))
    assert val[1] == val[0] & set(docs[:300])


def test_one_document_is_split_at_its_last_tenth_of_characters(tmp_path):
    text = make_text(1000).replace("norm", "nörm")
    (tmp_path / "a.txt").write_text(text)
    prepare(open_plan(str(tmp_path / "a.txt"), None, 0.1), BYTES, tmp_path / "out")
    corpus = open_prepared(tmp_path / "out")
    assert split_documents(corpus.train) == [text[:900]]
    assert split_documents(corpus.val) == [text[900:]]


def test_a_long_single_document_is_split_at_the_same_place(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_CHARS", 64)
    text = make_text(1000)
    (tmp_path / "a.txt").write_text(text)
    prepare(open_plan(str(tmp_path / "a.txt"), None, 0.1), BYTES, tmp_path / "out")
    corpus = open_prepared(tmp_path / "out")
    assert split_documents(corpus.train) == [text[:900]]
    assert split_documents(corpus.val) == [text[900:]]


@pytest.mark.parametrize("n", [2, 3, 15])
def test_few_documents_leave_neither_side_empty(tmp_path, n):
    write_documents(tmp_path / "a.jsonl", n)
    manifest = prepare(open_plan(str(tmp_path / "a.jsonl"), None, 0.1), BYTES, tmp_path / "out")
    assert manifest.splits["val"].documents == max(1, round(n / 10))
    assert manifest.splits["train"].documents == n - max(1, round(n / 10))


def test_a_validation_source_of_its_own(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 5)
    (tmp_path / "val.txt").write_text("held out")
    corpus, _ = open_corpus(str(tmp_path / "a.jsonl"), str(tmp_path / "val.txt"), "bytes", 0.1)
    assert split_documents(corpus.train) == docs
    assert split_documents(corpus.val) == ["held out"]


def test_shards_are_cut_at_their_size_and_read_as_one(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 100)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    prepare(plan, BYTES, tmp_path / "small", shard_tokens=1000)
    prepare(plan, BYTES, tmp_path / "large")
    small, large = open_prepared(tmp_path / "small"), open_prepared(tmp_path / "large")
    assert len(small.manifest.splits["train"].shards) > 10
    assert all(s.tokens == 1000 for s in small.manifest.splits["train"].shards[:-1])
    assert ids_of(small.train) == ids_of(large.train) and len(docs) == 100


def test_processes_write_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(preparation, "BATCH_CHARS", 3000)
    write_documents(tmp_path / "a.jsonl", 100)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    sums = []
    for n in (1, 2):
        manifest = prepare(plan, BYTES, tmp_path / str(n), processes=n)
        sums.append([s.sha256 for split in manifest.splits.values() for s in split.shards])
    assert sums[0] == sums[1]


@pytest.mark.parametrize("stop_after", [0, 1, 3, 8])
def test_a_preparation_that_broke_off_goes_on_and_ends_the_same(tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(preparation, "BATCH_CHARS", 2000)
    monkeypatch.setattr(preparation, "JOURNAL_CHARS", 4000)
    write_documents(tmp_path / "a.jsonl", 100)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    whole = prepare(plan, BYTES, tmp_path / "whole", shard_tokens=3000)

    class Breaks(type(BYTES)):
        calls = 0

        def encode(self, texts):
            Breaks.calls += 1
            if Breaks.calls > stop_after:
                raise RuntimeError("killed")
            return super().encode(texts)

    with pytest.raises(RuntimeError):
        prepare(plan, Breaks(), tmp_path / "out", shard_tokens=3000)
    assert not (tmp_path / "out" / MANIFEST).exists()

    class Counts(type(BYTES)):
        calls = 0

        def encode(self, texts):
            Counts.calls += 1
            return super().encode(texts)

    again = prepare(plan, Counts(), tmp_path / "out", shard_tokens=3000)
    assert again.to_dict() == whole.to_dict()
    assert Counts.calls == 10 - stop_after // 2 * 2  # a journal entry every two batches
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_a_shard_completed_after_the_journal_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "BATCH_CHARS", 1000)
    monkeypatch.setattr(preparation, "JOURNAL_CHARS", 2500)
    write_documents(tmp_path / "a.jsonl", 60)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    whole = prepare(plan, BYTES, tmp_path / "whole", shard_tokens=4000)

    class Breaks(type(BYTES)):
        calls = 0

        def encode(self, texts):
            Breaks.calls += 1
            if Breaks.calls > 5:  # the first shard is full, the journal knows 3,000 of it
                raise RuntimeError("killed")
            return super().encode(texts)

    with pytest.raises(RuntimeError):
        prepare(plan, Breaks(), tmp_path / "out", shard_tokens=4000)
    journal = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert journal["splits"]["train"]["open"] > 0 == len(journal["splits"]["train"]["shards"])
    assert (tmp_path / "out" / "train_000000.bin").exists()
    assert prepare(plan, BYTES, tmp_path / "out", shard_tokens=4000).to_dict() == whole.to_dict()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    write_documents(tmp_path / "train_notes.jsonl", 30)
    before = (tmp_path / "train_notes.jsonl").read_text()
    plan = open_plan(str(tmp_path / "train_notes.jsonl"), None, 0.1)
    with pytest.raises(UserError, match="is not empty and holds no prepared data"):
        prepare(plan, BYTES, tmp_path)
    assert (tmp_path / "train_notes.jsonl").read_text() == before


def test_a_prepared_folder_has_its_own_validation_part(tmp_path):
    write_documents(tmp_path / "a.jsonl", 30)
    prepare(open_plan(str(tmp_path / "a.jsonl"), None, 0.1), BYTES, tmp_path / "out")
    with pytest.raises(UserError, match=r"unset data\.val_source"):
        open_corpus(str(tmp_path / "out"), "other.txt", "bytes", 0.1)


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path):
    write_documents(tmp_path / "a.jsonl", 1000, length=3000)
    command = [
        "-m", "gpt2_jax.data.prepare", f"--source={tmp_path}/a.jsonl",
        f"--out={tmp_path}/out", "--tokenizer=gpt2", "--shard_tokens=100000", "--processes=1",
    ]  # fmt: skip
    process = tools.start(*command, tmp=tmp_path)
    while not list((tmp_path / "out").glob("train_*.bin")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(UserError, match="not a manifest"):
        open_prepared(tmp_path / "out")
    done = run(*command, tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(tmp_path / "out")
    assert sum(s.documents for s in manifest.splits.values()) == 1000
    assert run(*command, tmp=tmp_path).returncode == 0  # finished: nothing to do
    other = one_line_error(run(*command, "--val_fraction=0.2", tmp=tmp_path))
    assert "holds another corpus or other options; choose another --out" in other


def test_two_processes_prepare_one_text_once(tmp_path):
    write_documents(tmp_path / "a.jsonl", 1000, length=3000)
    code = (
        "from gpt2_jax.data.corpus import open_corpus; "
        f"c, _ = open_corpus('{tmp_path}/a.jsonl', None, 'gpt2', 0.1); print(len(c.train))"
    )
    both = [tools.start("-c", code, tmp=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    outs = [process.communicate(timeout=180) for process in both]
    assert outs[0][0] == outs[1][0] and int(outs[0][0]) > 100_000
    assert sum("waiting for it" in err for _, err in outs) == 1


def test_text_is_prepared_once_and_again_when_it_changes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(make_text(1000))
    first, _ = open_corpus(str(path), None, "bytes", 0.1)
    again, _ = open_corpus(str(path), None, "bytes", 0.1)
    assert first.manifest.corpus_hash() == again.manifest.corpus_hash()
    path.write_text(make_text(1000, seed=1))
    changed, _ = open_corpus(str(path), None, "bytes", 0.1)
    assert changed.manifest.corpus_hash() != first.manifest.corpus_hash()


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_source_is_one_line(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="is empty"):
        open_corpus(str(path), None, "bytes", 0.1)


def test_a_damaged_shard_is_named(tmp_path):
    write_documents(tmp_path / "a.jsonl", 30)
    prepare(open_plan(str(tmp_path / "a.jsonl"), None, 0.1), BYTES, tmp_path / "out")
    open_prepared(tmp_path / "out")
    shard = tmp_path / "out" / "train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train_000000\.bin is missing or differs"):
        open_prepared(tmp_path / "out")


def test_a_prepared_folder_is_a_source_and_keeps_its_tokenizer(tmp_path):
    write_documents(tmp_path / "a.jsonl", 30)
    prepare(open_plan(str(tmp_path / "a.jsonl"), None, 0.1), BYTES, tmp_path / "out")
    corpus, tokenizer = open_corpus(str(tmp_path / "out"), None, "bytes", 0.1)
    assert tokenizer.name == "bytes" and len(corpus.train) > 1000
    with pytest.raises(UserError, match=r"was prepared with tokenizer bytes; set data\.tokenizer"):
        open_corpus(str(tmp_path / "out"), None, "gpt2", 0.1)


# -- shards as llm.c and modded-nanogpt write them


def write_bin(path, ids):
    path.write_bytes(header(len(ids), np.dtype(np.uint16)) + np.array(ids, np.uint16).tobytes())


def test_the_header_is_llmcs():
    values = np.frombuffer(header(7, np.dtype(np.uint16)), np.int32)
    assert values.tolist() == [20240520, 1, 7] + [0] * 253
    values = np.frombuffer(header(7, np.dtype(np.uint32)), np.int32)
    assert values.tolist() == [20240801, 7, 7] + [0] * 253


def test_bin_shards_are_used_as_they_are(tmp_path):
    write_bin(tmp_path / "fw_train_000001.bin", [50256, *range(40)])
    write_bin(tmp_path / "fw_train_000002.bin", [50256, *range(40, 70)])
    write_bin(tmp_path / "fw_val_000000.bin", [50256, 5, 6])
    corpus, tokenizer = open_corpus(
        f"{tmp_path}/fw_train_*.bin", f"{tmp_path}/fw_val_*.bin", "gpt2", 0.1
    )
    assert tokenizer.name == "gpt2"
    assert ids_of(corpus.train) == [50256, *range(40), 50256, *range(40, 70)]
    assert ids_of(corpus.val) == [50256, 5, 6]
    assert corpus.bytes_per_token("val") == 2 / 3  # ids 5 and 6 are a byte each


def test_bin_shards_alone_are_split_at_a_document(tmp_path):
    ids = [50256, *range(50), 50256, *range(35), 50256, *range(20), 50256, *range(5)]
    write_bin(tmp_path / "a.bin", ids)
    corpus, _ = open_corpus(f"{tmp_path}/a.bin", None, "gpt2", 0.3)
    assert ids_of(corpus.train) == ids[:87]
    assert ids_of(corpus.val) == ids[87:] and ids[87] == 50256


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"short", "is not a token shard"),
        (b"\0" * 2048, "is not a token shard"),
        (header(100, np.dtype(np.uint16)) + b"\0" * 10, "its size does not fit its 100 tokens"),
    ],
)
def test_what_is_no_shard_is_named(tmp_path, content, line):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=line):
        open_shard(tmp_path / "a.bin")


def test_shards_of_another_vocabulary_are_refused(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 50257])
    ids = np.array([1, 2], np.uint32)
    (tmp_path / "b.bin").write_bytes(header(2, ids.dtype) + ids.tobytes())
    for name in ("a", "b"):
        with pytest.raises(UserError, match="does not hold GPT-2's tokens"):
            open_corpus(f"{tmp_path}/{name}.bin", None, "gpt2", 0.1)


def test_bin_shards_need_the_gpt2_tokenizer(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 2, 3])
    with pytest.raises(UserError, match=r"\.bin shards hold GPT-2 tokens"):
        open_corpus(f"{tmp_path}/a.bin", None, "bytes", 0.1)
