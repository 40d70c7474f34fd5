"""An imported Marian has the ids, text and translations of transformers' MarianTokenizer."""

import io
import itertools
import json
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

from gpt2_jax.data.examples.encode import Encoder, Limits
from gpt2_jax.data.examples.labels import Labels
from gpt2_jax.data.examples.records import Pair
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.evaluate.translate_lines import translate_lines
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.interop.tokenizer_files import find_tokenizer

pytestmark = pytest.mark.peers

WORDS = {
    "source": ("the a old small", "dog cats house street river", "sees crosses finds loves"),
    "target": ("der die the alte", "Straße Häuser Hündin Flüsse", "überquert sieht findet liebt"),
}
TEXTS = [
    "the old dog sees a small house",
    "die Straße überquert das Haus",  # as a source: characters that only targets have
    "  two   spaces,\ttabs \u3000 and others ",
    "naïve cafe\u0301 ﬁnds ½ of ２ ① Ⅷ",  # composed and compatible characters
    "a\u0301\u0323\u0300 dog, 日本 and 😂😂",
    ">>deu<< the river",
    "the >>deu<< river",
    "===== ----------- ......",
    "\u2581the\u2581dog",
    "ß",
    " ",
    "",
]
KINDS = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "bytes": {"byte_fallback": True, "vocab_size": 400},
    "symbols": {"user_defined_symbols": "dog,=="},
}


def trained(side, settings):
    """Returns a SentencePiece model of made-up sentences."""
    sentences = itertools.product(*(words.split() for words in WORDS[side]))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(words) for words in [*sentences] * 20),
        model_writer=written,
        minloglevel=2,
        hard_vocab_limit=False,
        **{"vocab_size": 100, **settings},
    )
    return written.getvalue()


def write_tokenizer(folder, kind):
    """Writes a Marian's files; vocab.json lacks some pieces of each side."""
    folder.mkdir()
    pieces = []
    for side in WORDS:
        model = trained(side, KINDS[kind])
        (folder / f"{side}.spm").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces += [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    known = [piece for i, piece in enumerate(sorted(set(pieces))) if i % 4]
    tokens = ["</s>", "<unk>", *known, ">>deu<<", "<pad>"]
    vocab = {piece: i for i, piece in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    settings = {"source_lang": "eng", "target_lang": "deu"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocab)


def same_ids(tokenizer, theirs):
    """Checks both sides of pairs and returns the ids of all texts, by side."""
    encoder = Encoder("translate", PieceEncoder(tokenizer), Labels(()), Limits((200, 200)))
    pairs = [Pair(text, (text,), "here") for text in TEXTS]
    columns = [found for _, found in encoder.encode(pairs, Counter())]
    sources, targets = ([one[side].tolist() for one in columns] for side in WORDS)
    assert sources == theirs(TEXTS)["input_ids"]
    assert targets == theirs(text_target=TEXTS)["input_ids"]
    return sources, targets


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text(tmp_path, kind):
    size = write_tokenizer(tmp_path / "theirs", kind)
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "marian"}')
    (tmp_path / "run").mkdir()
    name, _ = find_tokenizer(tmp_path / "theirs", size, tmp_path / "run")
    ours = load_tokenizer(name)
    sources, targets = same_ids(ours, theirs)
    assert sources[0] != targets[0] and sources[1] != targets[1]
    assert 1 in sources[0] and 1 in targets[1] and sources[5][0] == size - 2
    assert (ours.size, ours.end_of_text) == (size, theirs.eos_token_id)
    rng = np.random.default_rng(0)
    for ids in (*sources, *targets, *rng.integers(0, size, (200, 12)).tolist()):
        want = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode_bytes(ids).decode() == want


def random_marian(size, forced_end):
    torch.manual_seed(2)
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    config = transformers.MarianConfig(
        vocab_size=size,
        d_model=32,
        max_position_embeddings=64,
        pad_token_id=size - 1,
        eos_token_id=0,
        bos_token_id=0,
        decoder_start_token_id=size - 1,
        forced_eos_token_id=forced_end,
        scale_embedding=True,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        decoder_attention_heads=2,
        **layers,
    )
    model = transformers.MarianMTModel(config).eval()
    for name, value in model.named_parameters():
        if value.ndim > 1 and "positions" not in name:
            value.data *= 12.0
    model.final_logits_bias[0, 0] = 2.0
    model.final_logits_bias[0, -1] = 4.0  # padding would often be the best
    return model


def translations(model, tokenizer, texts):
    """Returns the translations of transformers, one text at a time."""
    no_padding = {"bad_words_ids": [[model.config.pad_token_id]], "renormalize_logits": True}
    out = []
    for text in texts:
        batch = tokenizer([text], return_tensors="pt")
        ids = model.generate(
            **batch,
            num_beams=5,
            early_stopping="never",
            max_new_tokens=int(1.5 * batch["input_ids"].shape[1]) + 10,
            **no_padding,
        )
        out.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return out


@pytest.mark.parametrize("forced_end", [None, 0])
def test_translations_and_export(tmp_path, forced_end):
    size = write_tokenizer(tmp_path / "theirs", "unigram")
    model = random_marian(size, forced_end)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    texts = [text for text in TEXTS if text.strip()]
    want = translations(model, tokenizer, texts)
    assert len(set(want)) > 5
    assert list(translate_lines(str(tmp_path / "run"), None, iter(texts))) == want
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(again, transformers.MarianTokenizer) and again.target_lang == "deu"
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    exported = transformers.MarianMTModel.from_pretrained(tmp_path / "out")
    assert exported.generation_config.decoder_start_token_id == size - 1
    assert exported.generation_config.forced_eos_token_id == forced_end
    assert exported.generation_config.bad_words_ids == [[size - 1]]
