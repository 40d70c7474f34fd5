"""Tokenizers, compared with published ids."""

import hashlib
import json
import os
import string
from pathlib import Path

import numpy as np
import pytest

from gpt2_jax.data.tokenizer import gpt2_ranks, load_tokenizer
from gpt2_jax.errors import UserError
from tests.data import tokenizers
from tests.tools import ROOT, SHARED

VECTORS = ROOT / "tests" / "fixtures" / "gpt2_vectors"
# The library panics because the merges do not start with the prefix.
PANICKING = tokenizers.bpe()
PANICKING["model"]["continuing_subword_prefix"] = "##"


def vectors():
    texts = (VECTORS / "vectors.inp").read_text().split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in (VECTORS / "vectors.out").open()]
    ids += [[]] * (len(texts) - len(ids))
    return list(zip(texts, ids, strict=True))


def test_all_47_published_gpt2_vectors():
    pairs = vectors()
    assert len(pairs) == 47
    tokenizer = load_tokenizer("gpt2")
    got = tokenizer.encode([text for text, _ in pairs])
    for (text, want), ids in zip(pairs, got, strict=True):
        assert ids.tolist() == want, repr(text)
        assert tokenizer.decode_bytes(ids) == text.encode()


def test_gpt2_ranks():
    ranks = gpt2_ranks()
    assert len(ranks) == 50256 and sorted(ranks.values()) == list(range(50256))
    known = {
        b"!": 0,
        b"~": 93,
        b"\x00": 188,
        b" ": 220,
        b" t": 256,
        b"Hello": 15496,
        b" gazed": 50255,
    }
    assert {token: ranks[token] for token in known} == known


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_tiny_shakespeare_token_counts():
    text = (SHARED / "tinyshakespeare" / "input.txt").read_text()
    cut = int(0.9 * len(text))
    counts = [len(ids) for ids in load_tokenizer("gpt2").encode([text[:cut], text[cut:]])]
    assert counts == [301_966, 36_059]


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_gpt2_ranks_equal_the_released_table():
    table = json.loads((SHARED / "gpt2_bpe" / "encoder.json").read_text())
    by_id = {rank: token for token, rank in gpt2_ranks().items()}
    printable = {ch: ord(ch) for ch in string.ascii_letters + string.digits + string.punctuation}
    assert table.pop("<|endoftext|>") == 50256
    for token, rank in table.items():
        if all(ch in printable or ch == "Ġ" for ch in token):
            assert by_id[rank] == token.replace("Ġ", " ").encode()


def test_byte_tokenizer():
    tokenizer = load_tokenizer("bytes")
    (ids,) = tokenizer.encode(["né\n"])
    assert ids.tolist() == [110, 195, 169, 10]
    assert (tokenizer.size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode_bytes([110, 195, 169, 10, 256]) == "né\n".encode()


def test_special_tokens_in_text_are_plain_text(tmp_path):
    for name in ("gpt2", "bytes", str(make_tokenizer_json(tmp_path / "t.json"))):
        tokenizer = load_tokenizer(name)
        (ids,) = tokenizer.encode(["<|endoftext|>"])
        assert tokenizer.end_of_text not in ids.tolist()


def make_tokenizer_json(path, special="<|endoftext|>"):
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[special] if special else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the stream and the norm of the stream"] * 20, trainer)
    made.save(str(path))
    return path


def test_tokenizer_json(tmp_path):
    path = make_tokenizer_json(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(str(path))
    (ids,) = tokenizer.encode(["the norm of é"])
    assert ids.dtype == np.uint16 and len(ids) < len("the norm of é")
    assert tokenizer.decode_bytes(ids.tolist()) == "the norm of é".encode()
    assert tokenizer.end_of_text == 0 and tokenizer.size <= 300


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"data\.tokenizer=.*No such file or directory"),
        ("{}", "is not a tokenizer.json"),
        (json.dumps(PANICKING), "is not a tokenizer.json"),
    ],
)
def test_invalid_tokenizer(tmp_path, content, line):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=line):
        load_tokenizer(str(path))


