"""BERT, RoBERTa, Marian and BART have the logits of transformers under padding, in and out."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gpt2_jax import config as configs
from gpt2_jax.data.batch import Tokens
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_run
from tests import tools

pytestmark = pytest.mark.peers

V, T = 97, 9
ENCODER = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
ENCODER |= {"intermediate_size": 40, "max_position_embeddings": 20}
ROBERTA = ENCODER | {"max_position_embeddings": 22, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
LABELS = {"id2label": {i: f"L{i}" for i in range(5)}}
TOWERS = {"vocab_size": V, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3}
TOWERS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40}
TOWERS |= {"decoder_ffn_dim": 40, "max_position_embeddings": 20}
MARIAN = TOWERS | {"pad_token_id": 96, "eos_token_id": 0, "decoder_start_token_id": 96}
MARIAN |= {"forced_eos_token_id": 0}
BART = TOWERS | {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
BART |= {"decoder_start_token_id": 3, "forced_eos_token_id": 3}

POST_LN = {"model__architecture": "encoder", "placement__preset": "post_ln"}
POST_LN |= {"placement__embedding_norm": True, "placement__embedding_multiplier": "1"}

ENCODERS = [
    ("Bert", "Model", ENCODER),
    ("Bert", "Model", ENCODER | {"hidden_act": "relu", "type_vocab_size": 3}),
    ("Bert", "ForMaskedLM", ENCODER),
    ("Bert", "ForMaskedLM", ENCODER | {"tie_word_embeddings": False, "hidden_act": "gelu_new"}),
    ("Bert", "ForTokenClassification", ENCODER | LABELS),
    ("Bert", "ForSequenceClassification", ENCODER | LABELS),
    ("Bert", "ForQuestionAnswering", ENCODER),
    ("Roberta", "Model", ROBERTA),
    ("Roberta", "ForMaskedLM", ROBERTA),
    ("Roberta", "ForTokenClassification", ROBERTA | LABELS),
    ("Roberta", "ForSequenceClassification", ROBERTA | {"pad_token_id": 0}),
    ("Roberta", "ForQuestionAnswering", ROBERTA),
]
SEQ2SEQ = [
    ("MarianMTModel", MARIAN | {"scale_embedding": True, "activation_function": "swish"}),
    (
        "MarianMTModel",
        MARIAN
        | {
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": V,
            "activation_function": "relu",
        },
    ),
    ("BartForConditionalGeneration", BART),
    (
        "BartForConditionalGeneration",
        BART | {"scale_embedding": True, "activation_function": "relu"},
    ),
]


def built(config_class, model_class, fields, seed=0):
    """Returns a model with all trained tensors far from their initial values."""
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields))
    generator = torch.Generator().manual_seed(seed)
    noise = lambda x: 0.2 * torch.randn(x.shape, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(noise(parameter))
        if fields.get("tie_word_embeddings") is False and hasattr(model, "cls"):
            # Not used, but equal in files of earlier versions.
            model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(noise(model.final_logits_bias))
    return model.eval()


def padded(pad, n_types):
    """Returns ids, mask and types (3, T) of sequences of 9, 5 and 2 tokens."""
    random = np.random.default_rng(1)
    mask = (np.arange(T) < np.array([[9], [5], [2]])).astype(np.int32)
    ids = np.where(mask == 1, random.integers(5, 90, (3, T)), pad).astype(np.int32)
    return ids, mask, (random.integers(0, n_types, (3, T)) * mask).astype(np.int32)


def torched(*arrays):
    return [torch.tensor(x, dtype=torch.long) for x in arrays]


def bound(workdir):
    run = open_run(str(workdir), devices=1)
    return run.model_def.bind(run.params)


def assert_same_files(before, after):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (after, before))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].tobytes() == value.tobytes(), name


def load_again(folder, model_class):
    again, info = getattr(transformers, model_class).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return again.eval()


@pytest.mark.parametrize(("family", "end", "fields"), ENCODERS)
def test_encoders(tmp_path, family, end, fields):
    name = family + end
    model = built(f"{family}Config", name, fields)
    n_types = model.config.type_vocab_size
    ids, mask, types = padded(model.config.pad_token_id, n_types)
    outputs = lambda m: encoder_outputs(m, ids, mask, types)
    want = outputs(model)
    other = outputs(built(f"{family}Config", name, fields, seed=1))
    assert all(np.abs(x - y).max() > 0.1 for x, y in zip(want, other, strict=True))
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    assert_same_files(tmp_path / "theirs", tmp_path / "out")
    again = load_again(tmp_path / "out", name)
    assert again.config.id2label == model.config.id2label
    for x, y in zip(outputs(again), want, strict=True):
        np.testing.assert_array_equal(x, y)
    ours = bound(tmp_path / "run")
    hidden = ours.hidden(Tokens(ids, mask, types))
    got = our_outputs(ours, end, hidden, mask)
    for x, y in zip(got, want, strict=True):
        x = np.asarray(x)[..., : y.shape[-1]] if end == "ForMaskedLM" else np.asarray(x)
        real = mask == 1 if y.shape[:2] == mask.shape else slice(None)
        np.testing.assert_allclose(x[real], y[real], atol=1e-4, rtol=0)


def encoder_outputs(model, ids, mask, types):
    """Returns hidden states and pooled vectors, or logits, or those of starts and of ends."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        out = model(**dict(zip(names, torched(ids, mask, types), strict=True)))
    fields = ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")
    return [out[name].numpy() for name in fields if out.get(name) is not None]


