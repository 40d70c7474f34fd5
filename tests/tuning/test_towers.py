"""Tuning of encoders and encoder-decoders: what is added, what is trained, and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.config.check import check
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.data.batch import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.model.decode import (
    bind_unstacked,
    decode,
    first_caches,
    read_source,
    unstack_params,
)
from gpt2_jax.model.heads import LM, HeadSpec
from gpt2_jax.train import loop
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.tuning.definition import define_tuned
from gpt2_jax.tuning.int8 import in_int8
from tests.model.architectures import SOURCE, STEP, TARGET, TWO, padded
from tests.tasks.small import small, write_data
from tests.tools import noisy, tiny
from tests.tuning.test_lora import trained_names

LABELS = HeadSpec("sequence", 5)
SIZES = {"model__n_layer": 2, "model__unroll": False}
ENCODER = SIZES | {"task__name": "classify", "model__architecture": "encoder"}
TWO_TOWERS = SIZES | TWO | {"task__name": "translate"}
INSERTED = {
    "adapter": {"down", "down_bias", "up", "up_bias"},
    "prefix": {"k", "v"},
    "prompt": {"vectors"},
    "lora": {"a", "b"},
    "dora": {"a", "b", "m"},
    "bitfit": {"bias"},
}


pytestmark = pytest.mark.usefixtures("compiled_once")


def define(method, head=LM, **changes):
    """Returns a tuned model, and parameters in which nothing is 0."""
    made = tiny(**changes)
    tune = (
        TuneConfig(method=method)
        if method == "none"
        else TuneConfig(method=method, **_sizes(method))
    )
    model = define_tuned(made.model, made.placement, tune, head=head)
    return model, noisy(model.init(jax.random.key(0)))


def _sizes(method):
    if method in ("prefix", "prompt"):
        return {"length": 3}
    return {} if method == "bitfit" else {"rank": 2}


def outputs(model, params, inputs, source=None):
    """Returns the logits of a model."""
    bound = model.bind(params)
    hidden = bound.hidden(inputs, None, STEP, source)
    if model.head == LABELS:
        return np.asarray(bound.logits(hidden, inputs.segments_BT))
    return np.asarray(bound.logits(hidden))[..., :11]


@pytest.mark.parametrize("method", INSERTED)
def test_the_head_of_labels_is_trained_with_what_is_added(method):
    model, _ = define(method, LABELS, **ENCODER)
    names = set(trained_names(model))
    head = {name for name in names if name.startswith("head.")}
    assert head == {"head.kernel", "head.bias", "head.dense.kernel", "head.dense.bias"}
    assert {name.rpartition(".")[2] for name in names - head} == INSERTED[method]


@pytest.mark.parametrize("method", ["adapter", "prefix", "lora", "dora", "bitfit"])
def test_both_towers_are_tuned_and_their_head_is_not_new(method):
    model, _ = define(method, **TWO_TOWERS, model__tie_head=False)
    names = set(trained_names(model))
    assert {name.partition(".")[0] for name in names} == {"encoder", "decoder"}
    assert not any("head" in name.split(".") for name in names)
    crossed = {name for name in names if ".cross." in name}
    assert bool(crossed) == (method != "prefix")


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merged_towers_have_the_logits_of_the_updates(method):
    for changes, head, given in (
        (ENCODER, LABELS, (SOURCE,)),
        (TWO_TOWERS, LM, (TARGET, SOURCE)),
    ):
        model, params = define(method, head, **changes)
        plain, merged = model.merged(params)
        want = outputs(model, params, *given)
        np.testing.assert_allclose(outputs(plain, merged, *given), want, atol=1e-5)
        weights = jax.tree.map(lambda _, x: x, plain.shapes, _only(params, plain.shapes))
        assert np.abs(outputs(plain, weights, *given) - want).max() > 1e-3


def _only(params, like):
    return {k: _only(params[k], v) for k, v in like.items()} if isinstance(like, dict) else params


@pytest.mark.parametrize("method", ["adapter", "prefix", "prompt"])
def test_padding_changes_nothing(method):
    """Also with the token of the class first, after the vectors of a prompt."""
    model, params = define(method, LABELS, **ENCODER)
    one = Tokens(SOURCE.ids_BT[1:], SOURCE.segments_BT[1:])
    want = outputs(model, params, one)
    np.testing.assert_allclose(outputs(model, params, padded(one, 2)), want, atol=1e-5)
    plain, _ = define("none", LABELS, **ENCODER)
    assert np.abs(outputs(plain, _only(params, plain.shapes), one) - want).max() > 1e-3


def written(model, params, source):
    """Returns logits of TARGET's ids, written token by token."""
    bound = bind_unstacked(model, unstack_params(model, params, STEP))
    (n_rows, length), found = TARGET.ids_BT.shape, []
    read, caches = read_source(bound, source), first_caches(bound, n_rows, length)
    first_B = jnp.zeros(n_rows, jnp.int32)
    for i in range(length):
        ids_B1 = jnp.asarray(TARGET.ids_BT[:, i : i + 1])
        x_B1D, caches, first_B = decode(bound, ids_B1, caches, i, first_B, read)
        found.append(np.asarray(bound.model.logits(x_B1D))[:, 0, :11])
    return np.stack(found, 1)


