"""Prepared folders and shards as they are opened: what contradicts itself is refused."""

import hashlib
import json
import os

import numpy as np
import pytest

from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.manifest import MANIFEST, Manifest
from gpt2_jax.data.shards import header, open_prepared, open_shard, verify_prepared
from gpt2_jax.errors import UserError
from tests.data.prepared import ids_of, small_folder


def rewrite(folder, change, sign=False):
    """Changes the stored manifest, also with a checksum that fits."""
    stored = json.loads((folder / MANIFEST).read_text())
    stored.pop("checksum")
    change(stored)
    if sign:
        text = json.dumps(stored, sort_keys=True)
        stored["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(stored))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["splits"]["val"].update(bytes=10),
        lambda m: m["splits"]["val"].update(words=None),
        lambda m: m.update(val_fraction=0.2),
    ],
)
def test_counts_changed_by_hand_are_noticed(tmp_path, change):
    _, folder = small_folder(tmp_path)
    stored = json.loads((folder / MANIFEST).read_text())
    change(stored)
    (folder / MANIFEST).write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"manifest\.json was changed"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m["splits"]["val"].update(tokens=10), "shards of val do not add up"),
        (lambda m: m["splits"]["val"].update(bytes=-1), "counts of val"),
        (lambda m: m["splits"]["val"].update(bytes=True), "counts of val"),
        (lambda m: m["splits"].pop("val"), "its splits are"),
        (lambda m: m["tokenizer"].pop("fingerprint"), "fingerprint"),
        (lambda m: m["tokenizer"].update(size="x"), r"tokenizer\.size"),
        (lambda m: m["splits"]["val"]["shards"][0].update(file="../a.jsonl"), "not the name"),
        (lambda m: m.update(splits=3), "not a manifest"),
        (lambda m: m.update(format_version="2"), "format_version is '2'"),
        (lambda m: m.update(format_version=3), "format_version 3.*upgrade gpt2_jax"),
        (
            lambda m: [
                m["splits"]["val"].update(tokens=7),
                m["splits"]["val"]["shards"][0].update(tokens=7),
            ],
            r"val_000000\.bin differs from its manifest",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_or_its_shards_is_refused(tmp_path, change, line):
    _, folder = small_folder(tmp_path)
    rewrite(folder, change, sign=True)
    with pytest.raises(UserError, match=line):
        open_prepared(folder)


def test_a_shard_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read"):
        open_shard(tmp_path)


@pytest.mark.parametrize("ids", [2, 4])
def test_a_shard_of_another_length_than_its_header_says_is_refused(tmp_path, ids):
    path = tmp_path / "a.bin"
    path.write_bytes(header(3, np.dtype(np.uint16)) + bytes(2 * ids))
    with pytest.raises(UserError, match=r"a\.bin"):
        open_shard(path)


def test_a_folder_of_format_1_is_still_read(tmp_path):
    manifest, folder = small_folder(tmp_path)

    def older(stored):
        del stored["format_version"], stored["document_separator"]
        stored["format"] = 1

    rewrite(folder, older)
    assert open_prepared(folder).manifest == manifest


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "[" * 100_000, "\udcff"])
def test_what_is_no_manifest_is_one_line(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest"):
        Manifest.read(tmp_path)


def test_a_full_check_reads_what_the_quick_one_remembers(tmp_path):
    manifest, folder = small_folder(tmp_path)
    assert verify_prepared(folder) == manifest
    shard = folder / "train_000000.bin"
    times = shard.stat()
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    open_prepared(folder)  # same size and time
    with pytest.raises(UserError, match=r"train_000000\.bin differs"):
        verify_prepared(folder)


def test_a_full_check_finds_ids_that_are_none(tmp_path):
    _, folder = small_folder(tmp_path)
    rewrite(folder, lambda m: m["tokenizer"].update(size=100), sign=True)
    with pytest.raises(UserError, match=r"train_000000\.bin holds id 256"):
        verify_prepared(folder)


def test_a_damaged_shard_is_named(tmp_path):
    small_folder(tmp_path)
    open_prepared(tmp_path / "out")
    shard = tmp_path / "out" / "train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train_000000\.bin differs from its manifest"):
        open_prepared(tmp_path / "out")


def test_a_prepared_folder_is_a_source_and_keeps_its_tokenizer(tmp_path):
    small_folder(tmp_path)
    corpus, tokenizer = open_corpus(str(tmp_path / "out"), None, "bytes", 0.1)
    assert tokenizer.name == "bytes" and len(corpus.train) > 1000
    assert open_corpus(str(tmp_path / "out"), None, "bytes", 0.0)[0].manifest == corpus.manifest
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
        (header(-5, np.dtype(np.uint16))[:-10], "its size does not fit its -5 tokens"),
    ],
)
def test_what_is_no_shard_is_named(tmp_path, content, line):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=line):
        open_shard(tmp_path / "a.bin")


def test_too_little_validation_text_is_said_with_its_fields(tmp_path):
    write_bin(tmp_path / "a.bin", range(100))
    corpus = open_corpus(str(tmp_path / "a.bin"), None, "gpt2", 1e-5)[0]
    with pytest.raises(UserError, match=r"data\.val_fraction.*data\.val_source"):
        corpus.check_validation()


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


def test_an_id_beyond_the_vocabulary_anywhere_in_validation_shards_is_refused(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 2, 3])
    write_bin(tmp_path / "b.bin", [*[1] * 1_000_000, 50257])
    with pytest.raises(UserError, match="holds id 50257"):
        open_corpus(f"{tmp_path}/a.bin", f"{tmp_path}/b.bin", "gpt2", 0.1)