def our_outputs(model, end, hidden, mask):
    if end == "ForMaskedLM":
        return [model.logits(hidden)]
    logits = model.logits(hidden, mask)
    if end == "Model":
        return [hidden, logits]
    return [logits[..., 0], logits[..., 1]] if end == "ForQuestionAnswering" else [logits]


@pytest.mark.parametrize(("name", "fields"), SEQ2SEQ)
def test_encoder_decoders(tmp_path, name, fields):
    config = "MarianConfig" if name.startswith("Marian") else "BartConfig"
    model = built(config, name, fields)
    ids, mask, _ = padded(model.config.pad_token_id, 1)
    decoder_ids = np.random.default_rng(2).integers(5, 90, (3, 6)).astype(np.int32)

    def logits(m):
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        with torch.no_grad():
            given = torched(ids, mask, decoder_ids)
            return m(**dict(zip(names, given, strict=True))).logits.numpy()

    want = logits(model)
    assert want.std() > 0.3 and np.abs(want - logits(built(config, name, fields, 1))).max() > 0.3
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    target = Tokens(decoder_ids, np.ones_like(decoder_ids))
    got = jax.jit(bound(tmp_path / "run").__call__)(target, source=Tokens(ids, mask))
    np.testing.assert_allclose(np.asarray(got)[..., :V], want, atol=1e-4, rtol=0)
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    assert_same_files(tmp_path / "theirs", tmp_path / "out")
    again = load_again(tmp_path / "out", name)
    np.testing.assert_array_equal(logits(again), want)
    special = ("pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")
    for field in special:
        assert getattr(again.generation_config, field) == fields[field], field
    generate = lambda m: m.generate(*torched(ids), attention_mask=torched(mask)[0], num_beams=2)
    assert torch.equal(generate(again), generate(model))


OURS = [
    ("BertForTokenClassification", {"task__name": "tag", "head__n_labels": 4, **POST_LN}),
    ("BertForMaskedLM", {"task__name": "mlm", "model__token_types": 2, **POST_LN}),
    (
        "MarianMTModel",
        {"task__name": "translate", "model__n_encoder_layer": 1, **POST_LN}
        | {"model__architecture": "encoder_decoder", "placement__embedding_norm": False}
        | {"placement__positions": "sinusoidal_halves"},
    ),
]
OURS.append(("MarianMTModel", OURS[-1][1] | {"model__tie_head": False}))


@pytest.mark.parametrize(("name", "changes"), OURS)
def test_models_of_ours_load_in_transformers(tmp_path, name, changes):
    config = tools.tiny(**changes, model__vocab_size=16, data__tokenizer="ids:16")
    model_def = define_model(config.model, config.placement, head=head_of(config.task, config.head))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(configs.to_json(config))
    params = tools.noisy(model_def.init(jax.random.key(0)), 0.3)
    save_params(run / "weights", params)
    export_model(str(run), str(tmp_path / "out"))
    theirs = load_again(tmp_path / "out", name)
    ids = np.array([[5, 6, 7, 8], [9, 5, 6, 7]], np.int32)
    given = Tokens(ids, np.ones_like(ids), np.zeros_like(ids))
    ours = model_def.bind(params)
    with torch.no_grad():
        if name == "MarianMTModel":
            want = theirs(*torched(ids), decoder_input_ids=torched(ids)[0]).logits.numpy()
            got = ours(given._replace(types_BT=None), source=given._replace(types_BT=None))
        else:
            want = theirs(*torched(ids)).logits.numpy()
            got = ours.logits(ours.hidden(given))
    got = np.asarray(got)[..., : want.shape[-1]]
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
