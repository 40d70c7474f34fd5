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
from gpt2_jax.nn.masks import SequenceMask

SCALE = 0.3


def splash(q, k, v, documents=None):
    return fused_attention("splash", q, k, v, SCALE, SequenceMask(queries_BT=documents))


def plain(q_BHTK, k_BHTK, v_BHTK, documents=None):
    allowed = SequenceMask(queries_BT=documents).allowed(q_BHTK.shape[2], q_BHTK.shape[2])
    scores = masked_scores(q_BHTK, k_BHTK, jnp.float32(SCALE), allowed)
    return mix(jax.nn.softmax(scores), v_BHTK)


def qkv(t):
    return jax.random.normal(jax.random.key(0), (3, 2, 2, t, 8))


@pytest.mark.parametrize("t", [128, 131])
@pytest.mark.parametrize("packed", [False, True])
def test_splash_attention_and_its_gradients_are_those_of_the_plain_one(t, packed, monkeypatch):
    """131 positions are padded to 256."""
    inputs = qkv(t)
    # Numbers of documents as in the model: the position of their first token.
    begins = jnp.zeros((2, t), int).at[0, 40].set(40).at[1, [5, 127]].set(jnp.array([5, 127]))
    documents = jax.lax.cummax(begins, axis=1) if packed else None
    weights = jax.random.normal(jax.random.key(1), (2, t, 2, 8))
    loss = lambda attend: lambda inputs: (attend(*inputs, documents) * weights).sum()
    make = partial(kernels.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(kernels, "make_splash_mha_single_device", make)
    found, gradients = splash(*inputs, documents), jax.grad(loss(splash))(inputs)
    np.testing.assert_allclose(found, plain(*inputs, documents), atol=1e-5)
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
