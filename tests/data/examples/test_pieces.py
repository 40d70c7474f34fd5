"""Special ids, frames, words and characters of tokens."""

import json

import numpy as np
import pytest

from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.json_tokenizer import JsonTokenizer
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.saved_tokenizer import find_saved_tokenizer, save_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.data.trained_tokenizer import _chunks, trained_tokenizer
from gpt2_jax.errors import UserError
from tests import tools
from tests.data import tokenizers

TEXTS = [tools.make_text(400, seed=i) for i in range(20)]


def trained(name, fingerprint="a"):
    return trained_tokenizer(name, fingerprint, lambda: TEXTS)


def encoder(content):
    return PieceEncoder(JsonTokenizer("t.json", json.dumps(content).encode()))


@pytest.mark.parametrize("name", ["bpe:300", "wordpiece:90"])
def test_trained_tokenizers_decode_what_they_encode(name):
    tokenizer = trained(name)
    text = "the residual stream reads depth"
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode_bytes(ids).decode().strip() == text
    assert tokenizer.size <= int(name.split(":")[1]) and len(ids) < len(text)
    assert tokenizer.name == name


def test_bpe_represents_every_text():
    tokenizer = trained("bpe:300")
    text = "Zürich 😂\n\u2028"
    assert tokenizer.decode_bytes(tokenizer.encode([text])[0]).decode() == text


def test_special_tokens_in_a_text_are_plain_text():
    tokenizer = trained("bpe:300")
    special = PieceEncoder(tokenizer).specials
    assert not set(tokenizer.encode(["<s> a </s>"])[0].tolist()) & special.all


def test_training_is_the_same_in_another_process(tmp_path):
    code = (
        "from tests.data.examples.test_pieces import trained\n"
        "for n in ('bpe:300', 'wordpiece:90'): print(trained(n, 'other').fingerprint)"
    )
    for seed, threads in (("1", "1"), ("2", "4")):
        extra = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        cache = {"XDG_CACHE_HOME": str(tmp_path / seed)}
        done = tools.run("-c", code, tmp=tmp_path, **extra, **cache)
        assert done.stdout.split() == [trained(n).fingerprint for n in ("bpe:300", "wordpiece:90")]


def test_specials_of_trained_tokenizers():
    bpe = PieceEncoder(trained("bpe:300")).specials
    assert (bpe.pad, bpe.bos, bpe.eos, bpe.mask, bpe.cls, bpe.sep) == (0, 1, 2, 3, 1, 2)
    word = PieceEncoder(trained("wordpiece:90")).specials
    assert (word.pad, word.cls, word.bos, word.sep, word.eos, word.mask) == (0, 2, 2, 3, 3, 4)
    assert word.all == {0, 1, 2, 3, 4}


def test_tokenizers_without_special_tokens_use_end_of_text():
    special = PieceEncoder(load_tokenizer("gpt2")).specials
    assert special.pad == special.bos == special.eos == 50256
    assert (special.cls, special.sep, special.mask) == (None, None, None)
    frame = PieceEncoder(load_tokenizer("gpt2")).frame
    assert (frame.prefix, frame.single_suffix, frame.middle) == ((), (), (50256,))


def test_frame_is_that_of_the_post_processor():
    frame = PieceEncoder(trained("bpe:300")).frame
    assert (frame.prefix, frame.single_suffix) == ((1,), (2,))
    assert (frame.pair_prefix, frame.middle, frame.suffix) == ((1,), (2,), (2,))
    roberta = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 1],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    content = tokenizers.bpe(ends=("<s>", "</s>"), post_processor=roberta)
    content["model"]["vocab"]["a"] = len(content["model"]["vocab"])
    frame = encoder(content).frame
    assert (frame.pair_prefix, frame.middle, frame.suffix) == ((0,), (1, 1), (1,))
    assert frame.second_type == 0
    frame = encoder(tokenizers.wordpiece()).frame  # no post-processor, [SEP] only
    assert (frame.prefix, frame.middle, frame.suffix) == ((), (1,), (1,))


@pytest.mark.parametrize(
    "pieces",
    [PieceEncoder(load_tokenizer("bytes")), PieceEncoder(load_tokenizer("gpt2")), "bpe:300"],
    ids=["bytes", "gpt2", "bpe"],
)
def test_characters_of_tokens(pieces):
    pieces = PieceEncoder(trained(pieces)) if isinstance(pieces, str) else pieces
    text = "the Zürich 😂 stream"
    (found,) = pieces.encode([text])
    assert found.ids.tolist() == pieces.tokenizer.encode([text])[0].tolist()
    assert found.starts[0] == 0 and found.ends[-1] == len(text)
    covered = np.zeros(len(text), int)
    for start, end in zip(found.starts, found.ends, strict=True):
        assert end > start
        covered[start:end] += 1
    assert (covered > 0).all()
    at = text.index("😂")
    assert any(s <= at < e for s, e in zip(found.starts, found.ends, strict=True))


