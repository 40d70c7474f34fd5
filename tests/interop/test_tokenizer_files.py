"""Tokenizers imported as transformers loads them, and exported tokenizers."""

import json

import pytest
import tokenizers as library

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.data.tokenizer_protocol import SideFrame
from gpt2_jax.errors import UserError
from gpt2_jax.interop.tokenizer_files import byte_level, find_tokenizer, write_tokenizer
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


BART = {"model_type": "bart", "eos_token_id": 2, "decoder_start_token_id": 2}
BART |= {"forced_eos_token_id": 2}


def bart_files(generation):
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    roberta |= {"trim_offsets": True, "add_prefix_space": False}
    content = tokenizers.bpe(ends=("<s>", "<pad>", "</s>"), post_processor=roberta)
    content["model"]["vocab"]["a"] = len(content["model"]["vocab"])
    return {"tokenizer.json": content, "config.json": BART, **generation}


@pytest.mark.parametrize(
    ("generation", "frame"),
    [
        ({}, SideFrame((0,), (2,), None, 2)),
        ({"generation_config.json": {"forced_bos_token_id": 0}}, SideFrame((0,), (2,), 0, None)),
        ({"generation_config.json": {"forced_bos_token_id": 5}}, SideFrame((0,), (2,), 5, None)),
    ],
)
def test_targets_of_an_encoder_decoder(tmp_path, generation, frame):
    name = find(tmp_path, bart_files(generation))
    tokenizer = load_tokenizer(name)
    assert tokenizer.specials.start == 2 and tokenizer.specials.bos == 0
    assert tokenizer.side_frame == frame
    (ids,) = tokenizer.encode(["the river bends"])
    framed = frame.around(ids)
    assert framed.tolist() == [0, *ids.tolist(), 2]
    assert frame.cut(framed, 4).tolist() == [0, *ids.tolist()[:2], 2]
    assert tokenizer.decode_bytes([1, 2, *framed.tolist()]) == b"the river bends"
    assert library.Tokenizer.from_file(name).encode("the river bends").ids == framed.tolist()
    (tmp_path / "out").mkdir()
    write_tokenizer(name, 12, tmp_path / "out")
    assert "token_id" not in (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("forced", [None, 256])
def test_equivalent_tokenizer_of_an_encoder_decoder(tmp_path, forced):
    fields = {"decoder_start_token_id": 256, "eos_token_id": 256, "forced_eos_token_id": forced}
    config = BART | fields
    files = {"tokenizer.json": byte_level("bytes"), "config.json": config}
    found = find(tmp_path, files)
    if forced is None:
        assert found == "bytes"
    else:
        tokenizer = load_tokenizer(found)
        assert tokenizer.side_frame == SideFrame((), (256,), None, 256)
        assert tokenizer.specials.start == 256
