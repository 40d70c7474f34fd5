"""Adapters in peft's format: exported from a run, and imported on top of a base model."""

import json

import jax
import numpy as np
import pytest

from gpt2_jax.config import replace
from gpt2_jax.errors import UserError
from gpt2_jax.interop.checkpoint_files import write_adapter
from gpt2_jax.interop.export_adapter import export_adapter
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.interop.peft_format import apply_peft, to_peft
from gpt2_jax.train import loop
from gpt2_jax.train.storage.open_run import open_run
from tests.runs import begin
from tests.tools import noisy
from tests.tuning.test_lora import define


@pytest.fixture(scope="module")
def lora_run(source, text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("peft") / "lora"
    fields = {"tune__method": "lora", "tune__rank": 2, "tune__targets": ("*.q,*.v,*.up",)}
    given = begin(text_file, source, optimizer__peak_lr=0.05, **fields)
    assert loop.train(given, str(workdir)) == 0
    return workdir


def test_adapter_of_a_run_is_exported_and_imported(source, lora_run, tmp_path):
    export_model(str(source), str(tmp_path / "base"))
    export_adapter(str(lora_run), str(tmp_path / "adapter"), str(tmp_path / "base"))
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["rank_pattern"] == {"attn.c_attn": 4}
    assert fields["alpha_pattern"] == {"attn.c_attn": 32.0} and fields["r"] == 2
    import_model(str(tmp_path / "adapter"), str(tmp_path / "run"))
    got, want, before = (open_run(str(d)).params for d in (tmp_path / "run", lora_run, source))
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6)
    jax.tree.map(close, got["blocks"], want["blocks"])
    qkv = lambda params: params["blocks"]["all"]["attn"]["sublayer"]["qkv"]["kernel"]
    change = np.abs(qkv(want) - qkv(before)).max((0, 1, 3, 4))
    assert change[1] == 0 and change[[0, 2]].min() > 1e-3


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_fused_matrices_are_one_with_a_block_diagonal_b(method):
    model, params = define(method, rank=2, targets=("*.q,*.v",))
    tensors, _ = to_peft(model, params, None)
    name = "base_model.model.transformer.h.2.attn.c_attn.lora_"
    a, b = tensors[f"{name}A.weight"], tensors[f"{name}B.weight"]
    assert a.shape == (4, 16) and b.shape == (48, 4)
    assert not b[:16, 2:].any() and not b[16:32].any() and not b[32:, :2].any()
    parts = params["blocks"]["all"]["attn"]["sublayer"]["qkv"]["lora"]
    np.testing.assert_array_equal(a[2:], parts["v"]["a"][2].T)
    np.testing.assert_array_equal(b[32:, 2:], parts["v"]["b"][2].reshape(2, 16).T)
    assert (f"{name}magnitude_vector" in tensors) == (method == "dora")


def test_runs_without_a_plain_adapter_are_refused(source, lora_run, text_file, tmp_path):
    with pytest.raises(UserError, match=r"tune\.method=none, which is not one of lora, dora"):
        export_adapter(str(source), str(tmp_path / "out"))
    path = lora_run / "config.json"
    stored = path.read_text()
    try:
        path.write_text(stored.replace('"trained": []', '"trained": ["ln_f"]'))
        with pytest.raises(UserError, match="also trained ln_f"):
            export_adapter(str(lora_run), str(tmp_path / "out"))
    finally:
        path.write_text(stored)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'; it must be LORA"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"modules_to_save": ["wte"]}, r"modules_to_save=\['wte'\] is not supported"),
        ({"use_dora": True}, "has use_dora, but h.0.attn.c_proj has no lora_magnitude_vector"),
    ],
)
def test_adapters_that_are_not_lora_of_gpt2_are_refused(change, line):
    model, params = define("lora", rank=2)
    tensors, fields = to_peft(model, noisy(params), None)
    weights = {
        f"transformer.h.{layer}.{module}.weight": np.zeros(shape, np.float32)
        for layer in range(3)
        for module, shape in {
            "attn.c_attn": (16, 48), "attn.c_proj": (16, 16),
            "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16),
        }.items()
    }  # fmt: skip
    apply_peft(weights, tensors, fields)
    with pytest.raises(UserError, match=line):
        apply_peft(weights, tensors, fields | change)
    wrong = {"base_model.model.transformer.wte.lora_embedding_A": np.zeros((2, 3), np.float32)}
    with pytest.raises(UserError, match=r"wte\.lora_embedding_A is not supported"):
        apply_peft(weights, tensors | wrong, fields)
    weights["transformer.h.0.mlp.c_fc.weight"] = np.zeros((8, 64), np.float32)
    with pytest.raises(UserError, match=r"h\.0\.mlp\.c_fc has A .* do not fit"):
        apply_peft(weights, tensors, fields)


def test_a_base_model_is_needed(tmp_path):
    model, params = define("lora", rank=2)
    write_adapter(tmp_path, *to_peft(model, params, None))
    with pytest.raises(UserError, match="does not name a base model; pass --base"):
        import_model(str(tmp_path), str(tmp_path / "run"))


def test_imported_weights_are_tuned_in_their_directory(source, text_file, tmp_path):
    export_model(str(source), str(tmp_path / "base"))
    import_model(str(tmp_path / "base"), str(tmp_path / "run"))
    imported = open_run(str(tmp_path / "run")).params
    given = begin(text_file, source, tune__method="lora", tune__rank=2, train__sample_tokens=0)
    given = replace(given, {"train.init_from": None, "train.steps": 5})
    assert loop.train(given, str(tmp_path / "run")) == 0
    run, before = open_run(str(tmp_path / "run")), open_run(str(tmp_path / "run"), 0)
    assert (run.step, before.step) == (5, 0)
    jax.tree.map(np.testing.assert_array_equal, before.params, imported)
    up = lambda params: params["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"]
    assert np.abs(up(run.params) - up(imported)).max() > 1e-4
    with pytest.raises(UserError, match="has no update of a matrix at step 0"):
        export_adapter(str(tmp_path / "run"), str(tmp_path / "out"), step=0)
