"""Splash attention, interpreted on a CPU; cuDNN's attention is in `tests/gpu`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

from gpt2_jax.model.stack import saves_products
from gpt2_jax.nn.attention import masked_scores, mix
from gpt2_jax.nn.attention_kernels import fused_attention

SCALE = 0.3


def splash(q, k, v):
    return fused_attention("splash", q, k, v, SCALE)


def plain(q_BHTK, k_BHTK, v_BHTK):
    allowed = jnp.tril(jnp.ones((q_BHTK.shape[2],) * 2, bool))
    scores = masked_scores(q_BHTK, k_BHTK, jnp.float32(SCALE), allowed)
    return mix(jax.nn.softmax(scores), v_BHTK)


def qkv(t):
    return jax.random.normal(jax.random.key(0), (3, 2, 2, t, 8))


@pytest.mark.parametrize("t", [128, 131])
def test_splash_attention_and_its_gradients_are_those_of_the_plain_one(t, monkeypatch):
    """131 positions are padded to 256."""
    inputs = qkv(t)
    weights = jax.random.normal(jax.random.key(1), (2, t, 2, 8))
    loss = lambda attend: lambda inputs: (attend(*inputs) * weights).sum()
    make = partial(kernels.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(kernels, "make_splash_mha_single_device", make)
    found, gradients = splash(*inputs), jax.grad(loss(splash))(inputs)
    np.testing.assert_allclose(found, plain(*inputs), atol=1e-5)
    np.testing.assert_allclose(gradients, jax.grad(loss(plain))(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "n_saved"),
    [(saves_products, 2), (jax.checkpoint_policies.nothing_saveable, 0)],
)
def test_elementwise_remat_keeps_the_results_of_splash_attention(policy, n_saved, capsys):
    """The output and the sums of the softmax: the backward pass needs nothing else of it."""
    body = jax.checkpoint(lambda inputs: splash(*inputs).sum(), policy=policy)
    jax.ad_checkpoint.print_saved_residuals(body, qkv(128))
    assert capsys.readouterr().out.count("'_splash_attention'") == n_saved
