"""Opening prepared folders and shards, and rejecting inconsistent ones."""

import hashlib
import json
import os

import numpy as np
import pytest

from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.manifest import MANIFEST, Manifest
from gpt2_jax.data.shards import open_prepared, open_shard, shard_header, verify_prepared
from gpt2_jax.errors import UserError
from tests.data.prepared import ids_of, small_folder

UINT16, UINT32 = np.dtype(np.uint16), np.dtype(np.uint32)


def rewrite(folder, change, sign=False):
    """Edits the stored manifest, optionally with a valid checksum."""
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
def test_edited_manifest_is_rejected(tmp_path, change):
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
        (lambda m: m["splits"]["val"]["shards"][0].update(file="../a.jsonl"), "not a shard name"),
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
def test_inconsistent_manifest_is_rejected(tmp_path, change, line):
    _, folder = small_folder(tmp_path)
    rewrite(folder, change, sign=True)
    with pytest.raises(UserError, match=line):
        open_prepared(folder)


def test_unreadable_shard_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read"):
        open_shard(tmp_path)


@pytest.mark.parametrize("ids", [2, 4])
def test_shard_of_wrong_size_is_rejected(tmp_path, ids):
    path = tmp_path / "a.bin"
    path.write_bytes(shard_header(3, UINT16) + bytes(2 * ids))
    with pytest.raises(UserError, match=r"a\.bin"):
        open_shard(path)


def test_format_version_1_is_read(tmp_path):
    manifest, folder = small_folder(tmp_path)

    def older(stored):
        del stored["format_version"], stored["document_separator"]
        stored["format"] = 1

    rewrite(folder, older)
    assert open_prepared(folder).manifest == manifest


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "[" * 100_000, "\udcff"])
def test_invalid_manifest_is_rejected(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest"):
        Manifest.read(tmp_path)


def test_verify_does_not_use_cached_hashes(tmp_path):
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


def test_verify_finds_ids_out_of_range(tmp_path):
    _, folder = small_folder(tmp_path)
    rewrite(folder, lambda m: m["tokenizer"].update(size=100), sign=True)
    with pytest.raises(UserError, match=r"train_000000\.bin has id 256"):
        verify_prepared(folder)


def test_damaged_shard_is_named(tmp_path):
    small_folder(tmp_path)
    open_prepared(tmp_path / "out")
    shard = tmp_path / "out" / "train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train_000000\.bin differs from its manifest"):
        open_prepared(tmp_path / "out")


def test_prepared_folder_as_source_requires_its_tokenizer(tmp_path):
    small_folder(tmp_path)
    corpus, tokenizer = open_corpus(str(tmp_path / "out"), None, "bytes", 0.1)
    assert tokenizer.name == "bytes" and len(corpus.train) > 1000
    assert open_corpus(str(tmp_path / "out"), None, "bytes", 0.0)[0].manifest == corpus.manifest
    with pytest.raises(UserError, match=r"set data\.tokenizer"):
        open_corpus(str(tmp_path / "out"), None, "gpt2", 0.1)


# -- shards written by llm.c and modded-nanogpt


def write_bin(path, ids):
    path.write_bytes(shard_header(len(ids), UINT16) + np.array(ids, np.uint16).tobytes())


def test_shard_header_equals_llmc():
    values = np.frombuffer(shard_header(7, UINT16), np.int32)
    assert values.tolist() == [20240520, 1, 7] + [0] * 253
    values = np.frombuffer(shard_header(7, UINT32), np.int32)
    assert values.tolist() == [20240801, 7, 7] + [0] * 253


def test_bin_shards(tmp_path):
    write_bin(tmp_path / "fw_train_000001.bin", [50256, *range(40)])
    write_bin(tmp_path / "fw_train_000002.bin", [50256, *range(40, 70)])
    write_bin(tmp_path / "fw_val_000000.bin", [50256, 5, 6])
    corpus, tokenizer = open_corpus(
        f"{tmp_path}/fw_train_*.bin", f"{tmp_path}/fw_val_*.bin", "gpt2", 0.1
    )
    assert tokenizer.name == "gpt2"
    assert ids_of(corpus.train) == [50256, *range(40), 50256, *range(40, 70)]
    assert ids_of(corpus.val) == [50256, 5, 6]
    assert corpus.bytes_per_token("val") == 2 / 3  # ids 5 and 6 are one byte each


def test_bin_shards_without_validation_are_split_at_a_document(tmp_path):
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
        (shard_header(100, UINT16) + b"\0" * 10, "its size does not match its 100 tokens"),
        (shard_header(-5, UINT16)[:-10], "its size does not match its -5 tokens"),
    ],
)
def test_invalid_shards_are_rejected(tmp_path, content, line):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=line):
        open_shard(tmp_path / "a.bin")


def test_too_little_validation_text_names_the_fields(tmp_path):
    write_bin(tmp_path / "a.bin", range(100))
    corpus = open_corpus(str(tmp_path / "a.bin"), None, "gpt2", 1e-5)[0]
    with pytest.raises(UserError, match=r"data\.val_fraction.*data\.val_source"):
        corpus.check_validation()


def test_shards_of_another_vocabulary_are_rejected(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 50257])
    ids = np.array([1, 2], np.uint32)
    (tmp_path / "b.bin").write_bytes(shard_header(2, ids.dtype) + ids.tobytes())
    for name in ("a", "b"):
        with pytest.raises(UserError, match="vocabulary"):
            open_corpus(f"{tmp_path}/{name}.bin", None, "gpt2", 0.1)


def test_bin_shards_require_the_gpt2_tokenizer(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 2, 3])
    with pytest.raises(UserError, match=r"\.bin shards contain GPT-2 tokens"):
        open_corpus(f"{tmp_path}/a.bin", None, "bytes", 0.1)


def test_ids_out_of_range_in_validation_shards_are_rejected(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 2, 3])
    write_bin(tmp_path / "b.bin", [*[1] * 1_000_000, 50257])
    with pytest.raises(UserError, match="id 50257"):
        open_corpus(f"{tmp_path}/a.bin", f"{tmp_path}/b.bin", "gpt2", 0.1)
