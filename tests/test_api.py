"""The Python API and its notebook."""

import json

import jax
import numpy as np
import pytest

from gpt2_jax.api import load_huggingface, load_run
from gpt2_jax.errors import UserError
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model import diagnostics
from tests.interop import checkpoints
from tests.tools import ROOT, tiny_model

NOTEBOOK = ROOT / "docs/notebooks/python_api.ipynb"
LENGTH, N_BYTES = 64, 257


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A byte-level run with random weights, imported from `workdir.parent / "theirs"`."""
    folder, random = tmp_path_factory.mktemp("api"), np.random.default_rng(1)
    tensors, wide = checkpoints.tensors(), lambda n: random.normal(size=(n, 16)).astype("float32")
    tensors |= {"transformer.wte.weight": wide(N_BYTES), "lm_head.weight": wide(N_BYTES)}
    tensors["lm_head.weight"][128:] = 0  # makes ASCII more likely
    tensors["transformer.wpe.weight"] = wide(LENGTH)
    theirs = checkpoints.write(folder / "theirs", tensors, vocab_size=N_BYTES, n_positions=LENGTH)
    run = folder / "runs" / "quickstart"
    import_model(str(theirs), str(run), tokenizer="bytes")
    return run


@pytest.fixture(scope="module")
def model(workdir):
    return load_run(workdir)


def test_logits_equal_those_of_the_module(model):
    logits_TV = model.logits("ROMEO:")
    tokens_BT = np.frombuffer(b"ROMEO:", np.uint8).astype(np.int32)[None]
    module = model.model_def.bind(model.params)
    np.testing.assert_allclose(logits_TV, module(tokens_BT)[0, :, :N_BYTES], atol=1e-4)
    assert logits_TV.dtype == np.float32
    np.testing.assert_array_equal(model.logits(list(b"ROMEO:")), logits_TV)


def test_hugging_face_checkpoint_is_the_same_model(workdir, model):
    theirs = load_huggingface(str(workdir.parents[1] / "theirs"), tokenizer="bytes")
    np.testing.assert_array_equal(theirs.logits("My lord"), model.logits("My lord"))


def test_pre_ln_stream_is_the_sum_of_sublayer_outputs(model):
    found = model.activations("ROMEO:")
    assert found.ids == list(b"ROMEO:") and list(found.sublayer_LTD) == ["attn", "mlp"]
    stream = found.embedding_TD
    for l, after in enumerate(found.stream_LTD):
        stream = stream + found.sublayer_LTD["attn"][l] + found.sublayer_LTD["mlp"][l]
        np.testing.assert_allclose(stream, after, rtol=1e-5, atol=1e-5)
    head = np.asarray(model.params["head"])[:N_BYTES]
    np.testing.assert_allclose(found.head_input_TD @ head.T, model.logits("ROMEO:"), atol=1e-3)


@pytest.mark.parametrize("name", ["universal", "hyper_connections"])
def test_activations_of_other_placements_lead_to_the_logits(name):
    model_def, params = tiny_model(placement__preset=name)
    tokens_BT = np.array([[1, 2, 3], [4, 5, 6]])
    found = diagnostics.activations(model_def, params, tokens_BT, 3)
    assert found.stream_LBTD.shape == (2, 2, 3, 16)
    assert {x.shape for x in found.sublayer_LBTD.values()} == {(2, 2, 3, 16)}
    module = model_def.bind(params)
    want = jax.jit(lambda x: model_def.bind(params)(x, step=3))(tokens_BT)
    np.testing.assert_allclose(module.logits(found.head_input_BTD), want, rtol=1e-4, atol=1e-4)


def test_text_is_sampled_from_the_logits(model):
    likeliest = int(model.logits("My lord")[-1].argmax())
    want = model.tokenizer.decode_bytes([likeliest]).decode(errors="replace")
    assert model.generate("My lord", 1, temperature=0) == want
    text = model.generate("My lord", 20, seed=1)
    assert model.generate("My lord", 20, seed=1) == text != model.generate("My lord", 20, seed=2)
    stop = text[3:5]
    assert model.generate("My lord", 20, seed=1, stop=[stop]) == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda model: model.logits("x" * (LENGTH + 1)), str(LENGTH)),
        (lambda model: model.activations("x" * (LENGTH + 1)), str(LENGTH)),
        (lambda model: model.logits([1, N_BYTES]), str(N_BYTES - 1)),
        (lambda model: model.logits([]), "one id"),
        (lambda model: model.generate("a", temperature=-1), "temperature"),
    ],
)
def test_invalid_input_is_named(model, ask, named):
    with pytest.raises(UserError, match=named):
        ask(model)


def test_notebook_runs(workdir, monkeypatch, capsys):
    """All code cells in order, in a directory with the README's run."""
    monkeypatch.chdir(workdir.parents[1])
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict = {}
    for i, cell in enumerate(cells):
        assert not cell.get("outputs"), "commit the notebook without outputs"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}[{i}]", "exec"), names)
    assert names["activations"].stream_LTD.shape[1:] == (6, 16)
    assert "gain" in capsys.readouterr().out
