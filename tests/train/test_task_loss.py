"""The loss of batches of examples: ragged weights, label smoothing, dropout, frozen parameters."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config import replace
from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.data.batch import LabelBatch, PairBatch, SpanBatch, TokenBatch, Tokens
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.losses import inputs_of
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.distributed.mesh import by_rows, make_mesh
from gpt2_jax.train.loss import mean_loss
from gpt2_jax.train.optim.optimizer import make_optimizer, trainable_infos
from gpt2_jax.train.state import make_init
from gpt2_jax.train.step import make_gradients, make_step
from tests import tools

ROWS, LENGTH, VOCAB, LABELS = 16, 12, 11, 3
TASKS = ("mlm", "tag", "classify", "answer", "translate", "sft")
SEED = jnp.uint32(3)


def batch_of(task):
    """Returns random rows with one or two segments, weights between 0 and 3, and empty rows."""
    rng = np.random.default_rng(5)
    inputs, source = tokens(rng), tokens(rng)
    per_token = (rng.uniform(0, 3, (ROWS, LENGTH)) * (inputs.segments_BT > 0)).astype(np.float32)
    per_token *= rng.random((ROWS, 1)) ** 4 * 5  # some rows have much more weight than others
    per_row = (per_token.sum(1) * (rng.random(ROWS) < 0.8)).astype(np.float32)
    ids = rng.integers(0, VOCAB, (ROWS, LENGTH), np.int32)
    match task:
        case "translate":
            return PairBatch(source, inputs, ids, per_token)
        case "classify":
            return LabelBatch(inputs, ids[:, 0] % LABELS, per_row)
        case "answer":
            return SpanBatch(inputs, ids[:, 0] * 0, (inputs.segments_BT > 0).sum(1) // 2, per_row)
        case "tag":
            return TokenBatch(inputs, ids % LABELS, per_token)
    return TokenBatch(inputs, ids, per_token)


def tokens(rng):
    first, both = rng.integers(1, 6, ROWS), rng.integers(6, LENGTH + 1, ROWS)
    at = np.arange(LENGTH)
    segments = np.where(at < first[:, None], 1, np.where(at < both[:, None], 2, 0))
    ids = rng.integers(0, VOCAB, (ROWS, LENGTH), np.int32)
    return Tokens(ids, segments.astype(np.int32))


def config_of(task, **changes):
    architecture = {"translate": "encoder_decoder", "sft": "decoder"}.get(task, "encoder")
    made = tools.tiny(model__n_layer=1, train__batch_size=ROWS, model__unroll=False)
    given = {name.replace("__", "."): value for name, value in changes.items()}
    fields = {"task.name": task, "model.architecture": architecture}
    labels = {"head.n_labels": LABELS} if task in ("tag", "classify") else {}
    return replace(made, fields | labels | given)


def model_of(config):
    head = head_of(config.task, config.head)
    return define_model(config.model, config.placement, head=head)


@cache
def params_of(task):
    return tools.noisy(model_of(config_of(task)).init(jax.random.key(0)))


def gradients(task, batch, devices=None, **changes):
    """Returns the loss and the gradients of a batch."""
    config = config_of(task, **changes)
    mesh = None
    if devices is not None:
        data, fsdp = devices
        mesh = make_mesh(TrainConfig(batch_size=ROWS), MeshConfig(data=data, fsdp=fsdp))
        batch = jax.device_put(batch, by_rows(mesh))
    params = params_of(task)
    empty = jax.tree.map(lambda x: None, params)
    compute = jax.jit(make_gradients(config, model_of(config), mesh))
    loss, grads = compute(params, empty, batch, jnp.int32(2), SEED)
    return float(loss), jax.tree.map(np.asarray, grads)


def assert_equal(found, expected, tolerance=1e-6):
    assert found[0] == pytest.approx(expected[0], rel=2e-6)
    pairs = zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=tolerance)


@cache
def whole(task):
    return gradients(task, batch_of(task))


def mean_of_means(task, parts):
    """Returns the mean of the losses of parts, each divided by its own weight."""
    batch, model = batch_of(task), model_of(config_of(task))
    n = ROWS // parts
    slices = [slice(i * n, (i + 1) * n) for i in range(parts)]
    loss = jax.jit(lambda part: mean_loss(params_of(task), model, part, None, 2))
    return np.mean([loss(jax.tree.map(lambda x, s=s: x[s], batch)) for s in slices])


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_a_weighted_mean_over_the_whole_batch(task):
    loss, grads = whole(task)
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 1e-3
    assert abs(mean_of_means(task, 4) - loss) > 1e-4
    assert_equal(gradients(task, batch_of(task), train__accumulation=4), (loss, grads))


@pytest.mark.parametrize("task", ["translate", "classify"])
def test_devices_do_not_change_loss_and_gradients(task):
    """On mesh.data=4 and mesh.fsdp=2."""
    assert_equal(gradients(task, batch_of(task), (4, 2), train__accumulation=2), whole(task))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(8, 1), (1, 8), (4, 2)])
@pytest.mark.parametrize("task", TASKS)
def test_eight_devices_do_not_change_loss_and_gradients(task, devices):
    assert_equal(gradients(task, batch_of(task), devices), whole(task))


def test_a_batch_without_targets_has_no_gradient():
    batch = batch_of("tag")
    loss, grads = gradients("tag", batch._replace(weights_BT=batch.weights_BT * 0))
    assert loss == 0
    assert all((x == 0).all() for x in jax.tree.leaves(grads))


def smoothed(logits, targets, weights, epsilon):
    """The loss as Szegedy et al. write it, in float64, over `logits` without padding."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    n = logits.shape[-1]
    wanted = np.where(np.eye(n, dtype=bool)[targets], 1 - epsilon, epsilon / (n - 1))
    return (weights * -(wanted * log_p).sum(-1)).sum() / weights.sum()


