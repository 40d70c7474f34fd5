"""An imported BART has the ids, losses and texts of transformers' tokenizer and model."""

import itertools
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.bart.modeling_bart import shift_tokens_right

from gpt2_jax.config import to_json
from gpt2_jax.data.examples.encode import Encoder, Limits
from gpt2_jax.data.examples.labels import Labels
from gpt2_jax.data.examples.records import Pair
from gpt2_jax.data.examples.store import examples_in_memory
from gpt2_jax.data.layout.assemble import Assembler, Row
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.saved_tokenizer import save_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.data.trained_tokenizer import trained_tokenizer
from gpt2_jax.evaluate.translate_lines import translate_lines
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.heads import LM
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_run
from tests import tools

pytestmark = pytest.mark.peers

START, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
PARTS = ("the a old small", "dog cats house street river", "sees crosses finds loves")
TEXTS = [
    "the old dog sees a small house",
    "a river crosses the street",
    "Straße, naïve café and 日本",
    "two   spaces\tand a tab",
    "the <s> dog </s> sees <mask>",
    "cats",
]
TARGETS = ["a small house", "the river", "dogs of 日本", "tabs", "</s> sees", "the old cats love a"]


def write_tokenizer(folder, files):
    """Writes the files of a byte-level BPE with BART's special tokens; returns its tokenizer."""
    folder.mkdir()
    trained = tokenizers.ByteLevelBPETokenizer()
    sentences = [" ".join(words) for words in itertools.product(*(p.split() for p in PARTS))]
    special = [START, PAD, END, UNKNOWN, "<mask>"]
    trained.train_from_iterator(sentences * 5, 330, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BartTokenizer"}')
    theirs = transformers.BartTokenizer.from_pretrained(folder)
    if files == "tokenizer.json":
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
        theirs.save_pretrained(folder)
    return theirs


def random_bart(size, **generation):
    torch.manual_seed(4)
    layers = {f"{tower}_layers": 2 for tower in ("encoder", "decoder")}
    sizes = {f"{tower}_{name}": n for tower in ("encoder", "decoder") for name, n in
             (("ffn_dim", 48), ("attention_heads", 2))}  # fmt: skip
    config = transformers.BartConfig(
        vocab_size=size, d_model=32, max_position_embeddings=96, init_std=0.3, **layers, **sizes
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    model.final_logits_bias[0, config.eos_token_id] = 2.0
    model.final_logits_bias[0, config.pad_token_id] = 4.0  # would often be the best
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return model


def generated(model, tokenizer, n_beams, **changes):
    """Returns the texts that transformers generates, one source at a time."""
    no_padding = {"bad_words_ids": [[model.config.pad_token_id]], "renormalize_logits": True}
    out = []
    for text in TEXTS:
        batch = tokenizer([text], return_tensors="pt", split_special_tokens=True)
        ids = model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=n_beams,
            **({"early_stopping": "never"} if n_beams > 1 else {}),
            max_new_tokens=int(1.5 * batch["input_ids"].shape[1]) + 10,
            do_sample=False,
            **no_padding,
            **changes,
        )
        text = tokenizer.decode(ids[0], skip_special_tokens=True)
        out.append(" ".join(text.strip().splitlines()))
    return out


@pytest.mark.parametrize("n_beams", [1, 5])
@pytest.mark.parametrize(
    ("files", "generation"),
    [
        ("tokenizer.json", {"forced_bos_token_id": 0}),
        ("vocab.json", {}),
        ("vocab.json", {"forced_bos_token_id": 5, "forced_eos_token_id": None}),
    ],
)
def test_texts_and_export(tmp_path, files, generation, n_beams):
    tokenizer = write_tokenizer(tmp_path / "theirs", files)
    model = random_bart(len(tokenizer), **generation)
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    want = generated(model, tokenizer, n_beams)
    assert len(set(want)) > 4
    for other in ({"decoder_start_token_id": 0}, {"forced_bos_token_id": 7}):
        assert generated(model, tokenizer, n_beams, **other) != want
    assert list(translate_lines(str(tmp_path / "run"), None, iter(TEXTS), n_beams)) == want
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert generated(again, loaded, n_beams) == want
    written = [tmp_path / "out" / name for name in ("config.json", "generation_config.json")]
    for fields in (json.loads(path.read_text()) for path in written):
        ids = {name: i for name, i in fields.items() if name.endswith("token_id")}
        assert ids == {name: getattr(model.generation_config, name) for name in ids}
        assert len(ids) >= 4


def test_losses(tmp_path):
    """What the decoder reads and predicts is `shift_tokens_right` of labels, and the labels."""
    tokenizer = write_tokenizer(tmp_path / "theirs", "vocab.json")
    model = random_bart(len(tokenizer))
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    run = open_run(str(tmp_path / "run"), devices=1)
    pieces = PieceEncoder(load_tokenizer(run.config.data.tokenizer))
    encoder = Encoder("translate", pieces, Labels(()), Limits((96, 96)))
    pairs = [Pair(a, (b,), "here") for a, b in zip(TEXTS, TARGETS, strict=True)]
    columns = [found for _, found in encoder.encode(pairs, Counter())]
    examples = examples_in_memory("translate", columns, pairs)
    rows = [Row((i,), 0) for i in range(len(pairs))]
    plain = {"return_tensors": "pt", "padding": True, "split_special_tokens": True}
    given, labels = tokenizer(TEXTS, **plain), tokenizer(TARGETS, **plain)["input_ids"]
    sizes = given["input_ids"].shape[1], labels.shape[1]
    batch = Assembler(examples, pieces.specials).batch(rows, sizes)
    labels = labels.masked_fill(labels == model.config.pad_token_id, -100)
    shifted = shift_tokens_right(labels, model.config.pad_token_id, 2)
    real = batch.weights_BT > 0
    assert batch.source.ids_BT.tolist() == given["input_ids"].tolist()
    assert batch.target.ids_BT[real].tolist() == shifted[real].tolist()
    assert np.where(real, batch.targets_BT, -100).tolist() == labels.tolist()
    logits = jax.jit(run.model_def.bind(run.params).__call__)(batch.target, source=batch.source)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets_BT[..., None], -1)
    with torch.no_grad():
        want = model(**given, labels=labels).loss.item()
    np.testing.assert_allclose(-chosen[..., 0][real].mean(), want, rtol=1e-5)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_texts_of_our_models(tmp_path, tokenizer):
    """An exported tokenizer frames sources as in training, and targets start alike."""
    if tokenizer != "bytes":
        save_tokenizer(tmp_path, trained_tokenizer(tokenizer, "bart", lambda: TEXTS * 9))
        tokenizer = str(tmp_path / "tokenizer.json")
    size = load_tokenizer(tokenizer).size
    config = tools.tiny(
        model__architecture="encoder_decoder",
        model__vocab_size=size,
        model__n_positions=96,
        data__tokenizer=tokenizer,
        data__seq_len=96,
        placement__preset="post_ln",
        placement__positions="sinusoidal_halves",
    )
    model_def = define_model(config.model, config.placement, head=LM)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(to_json(config))
    save_params(run / "weights", tools.noisy(model_def.init(jax.random.key(0)), 0.5))
    export_model(str(run), str(tmp_path / "out"))
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    want = generated(theirs, loaded, 1)
    assert len(set(want)) > 2
    assert list(translate_lines(str(run), None, iter(TEXTS), 1)) == want
