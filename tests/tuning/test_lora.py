"""Low-rank updates: their equations, what is trained, and runs that are tuned with them."""

import jax
import numpy as np
import pytest

from gpt2_jax.config import replace
from gpt2_jax.config.check import check
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.perplexity import evaluate_run
from gpt2_jax.evaluate.run_texts import TEXTS
from gpt2_jax.model.definition import define_model
from gpt2_jax.train import loop
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.optim.frozen_params import frozen_rows, split
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.tuning.definition import define_tuned
from tests.runs import begin, losses
from tests.tools import noisy, tiny
from tests.train.distributed.test_sharding import put
from tests.train.optim.test_frozen_params import shapes
from tests.tuning.tools import train

TOKENS = np.arange(24).reshape(2, 12) % 11


pytestmark = pytest.mark.usefixtures("compiled_once")


def define(method, **fields):
    """Returns a tuned model, and parameters in which nothing is 0."""
    made = tiny(model__n_layer=3)
    model = define_tuned(made.model, made.placement, TuneConfig(method=method, **fields))
    return model, noisy(model.init(jax.random.key(0)))


def logits(model, params):
    return np.asarray(model.bind(params)(TOKENS))[..., :11]


def updated(kernel, a, b, scale, m=None):
    """W' of one matrix (inputs, outputs) in float64, from the papers' equations."""
    w = np.float64(kernel) + scale * np.float64(a) @ np.float64(b)
    return w if m is None else w / np.linalg.norm(w, axis=0) * m


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merged_weights_are_those_of_the_equation(method):
    model, params = define(method, rank=3, alpha=7.5)
    plain, merged = model.merged(params)
    attn, mlp = (
        [tree["blocks"]["all"][name]["sublayer"] for tree in (params, merged)]
        for name in ("attn", "mlp")
    )
    for layer in range(3):
        for i, part in enumerate("qkv"):
            lora = {k: v[layer] for k, v in attn[0]["qkv"]["lora"][part].items()}
            m = lora["m"].reshape(16) if method == "dora" else None
            want = updated(
                attn[0]["qkv"]["kernel"][layer, :, i].reshape(16, 16),
                lora["a"], lora["b"].reshape(3, 16), 2.5, m,
            )  # fmt: skip
            got = attn[1]["qkv"]["kernel"][layer, :, i].reshape(16, 16)
            np.testing.assert_allclose(got, want, atol=1e-6)
        for name, pair in (("up", mlp), ("down", mlp), ("out", attn)):
            node = pair[0][name]
            lora, width = {k: v[layer] for k, v in node["lora"].items()}, node["bias"].shape[-1]
            m = lora["m"] if method == "dora" else None
            a = lora["a"].reshape(-1, 3)
            want = updated(node["kernel"][layer].reshape(-1, width), a, lora["b"], 2.5, m)
            got = pair[1][name]["kernel"][layer].reshape(-1, width)
            np.testing.assert_allclose(got, want, atol=1e-6)
    assert "lora" not in attn[1]["qkv"]
    np.testing.assert_allclose(logits(plain, merged), logits(model, params), atol=1e-5)
    assert np.abs(attn[1]["qkv"]["kernel"] - attn[0]["qkv"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_initial_model_is_the_plain_one(method):
    made = tiny()
    model = define_tuned(made.model, made.placement, TuneConfig(method=method))
    plain = define_model(made.model, made.placement)
    weights = noisy(plain.init(jax.random.key(1)))
    params = model.with_weights(model.init(jax.random.key(0)), weights)
    np.testing.assert_allclose(logits(model, params), logits(plain, weights), atol=1e-5)
    assert np.abs(logits(model, params) - logits(model, model.init(jax.random.key(0)))).max() > 0.1


def trained_names(model):
    """Returns the trained parameters, with the shapes of their trained rows."""
    opt = tiny().optimizer
    params = jax.tree.map(lambda s: np.zeros(s.shape), model.shapes)
    return shapes(split(params, frozen_rows(opt, model))[0])


def test_only_the_targets_are_trained():
    model, _ = define("lora", rank=2, targets=("*.q,*.v", "blocks.1.mlp.sublayer.up"))
    assert trained_names(model) == {
        "blocks.all.attn.sublayer.qkv.lora.q.a": (3, 16, 2),
        "blocks.all.attn.sublayer.qkv.lora.q.b": (3, 2, 2, 8),
        "blocks.all.attn.sublayer.qkv.lora.v.a": (3, 16, 2),
        "blocks.all.attn.sublayer.qkv.lora.v.b": (3, 2, 2, 8),
        "blocks.all.mlp.sublayer.up.lora.a": (1, 16, 2),
        "blocks.all.mlp.sublayer.up.lora.b": (1, 2, 64),
    }
    assert trained_names(define("lora", targets=("*.out",), trained=("ln_f",))[0]).keys() == {
        "blocks.all.attn.sublayer.out.lora.a",
        "blocks.all.attn.sublayer.out.lora.b",
        "ln_f.bias",
        "ln_f.gain",
    }


def test_bitfit_trains_all_biases():
    names = trained_names(define("bitfit")[0])
    assert names and all(name.endswith(".bias") for name in names)
    assert len(names) == 7 and names["blocks.all.attn.sublayer.qkv.bias"] == (3, 3, 2, 8)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"targets": ("wte",)}, "'wte' matches wte, which is also the output matrix"),
        ({"targets": ("*",)}, "'*' matches wte, which is also the output matrix"),
        ({"targets": ("*.qkv.w",)}, "the pattern '*.qkv.w' matches nothing; names look like "),
        ({"targets": ("*.bias",)}, "the pattern '*.bias' matches nothing"),
        ({"trained": ("lnf",)}, "tune.trained: the pattern 'lnf' matches nothing"),
    ],
)
def test_wrong_patterns_are_refused(changes, line):
    with pytest.raises(UserError) as error:
        define("lora", **changes)
    assert line in str(error.value)


