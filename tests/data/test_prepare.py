"""Preparation: the split, the shards, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gpt2_jax.data import preparation, tokenizer_pool
from gpt2_jax.data.corpus import open_corpus, open_plan
from gpt2_jax.data.manifest import MANIFEST
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.shards import open_prepared
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.data.tokenizer_pool import encode_parallel
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


def test_each_document_is_in_one_split_in_order(tmp_path):
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


def test_split_of_a_document_is_independent_of_the_others(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 400)
    (tmp_path / "b.jsonl").write_text("".join((tmp_path / "a.jsonl").open().readlines()[:300]))
    val = []
    for name in ("a", "b"):
        prepare(open_plan(str(tmp_path / f"{name}.jsonl"), None, 0.1), BYTES, tmp_path / name)
        val.append(set(split_documents(open_prepared(tmp_path / name).val)))
    assert val[1] == val[0] & set(docs[:300])


def test_separate_validation_source(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 5)
    (tmp_path / "val.txt").write_text("held out")
    corpus, _ = open_corpus(str(tmp_path / "a.jsonl"), str(tmp_path / "val.txt"), "bytes", 0.1)
    assert split_documents(corpus.train) == docs
    assert split_documents(corpus.val) == ["held out"]


def test_shard_size_does_not_change_the_tokens(tmp_path):
    docs = write_documents(tmp_path / "a.jsonl", 100)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    prepare(plan, BYTES, tmp_path / "small", shard_tokens=1000)
    prepare(plan, BYTES, tmp_path / "large")
    small, large = open_prepared(tmp_path / "small"), open_prepared(tmp_path / "large")
    assert len(small.manifest.splits["train"].shards) > 10
    assert all(s.tokens == 1000 for s in small.manifest.splits["train"].shards[:-1])
    assert ids_of(small.train) == ids_of(large.train) and len(docs) == 100


def test_number_of_processes_does_not_change_the_shards(tmp_path, monkeypatch):
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
def test_interrupted_preparation_resumes_with_the_same_result(tmp_path, monkeypatch, stop_after):
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


def test_shard_completed_after_the_journal_is_reopened(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "BATCH_CHARS", 1000)
    monkeypatch.setattr(preparation, "JOURNAL_CHARS", 2500)
    write_documents(tmp_path / "a.jsonl", 60)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    whole = prepare(plan, BYTES, tmp_path / "whole", shard_tokens=4000)

    class Breaks(type(BYTES)):
        calls = 0

        def encode(self, texts):
            Breaks.calls += 1
            if Breaks.calls > 5:  # the first shard is full; the journal has 3,000 of its tokens
                raise RuntimeError("killed")
            return super().encode(texts)

    with pytest.raises(RuntimeError):
        prepare(plan, Breaks(), tmp_path / "out", shard_tokens=4000)
    journal = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert journal["splits"]["train"]["open"] > 0 == len(journal["splits"]["train"]["shards"])
    assert (tmp_path / "out" / "train_000000.bin").exists()
    assert prepare(plan, BYTES, tmp_path / "out", shard_tokens=4000).to_dict() == whole.to_dict()


def test_folder_with_other_files_is_rejected_unchanged(tmp_path):
    write_documents(tmp_path / "train_notes.jsonl", 30)
    before = (tmp_path / "train_notes.jsonl").read_text()
    plan = open_plan(str(tmp_path / "train_notes.jsonl"), None, 0.1)
    with pytest.raises(UserError, match=r"train_notes\.jsonl.*--out"):
        prepare(plan, BYTES, tmp_path)
    assert (tmp_path / "train_notes.jsonl").read_text() == before
    assert os.listdir(tmp_path) == ["train_notes.jsonl"]


def test_folder_summary_escapes_control_characters(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.\x1b[31mred"):
        (folder / name).write_text(f"text {name}")
    prepare(open_plan(str(folder), None, 0.5), BYTES, tmp_path / "out")
    err = capsys.readouterr().err
    assert "\x1b" not in err and r"\x1b[31mred" in err


@pytest.mark.parametrize("existed", [False, True])
def test_invalid_row_leaves_no_files(tmp_path, monkeypatch, existed):
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


def test_unreadable_journal_is_not_overwritten(tmp_path, monkeypatch):
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


def test_val_source_is_rejected_for_a_prepared_folder(tmp_path):
    write_documents(tmp_path / "a.jsonl", 30)
    prepare(open_plan(str(tmp_path / "a.jsonl"), None, 0.1), BYTES, tmp_path / "out")
    with pytest.raises(UserError, match=r"unset data\.val_source"):
        open_corpus(str(tmp_path / "out"), "other.txt", "bytes", 0.1)


def test_killed_preparation_is_unfinished_and_resumes(tmp_path):
    write_documents(tmp_path / "a.jsonl", 1000, length=3000)
    command = [
        "-m", "gpt2_jax", "prepare", f"--source={tmp_path}/a.jsonl",
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
    assert again == manifest
    with pytest.raises(UserError, match=r"out was prepared.*--out"):
        prepare(plan, load_tokenizer("gpt2"), tmp_path / "out", 200_000, 1)


def test_concurrent_preparations_run_once(tmp_path):
    write_documents(tmp_path / "a.jsonl", 1000, length=3000)
    code = (
        "from gpt2_jax.data.corpus import open_corpus; "
        f"c, _ = open_corpus('{tmp_path}/a.jsonl', None, 'gpt2', 0.1); print(len(c.train))"
    )
    both = [tools.start("-c", code, tmp=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    outs = [process.communicate(timeout=180) for process in both]
    assert outs[0][0] == outs[1][0] and int(outs[0][0]) > 100_000
    assert sum("waiting for it" in err for _, err in outs) == 1


def test_changed_text_is_prepared_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(make_text(1000))
    first, _ = open_corpus(str(path), None, "bytes", 0.1)
    again, _ = open_corpus(str(path), None, "bytes", 0.1)
    assert first.manifest.corpus_hash() == again.manifest.corpus_hash()
    path.write_text(make_text(1000, seed=1))
    changed, _ = open_corpus(str(path), None, "bytes", 0.1)
    assert changed.manifest.corpus_hash() != first.manifest.corpus_hash()


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_source_is_rejected(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="is empty"):
        open_corpus(str(path), None, "bytes", 0.1)


def test_finished_folder_is_not_locked(tmp_path, monkeypatch):
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
def test_invalid_journal_restarts_preparation(tmp_path, monkeypatch, damage):
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


def test_leftovers_of_killed_processes_are_deleted(tmp_path):
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


def test_symlinked_partial_shard_is_not_written_to(tmp_path, monkeypatch):
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


def test_document_separator_is_recorded_in_the_manifest(tmp_path):
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


def test_shakespeare_split_equals_nanogpt():
    corpus, _ = open_corpus("shakespeare", None, "bytes", 0.1)
    assert (len(corpus.train), len(corpus.val)) == (1_003_854, 111_540)
    assert bytes(ids_of(corpus.val)[:14]) == b"?\n\nGREMIO:\nGoo"


@pytest.mark.parametrize("shard_tokens", [0, 2**31, 2**40])
def test_shard_tokens_out_of_range(tmp_path, shard_tokens):
    (tmp_path / "a.txt").write_text("text")
    plan = open_plan(f"{tmp_path}/a.txt", None, 0.5)
    with pytest.raises(UserError, match=f"shard_tokens={shard_tokens}"):
        prepare(plan, BYTES, tmp_path / "out", shard_tokens=shard_tokens)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "line"),
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
def test_invalid_data_fields_are_named(tmp_path, fields, line):
    (tmp_path / "a.txt").write_text("text")
    plain = {"source": f"{tmp_path}/a.txt", "val_source": None, "val_fraction": 0.1}
    with pytest.raises(UserError, match=line):
        open_plan(**plain | fields)


# -- processes


class Fatal:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_killed_tokenizing_process_is_reported():
    batches = [[("train", SimpleNamespace(text=Fatal()))]]
    with pytest.raises(UserError, match=r"a tokenizing process was killed.*--processes=1"):
        list(encode_parallel(BYTES, batches, 1))


@pytest.mark.slow
def test_tokenizing_processes_exit_when_the_parent_is_killed(tmp_path):
    code = (
        "import os, time; from gpt2_jax.data import tokenizer_pool as pool; "
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
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent by five seconds")


def test_tokenizing_process_ignores_sigint():
    before = signal.getsignal(signal.SIGINT)
    try:
        tokenizer_pool._end_with_parent()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
