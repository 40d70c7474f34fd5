"""Adapters of Hugging Face's peft, exported and imported, have the same logits there and here."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from gpt2_jax.config import replace
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.interop.checkpoint_files import write_adapter
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.interop.peft_format import to_peft
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.tuning.definition import define_tuned
from tests.peers.test_transformers import our_logits, their_logits, theirs
from tests.tools import noisy

pytestmark = pytest.mark.peers

TOKENS = np.random.default_rng(0).integers(0, 131, (3, 20))


@pytest.fixture
def base(tmp_path):
    """A GPT-2 of transformers, saved, and imported as a run."""
    assert load_tokenizer("bytes").size == 257
    theirs(vocab_size=257).save_pretrained(tmp_path / "base")
    import_model(str(tmp_path / "base"), str(tmp_path / "run"), tokenizer="bytes")
    return tmp_path / "base"


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("targets", [(), ("*.q,*.v", "blocks.1.mlp.sublayer.up")])
def test_exported_adapter_has_the_same_logits_in_peft(base, tmp_path, method, targets):
    run = open_run(str(tmp_path / "run"))
    fields = {"tune.method": method, "tune.rank": 3, "tune.alpha": 5.0, "tune.targets": targets}
    config = replace(run.config, fields)
    model = define_tuned(config.model, config.placement, config.tune)
    initial = model.with_weights(model.init(jax.random.key(0)), run.params)
    params = jax.tree.map(np.asarray, noisy(initial, 0.05))
    params = model.with_weights(params, run.params)  # also the lengths of dora
    if method == "dora":
        m = params["blocks"]["all"]["attn"]["sublayer"]["qkv"]["lora"]["q"]
        m["m"] = m["m"] * 1.3
    if targets:  # as in training: the update of a block that is not a target stays 0
        up = params["blocks"]["all"]["mlp"]["sublayer"]["up"]["lora"]
        up["b"] = np.array(up["b"]) * np.array([0, 1, 0])[:, None, None]
    plain, merged = model.merged(params)
    ours = np.asarray(plain.bind(merged)(TOKENS))[..., :257]
    write_adapter(tmp_path, *to_peft(model, params, str(base)))
    loaded = transformers.GPT2LMHeadModel.from_pretrained(base)
    before = their_logits(loaded.eval(), TOKENS)
    tuned = peft.PeftModel.from_pretrained(loaded, tmp_path).eval()
    np.testing.assert_allclose(their_logits(tuned, TOKENS), ours, atol=2e-4)
    assert np.abs(before - ours).max() > 0.1
    import_model(str(tmp_path), str(tmp_path / "again"), tokenizer="bytes")
    np.testing.assert_allclose(our_logits(tmp_path / "again", TOKENS), ours, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["c_attn"], "r": 4, "lora_alpha": 6},
        {
            "target_modules": ["c_attn", "c_proj", "c_fc"],
            "use_dora": True,
            "rank_pattern": {"c_fc": 5},
            "alpha_pattern": {"mlp.c_proj": 3, "c_attn": 9},
        },
        {"target_modules": ["c_fc"], "use_rslora": True, "layers_to_transform": [1]},
    ],
)
def test_imported_adapter_has_the_logits_of_peft(base, tmp_path, fields):
    loaded = transformers.GPT2LMHeadModel.from_pretrained(base)
    config = peft.LoraConfig(**fields, fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(loaded, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    import_model(
        str(tmp_path / "adapter"), str(tmp_path / "tuned"), tokenizer="bytes", base=str(base)
    )
    got = our_logits(tmp_path / "tuned", TOKENS)
    np.testing.assert_allclose(got, their_logits(model, TOKENS), atol=2e-4)
    assert np.abs(got - our_logits(tmp_path / "run", TOKENS)).max() > 0.1