def test_untied_tables_are_refused_as_targets():
    made = tiny(model__tie_head=False)
    tune = TuneConfig(method="lora", targets=("head",))
    with pytest.raises(UserError, match="head, which is not a matrix of a block"):
        define_tuned(made.model, made.placement, tune)


def test_unit_weights_are_refused():
    made = tiny(placement__preset="ngpt")
    with pytest.raises(UserError, match=r"does not support placement\.unit_weights"):
        define_tuned(made.model, made.placement, TuneConfig(method="lora"))
    define_tuned(made.model, made.placement, TuneConfig(method="bitfit"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tune.rank": 4}, "tune.rank has no effect with tune.method=none"),
        ({"tune.method": "bitfit", "tune.alpha": 4.0}, "tune.alpha has no effect"),
        (
            {"tune.method": "lora", "optimizer.frozen": ("wte",)},
            "optimizer.frozen has no effect with tune.method=lora",
        ),
    ],
)
def test_unused_fields_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        check(replace(tiny(), changes))


@pytest.mark.parametrize(
    ("mesh", "method"), [((1, 8, 1), "dora"), ((2, 2, 2), "dora"), ((1, 2, 2), "lora")]
)
def test_sharded_steps_are_those_of_one_device(mesh, method):
    fields = {"tune__method": method, "tune__rank": 2, "model__unroll": False}
    fields |= {"tune__targets": ("*.q,*.v,*.out", "blocks.1.mlp"), "optimizer__peak_lr": 0.03}
    found, first = [], None
    for data, fsdp, tensor in ((1, 1, 1), mesh):
        made = tiny(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, **fields)
        program = compile_step(made)
        if first is None:
            first = program.init()
            params = jax.tree.map(np.asarray, first.all_params)
            first = program.replace_params(first, noisy(params))
        found.append(train(program, put(first, program), 6))
    (alone, rows_alone), (sharded, rows_sharded) = found
    np.testing.assert_allclose(rows_sharded, rows_alone, rtol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), *[
        jax.tree.map(np.asarray, state.params) for state in (sharded, alone)
    ])  # fmt: skip
    assert rows_alone[-1, 0] < rows_alone[0, 0] - 0.01  # it learns


def test_run_is_tuned_resumed_evaluated_and_sampled(source, text_file, tmp_path):
    given = begin(text_file, source, tune__method="lora", tune__rank=2, optimizer__peak_lr=0.01)
    given = replace(given, {"optimizer.schedule": "constant"})
    assert loop.train(given, str(tmp_path / "whole"), TEXTS) == 0
    got = losses(tmp_path / "whole")
    assert got[0] == pytest.approx(losses(source)[20], rel=1e-5) and got[10] < got[0] - 1e-4
    half = replace(given, {"train.steps": 5, "train.eval_every": 5})
    assert loop.train(half, str(tmp_path / "run")) == 0
    more = replace(given, {"train.eval_every": 5})
    assert loop.train(more, str(tmp_path / "run")) == 0
    runs = [open_run(str(tmp_path / name)) for name in ("whole", "run")]
    jax.tree.map(np.testing.assert_array_equal, *[run.params for run in runs])
    first = open_run(str(source)).params
    assert jax.tree.structure(first) == jax.tree.structure(runs[0].params)
    np.testing.assert_array_equal(first["embedding"]["wte"], runs[0].params["embedding"]["wte"])
    evaluated = evaluate_run(str(tmp_path / "whole"), None, None, None)
    assert evaluated["loss"] == pytest.approx(got[10], rel=1e-5)
    assert (tmp_path / "whole" / "sample.txt").read_text()
    again = {"tune__method": "dora", "tune__rank": 3, "track__diagnostics_every": 5}
    again = begin(text_file, tmp_path / "whole", **again)
    assert loop.train(again, str(tmp_path / "again")) == 0
    assert losses(tmp_path / "again")[0] == pytest.approx(got[10], rel=1e-5)


def test_tuning_needs_weights(text_file, tmp_path):
    given = begin(text_file, "x", tune__method="lora")
    given = replace(given, {"train.init_from": None})
    with pytest.raises(UserError, match=r"set train\.init_from"):
        loop.train(given, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
