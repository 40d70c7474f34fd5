"""Tokenizer files of BERT and RoBERTa, imported as transformers loads them, and exported."""

import json

import pytest
import tokenizers as library

from gpt2_jax.data.json_tokenizer import JsonTokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.interop.families.bert import BERT_FAMILY, ROBERTA_FAMILY
from gpt2_jax.interop.special_tokens import special_ids, special_tokens
from gpt2_jax.interop.tokenizer_files import find_tokenizer, vocabulary, write_tokenizer
from tests.data import tokenizers
from tests.interop import bert_tokenizers


def find(tmp_path, files):
    folder = bert_tokenizers.write(tmp_path / "theirs", files)
    (tmp_path / "run").mkdir()
    return find_tokenizer(folder, 60, tmp_path / "run")[0]


@pytest.mark.parametrize("name", bert_tokenizers.CASES)
def test_tokenizer_files_are_read_as_in_transformers(tmp_path, name):
    """The expected ids are those of transformers; tests/peers verifies them."""
    files, text, ids = bert_tokenizers.CASES[name]
    found = find(tmp_path, files)
    assert load_tokenizer(found).encode([text])[0].tolist() == ids[1:-1]
    assert library.Tokenizer.from_file(found).encode(text).ids == ids


def test_second_text_has_type_1(tmp_path):
    files, *_ = bert_tokenizers.CASES["vocab.txt"]
    pair = library.Tokenizer.from_file(find(tmp_path, files)).encode("river", "bends")
    assert pair.tokens == ["[CLS]", "river", "[SEP]", "bend", "##s", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("[PAD]\n[UNK]\nriver\n", r"vocab.txt does not have the token '\[CLS\]'"), ("", "vocab.txt")],
)
def test_invalid_vocab_txt_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        find(tmp_path, {"config.json": {"model_type": "bert"}, "vocab.txt": text})


@pytest.mark.parametrize("name", ["vocab.txt", "cased", "tokenizer.json"])
def test_exported_wordpiece_is_read_again(tmp_path, name):
    files, text, ids = bert_tokenizers.CASES[name]
    found = find(tmp_path, files)
    (tmp_path / "out").mkdir()
    write_tokenizer(found, 12, tmp_path / "out", special_tokens(vocabulary(found)))
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "BertTokenizer" and settings["mask_token"] == "[MASK]"
    assert settings["do_lower_case"] == (name != "cased")
    (tmp_path / "out" / "config.json").write_text('{"model_type": "bert"}')
    for step in ("tokenizer.json", "vocab.txt"):
        (tmp_path / step).mkdir()
        again = find_tokenizer(tmp_path / "out", 60, tmp_path / step)[0]
        assert library.Tokenizer.from_file(again).encode(text).ids == ids
        (tmp_path / "out" / "tokenizer.json").unlink(missing_ok=True)  # then reads vocab.txt


def test_ids_of_special_tokens():
    wordpiece = JsonTokenizer("t.json", json.dumps(tokenizers.wordpiece()).encode())
    assert special_ids(BERT_FAMILY, wordpiece, {}) == {"pad_token_id": wordpiece.end_of_text}
    assert special_ids(BERT_FAMILY, wordpiece, {"pad_token_id": 7}) == {"pad_token_id": 7}
    bpe = JsonTokenizer("t.json", json.dumps(tokenizers.bpe(ends=("</s>", "<s>"))).encode())
    want = {"bos_token_id": 1, "eos_token_id": 0}
    assert special_ids(ROBERTA_FAMILY, bpe, {}) == want
    assert special_ids(ROBERTA_FAMILY, load_tokenizer("ids:10"), {}) == dict.fromkeys(want, 9)


def test_a_tokenizer_of_another_kind_has_no_bert_settings(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(tokenizers.bpe()), encoding="utf-8")
    (tmp_path / "out").mkdir()
    write_tokenizer(str(tmp_path / "t.json"), 12, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not (tmp_path / "out" / "vocab.txt").exists()
