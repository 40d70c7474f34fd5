"""Preparation: the split, the shards, and being killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gpt2_jax.data import pool, preparation
from gpt2_jax.data.corpus import open_corpus, open_plan
from gpt2_jax.data.manifest import MANIFEST
from gpt2_jax.data.pool import encode_in_processes
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.shards import open_prepared
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from tests import tools
from tests.data.prepared import (
    BYTES,
    breaking_after,
    ids_of,
    small_folder,
    split_documents,
    write_documents,
)
from tests.tools import ROOT, make_text


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
    assert os.listdir(tmp_path) == ["train_notes.jsonl"]


def test_what_is_said_of_a_folder_cannot_steer_the_terminal(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.\x1b[31mred"):
        (folder / name).write_text(f"text {name}")
    prepare(open_plan(str(folder), None, 0.5), BYTES, tmp_path / "out")
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"\x1b[31mred" in said


@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_row_leaves_nothing_behind(tmp_path, monkeypatch, existed):
    monkeypatch.setattr(preparation, "BATCH_CHARS", 1000)
    monkeypatch.setattr(preparation, "JOURNAL_CHARS", 1000)
    write_documents(tmp_path / "a.jsonl", 300)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("no JSON\n")
    if existed:
        (tmp_path / "out").mkdir()
    out = tmp_path / ("out" if existed else "new/out")
    with pytest.raises(UserError, match="line 301"):
        prepare(open_plan(f"{tmp_path}/a.jsonl", None, 0.1), BYTES, out, 5000)
    assert [p.name for p in out.glob("*")] == [".lock"] * existed
    assert existed or not out.parent.exists()


def test_a_journal_that_cannot_be_read_is_not_begun_again(tmp_path, monkeypatch):
    write_documents(tmp_path / "a.jsonl", 30)
    plan = open_plan(f"{tmp_path}/a.jsonl", None, 0.1)
    with pytest.raises(RuntimeError):
        prepare(plan, breaking_after(0), tmp_path / "out")
    before = (tmp_path / "out" / "progress.json").read_bytes()

    read = preparation.Path.read_text

    def refuse(path, **how):
        if path.name != "progress.json":
            return read(path, **how)
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(preparation.Path, "read_text", refuse)
        with pytest.raises(UserError, match=r"progress\.json.*Input/output error"):
            prepare(plan, BYTES, tmp_path / "out")
    assert (tmp_path / "out" / "progress.json").read_bytes() == before


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
    plan = open_plan(f"{tmp_path}/a.jsonl", None, 0.1)
    manifest = prepare(plan, load_tokenizer("gpt2"), tmp_path / "out", 100_000, 1)
    assert sum(s.documents for s in manifest.splits.values()) == 1000
    again = prepare(plan, load_tokenizer("gpt2"), tmp_path / "out", 100_000, 1)
    assert again == manifest  # finished: nothing to do
    with pytest.raises(UserError, match=r"other options.*choose another --out"):
        prepare(plan, load_tokenizer("gpt2"), tmp_path / "out", 200_000, 1)


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


def test_a_finished_folder_on_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    manifest, folder = small_folder(tmp_path)
    (folder / ".lock").unlink()
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    assert prepare(plan, BYTES, folder) == manifest
    assert not (folder / ".lock").exists()


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def change_pieces(out):
    journal = json.loads((out / "progress.json").read_text())
    (out / "progress.json").write_text(json.dumps(journal | {"pieces": journal["pieces"] + 1}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "progress.json").write_text("[]"),
        lambda out: (out / "progress.json").write_text("[" * 100_000),
        lambda out: (out / "train_000001.partial").write_bytes(b"short"),
        lambda out: (out / "train_000001.partial").unlink(),
        lambda out: (out / "train_000000.bin").unlink(),
        lambda out: flip(out / "progress.json", -5),
        lambda out: flip(out / "train_000000.bin", 2000),
        lambda out: flip(out / "train_000001.partial", 1024),
        change_pieces,
        lambda out: (out / "progress.json").unlink() or os.mkfifo(out / "progress.json"),
    ],
)
def test_a_journal_that_does_not_hold_begins_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(preparation, "BATCH_CHARS", 2000)
    monkeypatch.setattr(preparation, "JOURNAL_CHARS", 2000)
    write_documents(tmp_path / "a.jsonl", 60)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    whole = prepare(plan, BYTES, tmp_path / "whole", 4000)
    with pytest.raises(RuntimeError):
        prepare(plan, breaking_after(3), tmp_path / "out", 4000)
    damage(tmp_path / "out")
    assert prepare(plan, BYTES, tmp_path / "out", 4000) == whole
    open_prepared(tmp_path / "out")


def test_what_kills_left_is_deleted(tmp_path):
    manifest, folder = small_folder(tmp_path)
    before, plan = sorted(folder.iterdir()), open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    for name in (".progress.json.0123abcd.tmp", "progress.json"):  # before and after the manifest
        (folder / name).write_text("{}")
    assert prepare(plan, BYTES, folder) == manifest
    assert sorted(folder.iterdir()) == before
    (folder / MANIFEST).unlink()
    (folder / "progress.json").write_text("{}")
    (folder / ".progress.json.0123abcd.tmp").write_text("{")
    assert prepare(plan, BYTES, folder) == manifest
    assert sorted(folder.iterdir()) == before


def test_an_open_shard_that_is_a_link_is_not_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "BATCH_CHARS", 2000)
    monkeypatch.setattr(preparation, "JOURNAL_CHARS", 2000)
    write_documents(tmp_path / "a.jsonl", 60)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    with pytest.raises(RuntimeError):
        prepare(plan, breaking_after(3), tmp_path / "out")
    partial = tmp_path / "out" / "train_000000.partial"
    partial.rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    partial.symlink_to(tmp_path / "elsewhere")
    prepare(plan, BYTES, tmp_path / "out")
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_separator_of_documents_is_part_of_the_prepared_data(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"Story {i}.\n<|endoftext|>\n" for i in range(30)))
    prepare(open_plan(f"{tmp_path}/a.txt", None, 0.1, "<|endoftext|>"), BYTES, tmp_path / "out")
    corpus, _ = open_corpus(str(tmp_path / "out"), None, "bytes", 0.1, "<|endoftext|>")
    train, val = split_documents(corpus.train), split_documents(corpus.val)
    assert len(val) == 3 and sorted(train + val) == sorted(f"Story {i}." for i in range(30))
    cached, _ = open_corpus(f"{tmp_path}/a.txt", None, "bytes", 0.1, "<|endoftext|>")
    assert cached.manifest.corpus_hash() == corpus.manifest.corpus_hash()
    whole, _ = open_corpus(f"{tmp_path}/a.txt", None, "bytes", 0.1)
    assert b"<|endoftext|>" in bytes(ids_of(whole.train))  # plain text by default
    with pytest.raises(UserError, match=r"data\.document_separator='###'"):
        open_corpus(str(tmp_path / "out"), None, "bytes", 0.1, "###")


def test_shakespeare_is_split_as_nanogpt_splits_it():
    corpus, _ = open_corpus("shakespeare", None, "bytes", 0.1)
    assert (len(corpus.train), len(corpus.val)) == (1_003_854, 111_540)
    assert bytes(ids_of(corpus.val)[:14]) == b"?\n\nGREMIO:\nGoo"


@pytest.mark.parametrize("shard_tokens", [0, 2**31, 2**40])
def test_shards_are_no_longer_than_their_header_counts(tmp_path, shard_tokens):
    (tmp_path / "a.txt").write_text("text")
    plan = open_plan(f"{tmp_path}/a.txt", None, 0.5)
    with pytest.raises(UserError, match=f"shard_tokens={shard_tokens}"):
        prepare(plan, BYTES, tmp_path / "out", shard_tokens=shard_tokens)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"val_fraction": 0.0}, r"data\.val_fraction=0 .*data\.val_source"),
        ({"val_fraction": 1e-300}, r"data\.val_fraction=1e-300"),
        ({"val_fraction": float("nan")}, r"data\.val_fraction=nan"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1"),
        ({"source": ""}, r"data\.source is empty"),
        ({"val_source": ""}, r"data\.val_source is empty"),
        ({"document_separator": ""}, r"data\.document_separator is empty"),
    ],
)
def test_what_makes_no_plan_is_named(tmp_path, given, line):
    (tmp_path / "a.txt").write_text("text")
    plain = {"source": f"{tmp_path}/a.txt", "val_source": None, "val_fraction": 0.1}
    with pytest.raises(UserError, match=line):
        open_plan(**plain | given)


# -- processes


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_killed_tokenizing_process_is_one_line():
    batches = [[("train", SimpleNamespace(text=Fatal()))]]
    with pytest.raises(UserError, match=r"a tokenizing process was killed.*--processes=1"):
        list(encode_in_processes(BYTES, batches, 1))


@pytest.mark.slow
def test_tokenizing_processes_end_with_a_killed_parent(tmp_path):
    code = (
        "import os, time; from gpt2_jax.data import pool; "
        "from concurrent.futures import ProcessPoolExecutor as Pool; "
        "p = Pool(1, pool.multiprocessing.get_context('spawn'), pool._end_with_parent); "
        "print(p.submit(os.getpid).result(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=tools.environment(tmp_path), text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        if not os.path.exists(f"/proc/{child}"):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent by five seconds")


def test_an_interrupt_is_left_to_the_parent_of_a_tokenizing_process():
    before = signal.getsignal(signal.SIGINT)
    try:
        pool._end_with_parent()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
