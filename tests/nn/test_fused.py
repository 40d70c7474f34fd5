"""The GPU kernels, interpreted, against plain formulas; `tests/gpu` runs them on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.nn import norms
from gpt2_jax.nn.fused import head_loss as head_loss_module
from gpt2_jax.nn.fused.head_loss import HeadLoss, head_loss
from gpt2_jax.nn.fused.layer_norm import layer_norm

pytestmark = pytest.mark.usefixtures("interpreted")
N_VOCAB, PADDED = 101, 128


def rounded(x, dtype):
    """Returns x in float32, after rounding to `dtype`."""
    return x.astype(dtype).astype(jnp.float32)


@pytest.mark.parametrize("shape", [(2, 3, 48), (67, 130), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-7)])
def test_layer_norm_and_its_gradients_are_those_of_the_plain_one(shape, dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 4)
    x, dy = (jax.random.normal(k, shape).astype(dtype) for k in keys[:2])
    gain, bias = (jax.random.normal(k, shape[-1:]) for k in keys[2:])
    y, gradients = jax.vjp(lambda *args: layer_norm(1e-5, *args), 2 * x + 3, gain, bias)
    plain = lambda *args: norms.layer_norm(1e-5, *args)
    expected, plain_gradients = jax.vjp(plain, rounded(2 * x + 3, dtype), gain, bias)
    assert y.dtype == dtype
    for got, wanted in zip(
        (y, *gradients(dy)), (expected, *plain_gradients(rounded(dy, dtype))), strict=True
    ):
        scale = float(jnp.abs(wanted).max()) + 1e-3
        np.testing.assert_allclose(rounded(got, "float32"), wanted, atol=tolerance * scale)


def exact_loss(x_ND, head_VD, targets_N, weights_N, z_loss=0.0):
    """Returns the weighted loss and its gradients for x and head, in float64."""
    x, head = np.float64(x_ND), np.float64(head_VD)
    weights, rows = np.float64(weights_N), np.arange(len(targets_N))
    logits = (x @ head.T)[:, :N_VOCAB]
    largest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
    d = np.exp(logits - log_sum[:, None]) * (1.0 + 2.0 * z_loss * log_sum)[:, None]
    d[rows, targets_N] -= 1.0
    d *= weights[:, None]
    dhead = np.zeros_like(head)
    dhead[:N_VOCAB] = d.T @ x
    loss = log_sum - logits[rows, targets_N] + z_loss * log_sum**2
    return (loss * weights).sum(), d @ head[:N_VOCAB], dhead


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(1), 4)
    x_ND = jax.random.normal(keys[0], (5, 16))
    head_VD = jax.random.normal(keys[1], (PADDED, 16))
    targets_N = jax.random.randint(keys[2], (5,), 0, N_VOCAB)
    return x_ND, head_VD, targets_N, jax.random.uniform(keys[3], (5,))


def loss_and_gradients(x_ND, head_VD, targets_N, weights_N, dtype=None, z_loss=0.0):
    kind = HeadLoss(N_VOCAB, jnp.dtype(dtype or x_ND.dtype), z_loss)
    loss = lambda x, head: (head_loss(kind, x, head, targets_N) * weights_N).sum()
    return jax.value_and_grad(loss, (0, 1))(x_ND, head_VD)


@pytest.mark.parametrize("chunk", [32, 128, 2048])
def test_head_loss_and_its_gradients_are_exact(inputs, chunk, monkeypatch):
    monkeypatch.setattr(head_loss_module, "CHUNK", chunk)
    loss, gradients = loss_and_gradients(*inputs)
    expected, *expected_gradients = exact_loss(*inputs)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_head_loss_of_a_target_far_below_the_largest_logit_is_exact(inputs):
    x_ND, head_VD, targets_N, weights_N = inputs
    far = (30 * x_ND, 30 * head_VD, targets_N, weights_N)
    loss, gradients = loss_and_gradients(*far)
    expected, *expected_gradients = exact_loss(*far)
    assert expected > 1000  # exp of the difference would overflow
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_head_loss_of_bfloat16_has_the_gradient_of_float32_within_its_rounding(inputs, dtype):
    """For inputs of bfloat16, and for those that `model.matmul_dtype` rounds to it."""
    x_ND, head_VD, targets_N, weights_N = inputs
    low = [rounded(a, "bfloat16") for a in (x_ND, head_VD)]
    given = [a.astype(dtype) for a in (low if dtype == "bfloat16" else (x_ND, head_VD))]
    loss, gradients = loss_and_gradients(*given, targets_N, weights_N, "bfloat16")
    expected, *expected_gradients = exact_loss(*low, targets_N, weights_N)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert got.dtype == dtype
        error = np.linalg.norm(np.float64(got.astype(jnp.float32)) - wanted)
        assert error < 2**-7 * np.linalg.norm(wanted)


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("z_loss", [1e-4, 0.3])
def test_head_loss_with_a_z_loss_is_exact(inputs, scale, z_loss):
    x_ND, head_VD, targets_N, weights_N = inputs
    given = (scale * x_ND, scale * head_VD, targets_N, weights_N)
    loss, gradients = loss_and_gradients(*given, z_loss=z_loss)
    expected, *expected_gradients = exact_loss(*given, z_loss)
    assert abs(expected - exact_loss(*given)[0]) > 1e-5 * expected  # or z_loss is not tested
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        error = np.abs(got - wanted).max()
        assert error < 2e-5 * np.abs(wanted).max()
    kind = HeadLoss(N_VOCAB, x_ND.dtype, z_loss)
    undifferentiated = (head_loss(kind, *given[:3]) * weights_N).sum()
    assert float(undifferentiated) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("log_z", [-5.0, -4.0, -100.0])
def test_z_loss_may_cancel_or_reverse_the_softmax_in_the_gradient(log_z):
    """Its factor 1 + 2 z log Z is 0 for log Z = -5 at z = 0.1, and -19 for -100."""
    x_ND = jnp.array([[1.0, 0.0]])
    logits_V = np.log(np.arange(1, N_VOCAB + 1) / (N_VOCAB * (N_VOCAB + 1) / 2)) + log_z
    head_VD = jnp.zeros((PADDED, 2)).at[:N_VOCAB, 0].set(logits_V)
    given = x_ND, head_VD, jnp.array([7]), jnp.ones(1)
    _, gradients = loss_and_gradients(*given, z_loss=0.1)
    _, *expected = exact_loss(*given, z_loss=0.1)
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_a_loss_that_is_not_differentiated_is_the_same(inputs):
    x_ND, head_VD, targets_N, _ = inputs
    expected = exact_loss(x_ND, head_VD, targets_N, np.ones(5))[0]
    kind = HeadLoss(N_VOCAB, x_ND.dtype)
    assert float(head_loss(kind, x_ND, head_VD, targets_N).sum()) == pytest.approx(expected)


def test_kernels_can_be_mapped_over_several_models(inputs):
    x_ND, head_VD, targets_N, weights_N = inputs
    one = lambda x: loss_and_gradients(
        layer_norm(1e-5, x, jnp.ones(16), jnp.zeros(16)), head_VD, targets_N, weights_N
    )
    x_MND = jnp.stack([x_ND, 2 * x_ND + 1])
    separate = jax.tree.map(lambda *parts: jnp.stack(parts), *(one(x) for x in x_MND))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.vmap(one)(x_MND),
        separate,
    )
