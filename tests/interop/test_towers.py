"""BERT, RoBERTa, Marian and BART without torch: round trips, logits, labels and errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt2_jax.api import load_run
from gpt2_jax.data.batch import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.predict import Predictor
from gpt2_jax.interop.convert import to_huggingface
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.families import FAMILIES, family_of
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.heads import LM, HeadSpec
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.train.storage.rundir import RunDirectory
from tests import tools
from tests.interop import towers

CLASSES = [
    (family, f"{family.capitalize()}{end}")
    for family in towers.ENCODERS
    for end in (
        "Model",
        "ForMaskedLM",
        "ForTokenClassification",
        "ForSequenceClassification",
        "ForQuestionAnswering",
    )
]
BERT_NER = ("bert", "BertForTokenClassification")


def encoder(folder, family, name, dtype="float32", tensors=None, **changes):
    """Writes a checkpoint of a class; returns its tensors."""
    tensors = tensors or towers.values(towers.class_shapes(family, name), dtype)
    fields = towers.ENCODERS[family] | {"architectures": [name]}
    if name.endswith("Classification"):
        fields["id2label"] = {str(i): label for i, label in enumerate(towers.LABELS)}
    towers.write(folder, fields | changes, tensors)
    return tensors


def bound(workdir):
    run = open_run(str(workdir), devices=1)
    return run, run.model_def.bind(run.params)


def inputs():
    return Tokens(*(x.astype(np.int32) for x in (towers.IDS, towers.MASK, towers.TYPES)))


def assert_real_tokens_equal(got, want):
    real = towers.MASK == 1
    np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "name"), CLASSES)
def test_encoder_round_trip(tmp_path, family, name, dtype):
    theirs = encoder(tmp_path / "theirs", family, name, jnp.dtype(dtype))
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    export_model(str(tmp_path / "run"), str(tmp_path / "out"), dtype)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        assert again[key].dtype == value.dtype and again[key].shape == value.shape, key
        assert again[key].tobytes() == value.tobytes(), key
    before, after = (
        json.loads((tmp_path / part / "config.json").read_text()) for part in ("theirs", "out")
    )
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("family", towers.ENCODERS)
def test_encoder_computes_what_its_paper_says(tmp_path, family):
    """The hidden states of the oracle, and the pooled vector, under padding."""
    name = f"{family.capitalize()}Model"
    theirs = encoder(tmp_path / "theirs", family, name)
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    run, model = bound(tmp_path / "run")
    assert run.config.model.n_positions == run.config.data.seq_len == towers.T
    w, offset = towers.Weights(theirs), {"bert": 0, "roberta": 2}[family]
    want = towers.encoder_hidden(w, towers.IDS, towers.MASK, towers.TYPES, offset)
    shifted = towers.encoder_hidden(w, towers.IDS, towers.MASK, towers.TYPES, 1)
    assert np.abs(want - shifted).max() > 0.1
    x_BTD = model.hidden(inputs())
    assert_real_tokens_equal(x_BTD, want)
    pooled = np.tanh(w.linear("pooler.dense", want[:, 0]))
    np.testing.assert_allclose(model.logits(x_BTD, towers.MASK), pooled, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", towers.ENCODERS)
def test_heads_compute_the_logits_of_their_class(tmp_path, family):
    heads = {
        "ForMaskedLM": lambda w, x: masked_logits(family, w, x),
        "ForTokenClassification": lambda w, x: w.linear("classifier", x),
        "ForSequenceClassification": lambda w, x: sequence_logits(family, w, x[:, 0]),
        "ForQuestionAnswering": lambda w, x: w.linear("qa_outputs", x),
    }
    for end, head in heads.items():
        theirs = encoder(tmp_path / end, family, f"{family.capitalize()}{end}")
        import_model(str(tmp_path / end), str(tmp_path / f"run{end}"))
        _, model = bound(tmp_path / f"run{end}")
        w, offset = towers.Weights(theirs), {"bert": 0, "roberta": 2}[family]
        x = towers.encoder_hidden(w.at(f"{family}."), towers.IDS, towers.MASK, towers.TYPES, offset)
        want, hidden = head(w, x), model.hidden(inputs())
        segments = () if end == "ForMaskedLM" else (towers.MASK,)
        got = np.asarray(model.logits(hidden, *segments))[..., : want.shape[-1]]
        if want.ndim == 2:
            np.testing.assert_allclose(got, want, atol=2e-5, rtol=0)
        else:
            assert_real_tokens_equal(got, want)


def masked_logits(family, w, x):
    table = w[f"{family}.embeddings.word_embeddings.weight"]
    bert = "cls.predictions."
    dense, norm, bias = {
        "bert": (f"{bert}transform.dense", f"{bert}transform.LayerNorm", f"{bert}bias"),
        "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    }[family]
    return w.norm(norm, towers.gelu(w.linear(dense, x))) @ table.T + w[bias]


def sequence_logits(family, w, x):
    dense, out = {
        "bert": ("bert.pooler.dense", "classifier"),
        "roberta": ("classifier.dense", "classifier.out_proj"),
    }[family]
    return w.linear(out, np.tanh(w.linear(dense, x)))


@pytest.mark.parametrize("family", towers.SEQ2SEQ)
def test_seq2seq_round_trip_and_logits(tmp_path, family):
    theirs = towers.values(towers.seq2seq_shapes(family))
    towers.write(tmp_path / "theirs", towers.SEQ2SEQ[family], theirs)
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    _, model = bound(tmp_path / "run")
    decoder = Tokens(towers.DECODER_IDS.astype(np.int32), np.ones((2, 4), np.int32))
    source = inputs()._replace(types_BT=None)
    got = np.asarray(model(decoder, source=source))[..., : towers.V]
    want = towers.seq2seq_logits(family, theirs, towers.IDS, towers.MASK, towers.DECODER_IDS)
    unpadded = towers.seq2seq_logits(
        family, theirs, towers.IDS, np.ones_like(towers.MASK), towers.DECODER_IDS
    )
    assert np.abs(want - unpadded).max() > 0.01
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=0)
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    fields = towers.SEQ2SEQ[family]
    renamed = {"swish": "silu"}
    for key, value in fields.items():
        assert written[key] == renamed.get(value, value), key
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == 10


@pytest.mark.parametrize("family", [*towers.ENCODERS, *towers.SEQ2SEQ])
def test_another_initial_std_is_kept(tmp_path, family):
    if family in towers.SEQ2SEQ:
        field, fields = "init_std", towers.SEQ2SEQ[family] | {"init_std": 0.3}
        towers.write(tmp_path / "in", fields, towers.values(towers.seq2seq_shapes(family)))
    else:
        field, name = "initializer_range", f"{family.capitalize()}ForMaskedLM"
        encoder(tmp_path / "in", family, name, initializer_range=0.3)
    import_model(str(tmp_path / "in"), str(tmp_path / "run"))
    config = bound(tmp_path / "run")[0].config
    assert config.model.init_std == 0.3 and config.placement.resolve().init == "normal"
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())[field] == 0.3


def test_separate_embeddings_of_marian(tmp_path):
    """Without a shared table, the head is the decoder's."""
    shapes = towers.seq2seq_shapes("marian")
    del shapes["model.shared.weight"]
    for tower in ("encoder", "decoder"):
        shapes[f"model.{tower}.embed_tokens.weight"] = (towers.V, towers.D)
    theirs = towers.values(shapes)
    head = {"lm_head.weight": theirs["model.decoder.embed_tokens.weight"]}
    fields = towers.SEQ2SEQ["marian"] | {"share_encoder_decoder_embeddings": False}
    towers.write(tmp_path / "theirs", fields, theirs | head)
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


@pytest.mark.parametrize("family", towers.SEQ2SEQ)
def test_shared_tokens_are_exported_once_per_tower_if_the_head_is_not_tied(tmp_path, family):
    """transformers ties no tables then, and would draw random values for those missing."""
    shapes = towers.seq2seq_shapes(family)
    theirs = towers.values(shapes | {"lm_head.weight": (towers.V, towers.D)})
    towers.write(
        tmp_path / "theirs", towers.SEQ2SEQ[family] | {"tie_word_embeddings": False}, theirs
    )
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = load_file(tmp_path / "out" / "model.safetensors")
    for key, value in theirs.items():
        np.testing.assert_array_equal(again.pop(key), value, err_msg=key)
    assert sorted(again) == [f"model.{t}.embed_tokens.weight" for t in ("decoder", "encoder")]
    for value in again.values():
        np.testing.assert_array_equal(value, theirs["model.shared.weight"])


def test_names_of_earlier_versions(tmp_path):
    """gamma and beta, a buffer of positions, and a prefix on a base model."""
    theirs = towers.values(towers.class_shapes("bert", "BertModel"))
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in theirs.items()
    }
    assert sum("gamma" in name for name in old) == 5
    old["bert.embeddings.position_ids"] = np.arange(towers.T)[None]
    encoder(tmp_path / "theirs", "bert", "BertModel", tensors=old)
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == theirs.keys()
    assert all((again[name] == value).all() for name, value in theirs.items())


def test_tensors_that_a_class_does_not_use_are_reported(tmp_path):
    """bert-base-uncased is a BertForMaskedLM with a pooler and a head for next sentences."""
    shapes = towers.class_shapes("bert", "BertForMaskedLM")
    shapes |= towers.linear("bert.pooler.dense", towers.D, towers.D)
    shapes |= towers.linear("cls.seq_relationship", towers.D, 2)
    tensors = towers.values(shapes)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    encoder(tmp_path / "theirs", "bert", "BertForMaskedLM", tensors=tensors)
    lines = import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert "encoder with a head for masked tokens" in lines[0]
    assert lines[-1].endswith("cls.seq_relationship.weight, pooler.dense.bias, pooler.dense.weight")


def test_base_model_without_pooler(tmp_path):
    theirs = towers.values(towers.encoder_shapes("bert"))
    encoder(tmp_path / "theirs", "bert", "BertModel", tensors=theirs)
    lines = import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert lines[0].endswith("an encoder with no head")
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == theirs.keys()


def test_an_encoder_without_labels_predicts_nothing(tmp_path):
    encoder(tmp_path / "theirs", "bert", "BertModel")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"no labels to predict; .*train.init_from="):
        Predictor(str(tmp_path / "run"), None)
    with pytest.raises(UserError, match="architecture=encoder, but only a decoder"):
        load_run(tmp_path / "run")


def test_labels_are_kept(tmp_path):
    encoder(tmp_path / "theirs", *BERT_NER)
    lines = import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert "an encoder with a head for 3 labels of tokens" in lines[0]
    directory = RunDirectory(str(tmp_path / "run"))
    config = directory.read_config()
    assert directory.labels() == towers.LABELS
    assert (config.task.name, config.head.n_labels) == ("tag", 3)
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}
    assert written["label2id"]["I-PER"] == 2
    assert not (tmp_path / "out" / "generation_config.json").exists()
    directory.change_info(labels=None)
    export_model(str(tmp_path / "run"), str(tmp_path / "unnamed"))
    written = json.loads((tmp_path / "unnamed" / "config.json").read_text())
    assert [*written["label2id"]] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForTokenClassification" in card and "token-classification" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "'t5' is not supported; .* gpt2, bert, roberta, marian, bart"),
        ({"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice.*BertForMaskedLM"),
        ({"architectures": ["BertForQuestionAnswering"]}, "no tensor qa_outputs.weight"),
        ({"architectures": [3]}, "architectures"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"id2label": {"0": "O", "2": "X"}}, "id2label"),
        ({"id2label": {"0": "O", "1": "X"}}, r"classifier.weight has shape \(3, 8\).*\(2, 8\)"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"num_hidden_layers": 1}, "16 tensors that BertForTokenClassification does not have"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings='x'"),
        ({"hidden_act": "mish"}, "hidden_act='mish'"),
        ({"vocab_size": 12}, "word_embeddings.weight has shape"),
    ],
)
def test_unsupported_encoder_is_named(tmp_path, change, message):
    encoder(tmp_path / "theirs", *BERT_NER, **change)
    with pytest.raises(UserError, match=message):
        import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_ffn_dim": 16}, "encoder_ffn_dim=16 must equal decoder_ffn_dim=12"),
        ({"decoder_vocab_size": 12}, "decoder_vocab_size=12 must equal vocab_size=11"),
        ({"scale_embedding": 2}, "scale_embedding=2"),
        ({"normalize_before": True}, "normalize_before=True is not supported"),
        ({"tie_word_embeddings": False}, "no tensor lm_head.weight"),
        ({"encoder_layers": 2}, "no tensor encoder.layers.1"),
    ],
)
def test_unsupported_seq2seq_is_named(tmp_path, change, message):
    tensors = towers.values(towers.seq2seq_shapes("marian"))
    towers.write(tmp_path / "theirs", towers.SEQ2SEQ["marian"] | change, tensors)
    with pytest.raises(UserError, match=message):
        import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("end", "task", "n_labels"),
    [
        ("Model", "classify", None),
        ("ForMaskedLM", "mlm", None),
        ("ForTokenClassification", "tag", 3),
        ("ForSequenceClassification", "classify", 3),
        ("ForQuestionAnswering", "answer", None),
    ],
)
def test_task_of_a_class(tmp_path, end, task, n_labels):
    encoder(tmp_path / "theirs", "bert", f"Bert{end}")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    config = RunDirectory(str(tmp_path / "run")).read_config()
    assert (config.task.name, config.head.n_labels) == (task, n_labels)


POST_LN = {"placement__preset": "post_ln", "placement__embedding_multiplier": "1"}
ENCODER = {
    "model__architecture": "encoder",
    "task__name": "mlm",
    "placement__embedding_norm": True,
    **POST_LN,
}
TRANSLATOR = {"model__architecture": "encoder_decoder", "task__name": "translate", **POST_LN}


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "GPT-2"),
        (ENCODER, "BERT"),
        (ENCODER | {"model__position_offset": 2}, "RoBERTa"),
        (TRANSLATOR | {"placement__positions": "sinusoidal_halves"}, "Marian"),
        (TRANSLATOR | {"placement__embedding_norm": True, "model__position_offset": 2}, "BART"),
    ],
)
def test_models_of_ours_have_a_family(changes, label):
    assert family_of(tools.tiny(**changes)).label == label


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (ENCODER | {"placement__preset": "pre_ln"}, "BERT has norms after the embedding"),
        (ENCODER | {"model__scale_attn_weights": False}, "scale_attn_weights=False"),
        (ENCODER | {"model__logits_bias": True}, "logits_bias=True"),
        (TRANSLATOR | {"placement__positions": "sinusoidal"}, "here positions='sinusoidal'"),
        (TRANSLATOR | {"placement__embedding_norm": True}, "position_offset=0.*BART always has 2"),
        (
            TRANSLATOR
            | {
                "placement__positions": "sinusoidal_halves",
                "placement__embedding_multiplier": "2",
            },
            "embedding_multiplier='2'",
        ),
    ],
)
def test_models_that_no_family_has_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        family_of(tools.tiny(**changes))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HeadSpec("sequence", 3, "mean"), "head.pool=mean"),
        (HeadSpec("mlm", transform=False), "head.transform=False"),
    ],
)
def test_heads_that_bert_does_not_have_are_refused(head, message):
    config = tools.tiny(**ENCODER)
    with pytest.raises(UserError, match=message):
        FAMILIES["bert"].table(config, head)


def exported(config, head=LM):
    """Returns the tensors of a model of ours with initial values."""
    model_def = define_model(config.model, config.placement, head=head)
    table = family_of(config).table(config, head)
    return to_huggingface(table, model_def, model_def.init(jax.random.key(0)))


def test_what_a_model_of_ours_lacks_is_zero():
    """BERT always adds a type's vector, and Marian a bias to the logits."""
    config = tools.tiny(**ENCODER)
    types = exported(config, HeadSpec("tokens", 3))["bert.embeddings.token_type_embeddings.weight"]
    assert types.shape == (1, 16) and not types.any()
    assert FAMILIES["bert"].write(config)["type_vocab_size"] == 1
    config = tools.tiny(**TRANSLATOR, placement__positions="sinusoidal_halves")
    tensors = exported(config)
    bias = tensors["final_logits_bias"]
    assert bias.shape == (1, 11) and not bias.any()
    assert all(name.startswith("model.") for name in tensors if name != "final_logits_bias")
