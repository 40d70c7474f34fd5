"""Tokenizers imported as transformers loads them, and exported tokenizers."""

import json

import pytest
import tokenizers as library

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.interop.tokenizer_files import find_tokenizer, write_tokenizer
from tests.data import tokenizers
from tests.interop import tokenizer_cases


def find(tmp_path, files):
    folder = tokenizer_cases.write(tmp_path / "theirs", files)
    (tmp_path / "run").mkdir()
    return find_tokenizer(folder, 30, tmp_path / "run")[0]


@pytest.mark.parametrize("name", tokenizer_cases.CASES)
def test_tokenizer_settings_are_applied(tmp_path, name):
    """The expected ids are those of transformers; tests/peers verifies them."""
    files, ids, end = tokenizer_cases.CASES[name]
    tokenizer = load_tokenizer(find(tmp_path, files))
    assert tokenizer.encode([tokenizer_cases.TEXT])[0].tolist() == ids
    assert tokenizer.end_of_text == end


def test_end_of_text_from_config_json(tmp_path):
    files = {"tokenizer.json": tokenizers.wordpiece(), "config.json": {"eos_token_id": 5}}
    assert load_tokenizer(find(tmp_path, files)).end_of_text == 5


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (tokenizer_cases.settings(tokenizer_cases.PLAIN, eos_token="<new>"), "eos_token '<new>'"),
        (tokenizer_cases.settings(tokenizer_cases.PLAIN, eos_token=["</s>"]), "eos_token"),
        (tokenizer_cases.settings(tokenizer_cases.PLAIN, added_tokens_decoder=[1]), "added_tokens"),
        (
            tokenizer_cases.settings(
                tokenizer_cases.PLAIN, added_tokens_decoder={"9" * 5000: {"content": "x"}}
            ),
            "added token 'x'",
        ),
        (tokenizer_cases.OLD | {"added_tokens.json": {"river": "x"}}, "added token 'river'"),
        (tokenizer_cases.OLD | {"merges.txt": "t h e\n"}, "merges.txt"),
        (tokenizer_cases.OLD | {"merges.txt": "t q\n"}, "theirs"),
        ({"tokenizer.json": {"model": []}}, "theirs"),
        ({"tokenizer.json": tokenizer_cases.PLAIN, "added_tokens.json": "[]"}, "added_tokens.json"),
    ],
)
def test_invalid_tokenizer_files_are_named(tmp_path, files, named):
    with pytest.raises(UserError, match=named):
        find(tmp_path, files)


def test_exported_tokenizer(tmp_path):
    content = tokenizers.UNFIT["both"] | {"model": tokenizers.UNFIT["dropout"]["model"]}
    content["added_tokens"] = [content["added_tokens"][0] | {"end_of_text": True}]
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "out").mkdir()
    assert write_tokenizer(str(tmp_path / "t.json"), 12, tmp_path / "out") == 0
    written = (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")
    assert "end_of_text" not in written
    got = library.Tokenizer.from_str(written).encode(tokenizer_cases.TEXT).ids
    assert got == tokenizer_cases.IDS
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["eos_token"] == "<|endoftext|>"
