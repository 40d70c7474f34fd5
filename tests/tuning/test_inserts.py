"""Adapters, prefixes and prompts: their equations, decoding, and runs that are tuned with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config import replace
from gpt2_jax.config.check import check
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.run_texts import TEXTS
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.model import diagnostics
from gpt2_jax.model.definition import define_model
from gpt2_jax.nn.attention import masked_scores
from gpt2_jax.nn.inserts import Adapter, Prefix
from gpt2_jax.nn.masks import CAUSAL, SequenceMask
from gpt2_jax.nn.param import Init
from gpt2_jax.train import loop
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.tuning.definition import define_tuned
from tests.runs import begin, losses
from tests.tools import noisy, tiny
from tests.train.distributed.test_sharding import put
from tests.tuning.test_lora import TOKENS, logits, trained_names
from tests.tuning.tools import train

METHODS = {
    "adapter": {"tune__method": "adapter", "tune__rank": 4},
    "prefix": {"tune__method": "prefix", "tune__length": 3},
    "prompt": {"tune__method": "prompt", "tune__length": 3},
}


pytestmark = pytest.mark.usefixtures("compiled_once")


def define(method, **changes):
    """Returns a tuned model, the plain model, and parameters in which nothing is 0."""
    made = tiny(**(METHODS[method] | changes))
    model = define_tuned(made.model, made.placement, made.tune)
    return model, define_model(made.model, made.placement), noisy(model.init(jax.random.key(0)))


def test_adapter_is_that_of_the_equation():
    adapter = Adapter(6, 4, "x", Init(jax.random.key(0)))
    y = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    np.testing.assert_array_equal(adapter(y), y)
    for name in ("down", "down_bias", "up", "up_bias"):
        value = getattr(adapter, name)
        value[...] = noisy({"x": value[...]}, seed=len(name))["x"]
    d, b, u, c = (
        np.float64(adapter.__dict__[n][...]) for n in ("down", "down_bias", "up", "up_bias")
    )
    want = y + np.asarray(jax.nn.gelu(y @ d + b)) @ u + c
    np.testing.assert_allclose(adapter(y), want, atol=1e-5)
    assert np.abs(want - y).max() > 0.1


def test_every_token_attends_to_the_prefix():
    prefix = Prefix(2, 1, 4, 1.0, Init(jax.random.key(0)))
    prefix.v[...] = jnp.ones((2, 1, 4))
    k = v = jnp.zeros((1, 1, 3, 4))
    q = jnp.ones((1, 1, 3, 4))
    keys, values = prefix(k, v)
    mask = prefix.seen_by_all(CAUSAL.allowed(3, 3))
    assert mask.tolist() == [[True] * (3 + t) + [False] * (2 - t) for t in range(3)]
    assert prefix.seen_by_all(SequenceMask(causal=False).allowed(3, 3)) is None
    p = jax.nn.softmax(masked_scores(q, keys, jnp.float32(1.0), mask))[0, 0]
    scores = np.exp(np.asarray(prefix.k[...])[:, 0].sum(-1)).sum()
    np.testing.assert_allclose((p @ values[0, 0])[:, 0], scores / (scores + np.arange(1, 4)), 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "changes", [{}, {"placement__positions": "rotary", "model__unroll": False}]
)
def test_decoding_with_a_cache_has_the_logits_of_the_whole_sequence(method, changes):
    model, plain, params = define(method, **changes)
    whole = logits(model, params)
    got = Generator(model, params, 0, 12).logits(TOKENS.tolist())
    np.testing.assert_allclose(got, whole, atol=2e-5)
    weights = jax.tree.map(lambda _, x: x, plain.shapes, _only(params, plain.shapes))
    assert np.abs(logits(plain, weights) - whole).max() > 0.01
    prompts = [list(TOKENS[0, :5]), list(TOKENS[1, :9])]  # padded at the left
    new = Generator(model, params, 0, 12).generate(prompts, 1, SamplingParams(temperature=0.0))
    for prompt, ids in zip(prompts, new, strict=True):
        alone = np.asarray(model.bind(params)(np.array([prompt])))
        assert ids == [int(alone[0, -1].argmax())]


def _only(params, like):
    return {k: _only(params[k], v) for k, v in like.items()} if isinstance(like, dict) else params


def test_prompt_vectors_are_tokens_without_a_position():
    """With no positions, a prompt of token vectors is a prompt of tokens."""
    model, _, params = define("prompt", placement__positions="none")
    ids = np.array([7, 2, 5])
    params["prompt"]["vectors"] = params["embedding"]["wte"][ids]
    both = np.concatenate([np.tile(ids, (2, 1)), TOKENS], axis=1)
    plain = define_model(
        tiny(model__n_positions=15).model, tiny(placement__positions="none").placement
    )
    weights = {k: v for k, v in params.items() if k != "prompt"}
    np.testing.assert_allclose(
        logits(model, params), np.asarray(plain.bind(weights)(both))[:, 3:, :11], atol=1e-5
    )
    found = diagnostics.activations(model, params, TOKENS, 0)
    assert {x.shape[-2] for x in jax.tree.leaves(found)} == {12}


@pytest.mark.parametrize("method", METHODS)
def test_only_the_added_parameters_are_trained(method):
    model, _, _ = define(method)
    names = {name.rpartition(".")[2] for name in trained_names(model)}
    assert names == {
        "adapter": {"down", "down_bias", "up", "up_bias"},
        "prefix": {"k", "v"},
        "prompt": {"vectors"},
    }[method]  # fmt: skip


def test_initial_adapter_changes_nothing():
    model, plain, _ = define("adapter")
    weights = noisy(plain.init(jax.random.key(1)))
    params = model.with_weights(model.init(jax.random.key(0)), weights)
    np.testing.assert_array_equal(logits(model, params), logits(plain, weights))


@pytest.mark.parametrize("method", METHODS)
def test_sharded_steps_are_those_of_one_device(method):
    found, first = [], None
    for data, fsdp, tensor in ((1, 1, 1), (2, 2, 2)):
        mesh = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
        program = compile_step(tiny(**METHODS[method], model__unroll=False, **mesh))
        if first is None:
            first = program.init()
            params = noisy(jax.tree.map(np.asarray, first.all_params))
            first = program.replace_params(first, params)
        found.append(train(program, put(first, program), 6)[1])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert found[0][-1, 0] < found[0][0, 0] - 0.005


@pytest.mark.parametrize(
    "method", ["prompt", *(pytest.param(m, marks=pytest.mark.slow) for m in ("adapter", "prefix"))]
)
def test_run_is_tuned_resumed_and_sampled(method, source, text_file, tmp_path):
    given = begin(text_file, source, **METHODS[method], optimizer__peak_lr=0.05)
    given = replace(given, {"optimizer.schedule": "constant", "train.eval_every": 5})
    assert loop.train(replace(given, {"train.steps": 5}), str(tmp_path / "run")) == 0
    assert loop.train(given, str(tmp_path / "run"), TEXTS) == 0
    assert loop.train(given, str(tmp_path / "whole")) == 0
    got = losses(tmp_path / "run")
    assert got == losses(tmp_path / "whole") and abs(got[10] - got[0]) > 1e-5
    assert (tmp_path / "run" / "sample.txt").read_text()
    params = open_run(str(tmp_path / "run")).params
    before = open_run(str(source)).params
    jax.tree.map(np.testing.assert_array_equal, _only(params, before), before)
    with pytest.raises(UserError, match=f"tune.method={method} cannot be exported"):
        export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = begin(text_file, tmp_path / "run")
    with pytest.raises(UserError, match=f"was tuned with tune.method={method}"):
        loop.train(again, str(tmp_path / "again"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tune.method": "prompt", "model.document_mask": True}, "does not support model.document"),
        (
            {"tune.method": "prefix", "model.attention": "cudnn", "model.dtype": "bfloat16"},
            "does not support model.attention=cudnn",
        ),
        ({"tune.method": "lora", "tune.length": 4}, "tune.length has no effect"),
    ],
)  # fmt: skip
def test_unsupported_combinations_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        check(replace(tiny(model__n_embd=16), changes))


def test_prefix_with_shaped_attention_is_refused():
    made = tiny(placement__preset="simplified_skipless")
    with pytest.raises(UserError, match=r"tune\.method=prefix does not support"):
        define_tuned(made.model, made.placement, TuneConfig(method="prefix"))
