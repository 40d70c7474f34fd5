"""Incremental decoding: characters are not split, and stop strings end the text."""

import json

import pytest

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.text_stream import TextStream, continuation
from gpt2_jax.interop.tokenizer_files import byte_level
from tests.data import tokenizers

TEXT = "na\u00efve \u20ac 10 \U0001f600 end\ufffd"


@pytest.fixture(scope="module", params=["bytes", "gpt2", "json"])
def tokenizer(request, tmp_path_factory):
    if request.param != "json":
        return load_tokenizer(request.param)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(byte_level("bytes")))
    return load_tokenizer(str(path))


def pieces(tokenizer, text, stops=()):
    stream = TextStream(tokenizer, stops)
    out = [stream.push(int(i)) for i in tokenizer.encode([text])[0]]
    return [*out, stream.finish()], stream


def test_characters_are_never_split(tokenizer):
    out, stream = pieces(tokenizer, TEXT)
    assert "".join(out) == stream.text == TEXT
    assert sum(map(bool, out)) > 5
    assert not any("\ufffd" in piece for piece in out[:-4])


def test_invalid_bytes_do_not_hold_back_later_text():
    tokenizer = load_tokenizer("bytes")
    stream = TextStream(tokenizer)
    got = [stream.push(i) for i in [0xFF, ord("a"), 0xE2, ord("b")]]
    assert "".join(got) == "\ufffda\ufffdb"
    assert stream.push(0xE2) == "" and stream.finish() == "\ufffd"


def test_stop_string_ends_the_text_and_is_not_part_of_it(tokenizer):
    out, stream = pieces(tokenizer, "one two\n\ndef three", ["\n\ndef", "xyz"])
    assert stream.stopped and "".join(out) == stream.text == "one two"


def test_possible_beginning_of_a_stop_string_is_held_back():
    tokenizer = load_tokenizer("bytes")
    out, stream = pieces(tokenizer, "a\n\nb\n", ["\n\nc"])
    assert out == ["a", "", "", "\n\nb", "", "\n"] and not stream.stopped
    assert stream.text == "a\n\nb\n"


@pytest.mark.parametrize(
    ("content", "new", "text"),
    [
        (tokenizers.metaspace(), [4, 5], " bendss"),
        (tokenizers.metaspace(), [5, 4], "s bends"),
        (tokenizers.wordpiece(), [5, 4], " bendss"),
        (tokenizers.wordpiece(), [4, 5], "s bends"),
        (tokenizers.bpe(prefix_space=True), [20, 2, 8, 8], " bendss"),
    ],
)
def test_continuation_keeps_the_space_after_the_prompt(tmp_path, content, new, text):
    """As transformers decodes `the river` and the new ids together; streamed or not."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(str(path))
    prompt = tokenizer.encode(["the river"])[0].tolist()
    assert continuation(tokenizer, prompt, new) == text
    stream = TextStream(tokenizer, prompt=prompt)
    assert "".join([stream.push(i) for i in new] + [stream.finish()]) == stream.text == text


def test_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="--stop"):
        TextStream(load_tokenizer("bytes"), ["end", ""])