def test_id_tokenizer_has_no_characters():
    with pytest.raises(UserError, match=r"ids:10 does not say where"):
        PieceEncoder(load_tokenizer("ids:10")).encode(["1 2"])


def test_words_of_tokens():
    pieces = encoder(tokenizers.wordpiece())
    ((ids, words),) = pieces.encode_words([["the", "rivers", "Bends", "x"]])
    assert ids.tolist() == [2, 3, 4, 5, 0] and words.tolist() == [0, 1, 1, 2, 3]


def test_space_before_a_word_belongs_to_it():
    pieces = encoder(tokenizers.bpe())
    ((ids, words),) = pieces.encode_words([["the", "ribs", "bends", "s", "river"]])
    text = [pieces.tokenizer.token(i) for i in ids.tolist()]
    by_word = ["".join(t for t, w in zip(text, words, strict=True) if w == k) for k in range(5)]
    assert by_word == ["the", "Ġribs", "Ġbends", "Ġs", "Ġriver"]
    assert "Ġ" in text  # a token of its own


def test_word_without_a_token():
    content = tokenizers.wordpiece()
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "-"}, "content": ""}
    ((ids, words),) = encoder(content).encode_words([["the", "--", "river", "-"]])
    assert ids.tolist() == [2, 3] and words.tolist() == [0, 2]


def test_starts_of_words():
    pieces = encoder(tokenizers.wordpiece())
    assert np.flatnonzero(~pieces.starts_word).tolist() == [4]  # ##s
    pieces = encoder(tokenizers.bpe())
    starting = [pieces.tokenizer.token(i) for i in np.flatnonzero(pieces.starts_word)]
    assert starting == ["Ġ", "Ġr", "Ġriv", "Ġben"]


def test_rendered_chats_have_special_tokens():
    pieces = PieceEncoder(trained("bpe:300"))
    found = pieces.encode_specials("<s>the</s>")
    assert (
        found.ids[0] == 1 and found.ids[-1] == 2 and (found.starts[-1], found.ends[-1]) == (6, 10)
    )
    gpt2 = PieceEncoder(load_tokenizer("gpt2")).encode_specials("the<|endoftext|>")
    assert gpt2.ids.tolist() == [1169, 50256] and gpt2.ends.tolist() == [3, 16]


@pytest.mark.parametrize(
    "name, message",
    [
        ("bpe", "needs a vocabulary size, as in bpe:4000"),
        ("bpe:x", "needs a vocabulary size"),
        ("bpe:100", "needs a vocabulary size of at least 261"),
        ("wordpiece:3", "needs a vocabulary size of at least 10"),
    ],
)
def test_bad_names_are_one_line_errors(name, message):
    with pytest.raises(UserError, match=message):
        trained(name)


def test_long_texts_are_trained_on_in_chunks():
    text = "".join(f"{line}\n" for line in TEXTS * 40)
    chunks = list(_chunks([text, "", "a" * 9000]))
    assert "".join(chunks) == text + "a" * 9000 and 10 < len(chunks) < 100
    assert all(chunk.endswith("\n") for chunk in chunks[:-3])


def test_training_without_text_is_an_error():
    with pytest.raises(UserError, match="no text to train the tokenizer on"):
        trained_tokenizer("bpe:300", "none", list)


def test_trained_tokenizer_needs_a_corpus():
    with pytest.raises(UserError, match=r"data\.tokenizer=bpe:300 is trained on data\.source"):
        load_tokenizer("bpe:300")


def test_plain_corpus_with_a_trained_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[0] * 5)
    (tmp_path / "b.txt").write_text(TEXTS[1])
    paths = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    corpus, tokenizer = open_corpus(*paths, "wordpiece:50", 0.0)
    assert corpus.manifest.tokenizer["name"] == "wordpiece:50"
    save_tokenizer(tmp_path, tokenizer)
    saved = find_saved_tokenizer(tmp_path, "wordpiece:50", tokenizer.fingerprint)
    assert saved == str(tmp_path / "tokenizer.json")
    again, _ = open_corpus(*paths, saved, 0.0)
    assert again.content_hash() == corpus.content_hash()