def test_tokenizer_without_end_of_text(tmp_path):
    path = make_tokenizer_json(tmp_path / "no_end.json", special=None)
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(str(path))


def load(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(str(path))


@pytest.mark.parametrize("kind", tokenizers.UNFIT)
def test_truncation_padding_and_dropout_are_disabled(tmp_path, kind):
    """The ids are those of transformers with these settings disabled."""
    tokenizer = load(tmp_path / "t.json", tokenizers.UNFIT[kind])
    got = [ids.tolist() for ids in tokenizer.encode(["the river bends", "the", ""])]
    assert got == [[13, 16, 17, 20, 2, 8], [13], []]


def test_fingerprint_changes_if_settings_are_disabled(tmp_path):
    """Earlier versions encoded text differently; the fingerprint of other files is their hash."""
    for kind, content in tokenizers.UNFIT.items():
        tokenizer = load(tmp_path / f"{kind}.json", content)
        digest = hashlib.sha256((tmp_path / f"{kind}.json").read_bytes()).hexdigest()
        assert (tokenizer.fingerprint == digest) == (kind == "plain")


@pytest.mark.parametrize("last", [400, 70_000])
def test_size_of_vocabulary_with_gaps(tmp_path, last):
    tokenizer = load(tmp_path / "t.json", tokenizers.word_level(last))
    (ids,) = tokenizer.encode(["the river"])
    assert ids.tolist() == [3, 10] and tokenizer.size == last + 1
    assert tokenizer.end_of_text == last <= np.iinfo(ids.dtype).max


def test_changed_tokenizer_file_is_read_again(tmp_path, monkeypatch):
    """Even if a relative path is a different file in a different working directory."""
    for name, content in (("a", tokenizers.bpe()), ("b", tokenizers.wordpiece())):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert load(Path("t.json"), content).size == len(content["model"]["vocab"])
    first = load_tokenizer("t.json")
    load(Path("t.json"), tokenizers.bpe())
    assert load_tokenizer("t.json").fingerprint != first.fingerprint
    with pytest.raises(UserError, match=r"data\.tokenizer=t\.json"):
        load_tokenizer("t.json", first.fingerprint)


def test_unknown_word_is_rejected(tmp_path):
    content = tokenizers.word_level(11)
    del content["model"]["vocab"]["[UNK]"]
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        load(tmp_path / "t.json", content).encode(["unknown"])


def test_unknown_character_is_rejected(tmp_path):
    """BPE without an unknown token, which would skip unknown characters."""
    tokenizer = load(tmp_path / "t.json", tokenizers.bpe())
    with pytest.raises(UserError, match=r"t\.json.*unk_token"):
        tokenizer.encode(["the river", "the séa"])
    content = tokenizers.bpe()
    content["model"]["vocab"]["?"] = 40
    content["model"]["unk_token"] = "?"
    with_unknown = load(tmp_path / "u.json", content)
    assert with_unknown.encode(["the z"])[0].tolist()[-1] == 40


def test_pipe_as_tokenizer_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe"):
        load_tokenizer(str(tmp_path / "pipe"))


def test_tokenizer_json_with_byte_order_mark(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(tokenizers.bpe()), encoding="utf-8-sig")
    assert load_tokenizer(str(tmp_path / "t.json")).size == 21


@pytest.mark.parametrize("name", ["ids:", "ids:1", "ids:x", "ids:" + "9" * 5000])
def test_invalid_ids_size(name):
    with pytest.raises(UserError, match=r"data\.tokenizer='ids:"):
        load_tokenizer(name)


@pytest.mark.parametrize("word", ["11", "x", "-1", "9" * 5000])
def test_invalid_id(word):
    with pytest.raises(UserError, match=r"data\.tokenizer=ids:11"):
        load_tokenizer("ids:11").encode([f"1 {word}"])
