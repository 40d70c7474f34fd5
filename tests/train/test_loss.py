"""Loss weights: the loss of a step is sum(w nll) / sum(w), however the batch is distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.definition import define_model
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.train.distributed.mesh import by_rows
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.loss import batch_loss
from tests.train.test_step import Trainer

RNG = np.random.default_rng(4)
LOGITS = RNG.normal(size=(2, 3, 5)).astype(np.float32)
TOKENS = np.array([[0, 4, 1, 3], [2, 2, 0, 1]], np.int32)
WEIGHTS = np.array([[1.0, 0.0, 0.5], [2.0, 0.0, 0.0]], np.float32)
# Rows weight between all and none of their predictions, so parts and devices differ in total.
RAGGED = (np.arange(12) < np.array([12, 3, 0, 1, 7, 2, 12, 5])[:, None]).astype(np.float32)


def test_weighted_loss_is_the_weighted_mean():
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, TOKENS[:, 1:, None], -1)[..., 0]
    batch = Batch(TOKENS, WEIGHTS)
    assert batch_loss(jnp.asarray(LOGITS), batch) == pytest.approx(
        (nll[0, 0] + 0.5 * nll[0, 2] + 2 * nll[1, 0]) / 3.5, rel=1e-6
    )
    assert batch_loss(jnp.asarray(LOGITS), batch, total_weight=1.0) == pytest.approx(
        (nll * WEIGHTS).sum(), rel=1e-6
    )
    assert batch_loss(jnp.asarray(LOGITS), Batch(TOKENS)) == pytest.approx(nll.mean(), rel=1e-6)


def test_the_gradient_of_the_loss_is_softmax_minus_one_hot_and_takes_no_scatter():
    gradient = jax.grad(lambda logits: batch_loss(logits, Batch(TOKENS)))
    e = np.exp(LOGITS)
    expected = (e / e.sum(-1, keepdims=True) - np.eye(5)[TOKENS[:, 1:]]) / 6
    np.testing.assert_allclose(gradient(jnp.asarray(LOGITS)), expected, atol=1e-6)
    assert "scatter" not in str(jax.make_jaxpr(gradient)(LOGITS))


Z_LOSS = 0.1  # large, so that an error in it shows


def test_z_loss_adds_the_squared_log_of_the_partition_function():
    logits, targets = np.float64(LOGITS), TOKENS[:, 1:]
    e = np.exp(logits)
    log_z = np.log(e.sum(-1))
    nll = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    total = lambda x: cross_entropy(x, targets, Z_LOSS).sum()
    value, gradient = jax.value_and_grad(total)(jnp.asarray(LOGITS))
    assert float(value) == pytest.approx((nll + Z_LOSS * log_z**2).sum(), rel=1e-6)
    factor = 1 + 2 * Z_LOSS * log_z[..., None]
    expected = factor * e / e.sum(-1, keepdims=True) - np.eye(5)[targets]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_z_loss_is_part_of_the_training_loss_and_not_of_the_validation_loss():
    plain, penalized = Trainer(), Trainer(train__z_loss=Z_LOSS)
    params = plain.state.params
    batch = plain.sampler.batch(0)
    model = define_model(plain.config.model, plain.config.placement)
    logits = model.bind(jax.device_get(params))(batch.inputs_BT)
    log_z_BT = np.log(np.exp(np.float64(logits)).sum(-1))

    def losses(trainer):
        tokens = Tokens([np.arange(40, dtype=np.uint16) % 11])
        evaluator = Evaluator(model, trainer.mesh, 12, 8)
        val = evaluator.score(trainer.state.params, 0, tokens).loss
        placed = jax.device_put(batch, by_rows(trainer.mesh))
        return trainer.step(trainer.state, placed)[1]["loss"].item(), val

    (loss, val), (with_z, val_with_z) = losses(plain), losses(penalized)
    assert val == val_with_z
    assert with_z - loss == pytest.approx(Z_LOSS * (log_z_BT**2).mean(), rel=1e-4)


def steps(weights, **changes):
    """Returns loss, gradient norm and all parameters after two steps with these weights."""
    trainer = Trainer(optimizer__grad_clip=0.0, **changes)
    rows = []
    for step in range(2):
        batch = trainer.sampler.batch(step)._replace(weights_BT=weights)
        batch = jax.device_put(batch, by_rows(trainer.mesh))
        trainer.state, metrics = trainer.step(trainer.state, batch)
        rows.append((metrics["loss"].item(), metrics["grad_norm"].item()))
    return np.array(rows), jax.tree.map(np.array, trainer.state.params)


@pytest.fixture(scope="module")
def ragged():
    return steps(RAGGED, mesh__data=1)


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 4), (2, 1), (2, 2)])
def test_ragged_weights_do_not_depend_on_accumulation_or_devices(ragged, devices, accumulation):
    rows, params = steps(RAGGED, mesh__data=devices, train__accumulation=accumulation)
    np.testing.assert_allclose(rows, ragged[0], rtol=0, atol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # Adam's quotients
    jax.tree.map(close, params, ragged[1])


def test_weights_of_1_equal_no_weights_and_others_differ(ragged):
    ones = steps(np.ones_like(RAGGED), mesh__data=2, train__accumulation=2)[0]
    plain = steps(None, mesh__data=2, train__accumulation=2)[0]
    np.testing.assert_allclose(ones, plain, rtol=0, atol=1e-6)
    assert np.abs(ragged[0] - plain).min() > 1e-3
