"""Loss weights: the loss of a step is sum(w nll) / sum(w), however the batch is distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.data.batch import Batch
from gpt2_jax.train.loss import batch_loss
from gpt2_jax.train.mesh import by_rows
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