@pytest.mark.parametrize("method", ["adapter", "prefix", "int8"])
def test_two_towers_write_token_by_token(method):
    model, params = define("none" if method == "int8" else method, **TWO_TOWERS)
    source = Tokens(SOURCE.ids_BT, (SOURCE.segments_BT == [[1], [1]]).astype(np.int32))
    exact = outputs(model, params, jnp.asarray(TARGET.ids_BT), source)
    want = exact
    if method == "int8":
        model, params = in_int8(model, params)
        want = outputs(model, params, jnp.asarray(TARGET.ids_BT), source)
        assert 1e-4 < np.abs(want - exact).max() < 0.5
    np.testing.assert_allclose(written(model, params, source), want, atol=3e-5)


# -- runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of masked language modeling, and data of classification."""
    folder = tmp_path_factory.mktemp("towers")
    data = {}
    for task in ("mlm", "classify"):
        (folder / task).mkdir()
        data[task] = write_data(folder / task, task)
    made = small("mlm", data["mlm"], train__steps=2, train__sample_tokens=0, train__eval_every=100)
    assert loop.train(made, str(folder / "source")) == 0
    return folder, data


def begin(place, name, **changes):
    """Trains a classifier from the source, without fields that its weights determine."""
    folder, data = place
    config = small("classify", data["classify"], train__sample_tokens=0, train__steps=4)
    default = configs.flatten(Config())
    unset = {n: v for n, v in default.items() if n.startswith("model.")}
    unset["data.tokenizer"] = default["data.tokenizer"]
    given = {"train.init_from": str(folder / "source"), "train.eval_every": 2}
    given |= {"train.checkpoint_every": 2}
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return loop.train(configs.replace(config, unset | given), str(folder / name))


@pytest.mark.parametrize(
    ("method", "size"),
    [("lora", {"tune__rank": 2}), ("prompt", {"tune__length": 2})],
)
def test_a_classifier_is_tuned_from_masked_tokens(place, method, size, capsys):
    folder, _ = place
    given = {"tune__method": method, **size, "optimizer__peak_lr": 0.05}
    assert begin(place, f"{method}_half", **given, train__steps=2) == 0
    assert begin(place, f"{method}_half", **given) == 0
    assert "new: head.bias, head.dense.bias" in capsys.readouterr().out
    assert begin(place, f"{method}_whole", **given) == 0
    half, whole = (open_run(str(folder / f"{method}_{n}"), merge=False) for n in ("half", "whole"))
    jax.tree.map(np.testing.assert_array_equal, half.params, whole.params)
    before = open_run(str(folder / "source")).params
    body = {name: part for name, part in before.items() if name != "mlm"}
    jax.tree.map(np.testing.assert_array_equal, _only(whole.params, body), body)
    started = open_run(str(folder / f"{method}_whole"), 2, merge=False).params
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), started["head"], whole.params["head"])
    assert min(jax.tree.leaves(moved)) > 0


# -- refused


@pytest.mark.parametrize(
    ("task", "changes", "line"),
    [
        ("translate", {"tune.method": "prompt"}, "model.architecture=encoder_decoder"),
        ("tag", {"tune.method": "prompt"}, "with task.name=tag needs data.layout=padded"),
        ("classify", {"train.teacher": "runs/x"}, "train.teacher='.*' has no effect with task"),
    ],
)
def test_unsupported_combinations_are_refused(task, changes, line, tmp_path):
    config = configs.replace(small(task, write_data(tmp_path, task)), changes)
    with pytest.raises(UserError, match=line):
        check(config)