@pytest.mark.parametrize("task", ["translate", "mlm", "tag", "classify"])
def test_label_smoothing_ignores_the_padding_of_the_vocabulary(task):
    batch, model, epsilon = batch_of(task), model_of(config_of(task)), 0.2
    bound = model.bind(params_of(task))
    inputs, source = inputs_of(batch)
    hidden = bound.hidden(inputs, None, 2, source)
    if task in ("tag", "classify"):
        logits = bound.logits(hidden, batch.inputs.segments_BT)
    else:
        logits = bound.logits(hidden)
        assert logits.shape[-1] == 16 and logits.max(-1).min() > logits[..., VOCAB:].max()
        logits = logits[..., :VOCAB]
    targets = batch.labels_B if task == "classify" else batch.targets_BT
    expected = [
        smoothed(np.asarray(logits, np.float64), targets, batch.weights, e) for e in (epsilon, 0)
    ]
    found, grads = gradients(task, batch, optimizer__label_smoothing=epsilon)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert found == pytest.approx(expected[0], rel=1e-6)
    assert whole(task)[0] == pytest.approx(expected[1], rel=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("task", ["classify", pytest.param("translate", marks=pytest.mark.slow)])
def test_dropout_does_not_depend_on_accumulation_or_devices(task):
    one = gradients(task, batch_of(task), model__dropout=0.3)
    assert abs(one[0] - whole(task)[0]) > 1e-3
    parts = gradients(task, batch_of(task), (4, 1), model__dropout=0.3, train__accumulation=2)
    assert_equal(parts, one)


@pytest.mark.parametrize("name", ["blocks", "head", "embedding"])
def test_frozen_parameters_stay_as_they_are(name):
    patterns = ("wte", "wpe") if name == "embedding" else (name,)
    config = config_of("classify", optimizer__frozen=patterns)
    model, opt = model_of(config), config.optimizer
    optimizer = make_optimizer(opt, trainable_infos(opt, model))
    state = make_init(0, opt, model, optimizer, make_mesh(config.train, MeshConfig(data=1)))()
    step = jax.jit(make_step(config, model, optimizer, None))
    after, _ = step(state, batch_of("classify"))
    before, after = (jax.tree.map(np.asarray, one.all_params) for one in (state, after))
    moved = {n: any_differs(before[n], after[n]) for n in ("blocks", "head", "embedding")}
    assert moved == {n: n != name for n in moved}


def any_differs(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((x != y).any() for x, y in pairs)
