"""Rendered chats and tokens of words equal those of transformers."""

from collections import Counter

import pytest

transformers = pytest.importorskip("transformers")

from gpt2_jax.data.examples.chat import ChatTemplate
from gpt2_jax.data.examples.encode import Encoder, Limits
from gpt2_jax.data.examples.labels import Labels
from gpt2_jax.data.examples.records import Dialogue
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.trained_tokenizer import trained_tokenizer
from tests import tools
from tests.data.examples.test_chat import MARKED, MESSAGES, TOKENS

pytestmark = pytest.mark.peers

TEXTS = [tools.make_text(400, seed=i) for i in range(20)]
WORDS = [["The", "re-sidual", "x!y", "\u00a0", "STREAM"], ["gâte", "😂", "norms"], ["layer"]]


def both(tmp_path, name, **tokens):
    """Returns our tokenizer and the same one in transformers."""
    mine = trained_tokenizer(name, "peers", lambda: TEXTS)
    (tmp_path / "tokenizer.json").write_bytes(mine.content)
    path = str(tmp_path / "tokenizer.json")
    return PieceEncoder(mine), transformers.PreTrainedTokenizerFast(tokenizer_file=path, **tokens)


def test_chat_equals_apply_chat_template(tmp_path):
    pieces, theirs = both(tmp_path, "bpe:300", **TOKENS)
    theirs.chat_template = MARKED
    messages = [{**m, "content": m["content"] + " <b> é😂"} for m in MESSAGES]
    expected = theirs.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    encoder = Encoder("sft", pieces, Labels(()), Limits((999,)), ChatTemplate(MARKED, TOKENS))
    ((_, columns),) = encoder.encode([Dialogue(messages, None, "w")], Counter())
    assert columns["inputs"].tolist() == expected["input_ids"]
    assert columns["learn"].tolist() == expected["assistant_masks"]
    assert 0 < columns["learn"].sum() < len(columns["learn"])


def test_words_equal_those_of_the_fast_tokenizer(tmp_path):
    pieces, theirs = both(tmp_path, "wordpiece:90", unk_token="[UNK]")
    expected = theirs(WORDS, is_split_into_words=True, add_special_tokens=False)
    for n, (ids, words) in enumerate(pieces.encode_words(WORDS)):
        assert ids.tolist() == expected["input_ids"][n]
        assert words.tolist() == expected.word_ids(n)


@pytest.mark.parametrize("name", ["bpe:300", "wordpiece:90"])
def test_frame_equals_that_of_the_tokenizer(tmp_path, name):
    pieces, theirs = both(tmp_path, name)
    frame, (a,) = pieces.frame, pieces.tokenizer.encode(["the"])
    pair = [*frame.pair_prefix, *a, *frame.middle, *a, *frame.suffix]
    assert pair == theirs("the", "the")["input_ids"]
    assert [*frame.prefix, *a, *frame.single_suffix] == theirs("the")["input_ids"]
