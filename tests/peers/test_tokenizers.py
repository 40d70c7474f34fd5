"""Imported tokenizers have the ids, end-of-text token and decoded text of transformers."""

import json

import pytest

transformers = pytest.importorskip("transformers")

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.evaluate.text_stream import continuation
from gpt2_jax.interop.tokenizer_files import find_tokenizer
from tests import tools
from tests.data import tokenizers
from tests.interop import bert_tokenizers, tokenizer_cases

pytestmark = pytest.mark.peers

FOUND = tools.ROOT.parent / "shared" / "faults" / "tokenizers"
# Only characters in the small vocabularies: others are an error.
LETTERS = ["the river bends", "in the end the verbs rest " * 3, "", "  tends"]
TEXTS = ["the river bends", "The sea meets the town, and the river knows it. " * 3, "", " a\n b"]


@pytest.mark.parametrize("name", tokenizer_cases.CASES)
def test_imported_tokenizer_has_the_ids_of_transformers(tmp_path, name):
    files, ids, end = tokenizer_cases.CASES[name]
    folder = tokenizer_cases.write(tmp_path / "theirs", files)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(tokenizer_cases.TEXT)["input_ids"] == ids and theirs.eos_token_id == end
    (tmp_path / "run").mkdir()
    ours = load_tokenizer(find_tokenizer(folder, 30, tmp_path / "run")[0])
    for text in LETTERS:
        assert ours.encode([text])[0].tolist() == theirs(text)["input_ids"]
    assert ours.end_of_text == end


def pairs(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    if "dropout" in content["model"]:
        content["model"]["dropout"] = None
    (path.parent / "whole.json").write_text(json.dumps(content), encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path.parent / "whole.json"))
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    return load_tokenizer(str(path)), theirs


@pytest.mark.parametrize("name", [*tokenizers.UNFIT, *(p.name for p in FOUND.glob("*.json"))])
def test_tokenizer_has_the_ids_of_transformers_without_truncation(tmp_path, name):
    content = tokenizers.UNFIT.get(name)
    given = json.dumps(content) if content else (FOUND / name).read_text(encoding="utf-8")
    (tmp_path / "t.json").write_text(given, encoding="utf-8")
    ours, theirs = pairs(tmp_path / "t.json")
    for text in LETTERS if content else TEXTS:
        want = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode([text])[0].tolist() == want


@pytest.mark.parametrize("make", [tokenizers.metaspace, tokenizers.wordpiece, tokenizers.bpe])
def test_continuations_decode_as_in_transformers(tmp_path, make):
    (tmp_path / "t.json").write_text(json.dumps(make()), encoding="utf-8")
    ours, theirs = pairs(tmp_path / "t.json")
    prompt = theirs("the river")["input_ids"]
    for new in ([3, 4], [5, 2], [4, 5, 5]):
        whole = theirs.decode([*prompt, *new], clean_up_tokenization_spaces=False)
        assert "the river" + continuation(ours, prompt, new) == whole


@pytest.mark.parametrize("name", bert_tokenizers.CASES)
def test_tokenizer_files_of_other_encoders(tmp_path, name):
    files, text, ids = bert_tokenizers.CASES[name]
    folder = bert_tokenizers.write(tmp_path / "theirs", files)
    assert transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids
