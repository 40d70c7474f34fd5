"""Imported and exported models have the logits of transformers, for many configs."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_run
from tests import tools

pytestmark = pytest.mark.peers

SHAPES = [
    {},
    {"tie_word_embeddings": False, "vocab_size": 257},
    {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 2},
    {"n_head": 5, "n_embd": 40, "n_inner": 24, "vocab_size": 129},
    {"activation_function": "gelu", "n_layer": 5},
    {"activation_function": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-3},
    {"activation_function": "relu", "scale_attn_weights": False},
    {"activation_function": "silu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    {"activation_function": "tanh", "n_positions": 7, "vocab_size": 1000},
    {"n_layer": 12, "n_head": 4, "n_embd": 64, "tie_word_embeddings": False},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
]


def theirs(seed=0, **changes):
    """Returns a GPT2LMHeadModel with all tensors, including gains and biases, far from initial."""
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 32, "n_positions": 24, "vocab_size": 131}
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(**sizes | ends | changes)
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def our_logits(workdir, tokens):
    run = open_run(str(workdir))
    assert run.config.model.dtype == "float32"
    forward = jax.jit(lambda params: run.model_def.bind(params)(tokens))
    return np.asarray(forward(run.params))[..., : run.config.model.vocab_size]


def some_tokens(config):
    shape = (2, config.n_positions)
    return np.random.default_rng(1).integers(0, config.vocab_size, shape).astype(np.int32)


@pytest.mark.parametrize("changes", SHAPES, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_import_and_export_preserve_logits(tmp_path, changes):
    model = theirs(**changes)
    tokens = some_tokens(model.config)
    want = their_logits(model, tokens)
    assert (
        want.std() > 0.3 and np.abs(want - their_logits(theirs(1, **changes), tokens)).max() > 0.3
    )
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    np.testing.assert_allclose(our_logits(tmp_path / "run", tokens), want, atol=1e-4, rtol=0)
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(their_logits(again.eval(), tokens), want, atol=1e-5, rtol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_exported_run_loads_in_transformers(tmp_path, caplog, capfd):
    """With the byte tokenizer, and without warnings."""
    sizes = {"model__vocab_size": 257, "model__n_positions": 24}
    config = tools.tiny(**sizes, placement__activation="gelu", data__tokenizer="bytes")
    from gpt2_jax import config as configs
    from gpt2_jax.model.definition import define_model

    model = define_model(config.model, config.placement)
    params = tools.noisy(model.init(jax.random.key(0)), 0.3)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(configs.to_json(config))
    save_params(run / "weights", params)
    export_model(str(run), str(tmp_path / "out"))
    capfd.readouterr()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    err = capfd.readouterr().err
    assert "newly initialized" not in err and "not used" not in err and not caplog.records, err
    text = "def residual(x):\n    return x  # \u00e4\u20ac\U0001f600\ttab"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == 256 and tokenizer("<|endoftext|>")["input_ids"] == [256]
    import_model(str(tmp_path / "out"), str(tmp_path / "again"))
    assert open_run(str(tmp_path / "again")).config.data.tokenizer == "bytes"
    tokens = np.frombuffer(text.encode()[:24], np.uint8)[None].astype(np.int32)
    got = np.asarray(model.bind(params)(tokens))[..., :257]
    np.testing.assert_allclose(got, their_logits(loaded, tokens), atol=1e-4, rtol=0)


def test_exported_gpt2_tokenizer(tmp_path):
    from gpt2_jax.interop.tokenizer_files import find_tokenizer, write_tokenizer

    write_tokenizer("gpt2", 1024, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer("gpt2")
    vectors = (tools.ROOT / "tests" / "fixtures" / "gpt2_vectors" / "vectors.inp").read_text()
    for text in [*vectors.split("\n__ggml_vocab_test__\n"), "  spaces\n\n and don't 12345"]:
        assert tokenizer(text)["input_ids"] == ours.encode([text])[0].tolist()
    (tmp_path / "run").mkdir()
    assert find_tokenizer(tmp_path, 50257, tmp_path / "run")[0] == "gpt2"
    (tmp_path / "tokenizer.json").unlink()
    assert find_tokenizer(tmp_path, 50257, tmp_path / "run")[0] == "gpt2"
    assert not list((tmp_path / "run").iterdir())


def test_import_of_a_pickle(tmp_path):
    model = theirs()
    tokens = some_tokens(model.config)
    model.config.save_pretrained(tmp_path / "theirs")
    torch.save(model.to(torch.bfloat16).state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"), allow_pickle=True)
    want = their_logits(model.float(), tokens)
    np.testing.assert_allclose(our_logits(tmp_path / "run", tokens), want, atol=1e-4, rtol=0)


def test_pickle_with_code_is_rejected(tmp_path):
    import os

    from gpt2_jax.errors import UserError

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    theirs().config.save_pretrained(tmp_path / "theirs")
    torch.save({"transformer.wte.weight": Evil()}, tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        import_model(str(tmp_path / "theirs"), str(tmp_path / "run"), allow_pickle=True)
    assert not (tmp_path / "owned").exists()
