"""Marian's tokenizer files without `sentencepiece`, whose models a stand-in replaces.

tests/peers compares with transformers and real models.
"""

import json
import sys
from types import SimpleNamespace

import pytest

from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.saved_tokenizer import save_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.interop.tokenizer_files import find_tokenizer, write_tokenizer

VOCAB = {"</s>": 0, "<unk>": 1, "▁the": 2, "▁d": 3, "og": 4, "▁dog": 5, ">>deu<<": 6, "<pad>": 7}
FILES = {
    "source.spm": b"the dog",
    "target.spm": b"the d og",
    "vocab.json": VOCAB,
    "config.json": {"model_type": "marian"},
}


class Words:
    """A model that knows some pieces, and takes the longest at each place."""

    def LoadFromSerializedProto(self, model):
        if not model:
            raise RuntimeError("unk is not defined")
        self.pieces = sorted(model.decode().split(), key=len, reverse=True)

    def encode(self, texts, out_type):
        assert out_type is str
        return [[piece for word in text.split() for piece in self.split(word)] for text in texts]

    def split(self, word, mark="▁"):
        if not word:
            return []
        found = next((piece for piece in self.pieces if word.startswith(piece)), word)
        return [mark + found, *self.split(word[len(found) :], "")]

    def decode_pieces(self, pieces):
        return "".join(pieces)


@pytest.fixture
def installed(monkeypatch):
    module = SimpleNamespace(SentencePieceProcessor=Words)
    monkeypatch.setitem(sys.modules, "sentencepiece", module)


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        if content is not None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / name).write_bytes(raw)
    return folder


def find(tmp_path, files):
    (tmp_path / "run").mkdir()
    return find_tokenizer(write(tmp_path / "theirs", files), 8, tmp_path / "run")[0]


def test_sides_differ_and_share_a_vocabulary(tmp_path, installed):
    tokenizer = load_tokenizer(find(tmp_path, FILES | {"tokenizer.json": {}}))
    pieces, texts = PieceEncoder(tokenizer), ["the dog", ">>deu<<the cat", ""]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == [[2, 5], [6, 2, 1], []]
    assert [ids.tolist() for ids in tokenizer.encode_targets(texts)] == [[2, 3, 4], [6, 2, 1], []]
    assert tokenizer.decode_bytes([7, 2, 1, 3, 4, 0, 99]).decode() == "the dog"
    special = pieces.specials
    assert (special.pad, special.start, special.eos, tokenizer.size) == (7, 7, 0, 8)
    assert special.all == {0, 1, 7} and tokenizer.token(special.eos) == "</s>"
    assert pieces.starts_word.tolist() == [i in (2, 3, 5) for i in range(8)]
    with pytest.raises(UserError, match="does not say where"):
        pieces.encode(["the"])


def test_a_run_keeps_the_tokenizer_and_an_export_its_files(tmp_path, installed):
    settings = {"target_lang": "deu", "added_tokens_decoder": {"6": {"content": ">>deu<<"}}}
    settings["added_tokens_decoder"]["6"]["special"] = True
    config = {"model_type": "marian", "decoder_start_token_id": 9}
    files = FILES | {"tokenizer_config.json": settings, "config.json": config}
    tokenizer = load_tokenizer(find(tmp_path, files))
    assert tokenizer.specials.start == 9 and tokenizer.size == 10
    (tmp_path / "kept").mkdir()
    save_tokenizer(tmp_path / "kept", tokenizer)
    name = str(tmp_path / "kept" / "tokenizer.json")
    assert load_tokenizer(name).fingerprint == tokenizer.fingerprint
    (tmp_path / "out").mkdir()
    assert write_tokenizer(name, 12, tmp_path / "out") == 0
    for file in ("source.spm", "target.spm", "vocab.json"):
        content = (tmp_path / "out" / file).read_bytes()
        assert content == FILES[file] or json.loads(content) == FILES[file]
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "MarianTokenizer" and written["target_lang"] == "deu"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer_config.json": {"separate_vocabs": True}}, "separate_vocabs=true"),
        ({"vocab.json": VOCAB | {"x": 5}}, r"vocab.json must have an id of its own"),
        ({"vocab.json": VOCAB | {"x": "9"}}, r"vocab.json must have an id of its own"),
        ({"special_tokens_map.json": {"pad_token": {"content": "[P]"}}}, r"token '\[P\]'"),
        ({"added_tokens.json": {"▁dog": 5}}, "added token '▁dog'"),
        ({"target.spm": None}, "target.spm"),
        ({"source.spm": b""}, "source_spm of .* is not a SentencePiece model"),
    ],
)
def test_invalid_files_are_named(tmp_path, installed, change, named):
    with pytest.raises(UserError, match=named):
        find(tmp_path, FILES | change)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="requires sentencepiece; pip install sentencepiece"):
        find(tmp_path, FILES)


def test_a_damaged_file_is_named(tmp_path, installed):
    name = find(tmp_path, FILES)
    fields = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    for change in ({"source_spm": "?"}, {"vocab": []}, {"pad_token": "x"}, {"settings": None}):
        (tmp_path / "run" / "tokenizer.json").write_text(json.dumps(fields | change))
        with pytest.raises(UserError, match="damaged"):
            load_tokenizer(name)
