"""Per-block diagnostics, compared with plain numpy on the model's parts, and for every preset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.model.decode import bind_unstacked, unstack_params
from gpt2_jax.model.diagnostics import gradient_norms, observe
from tests.placements import EVERY_AT_LENGTH, depth
from tests.tools import tiny_model

TOKENS = jax.random.randint(jax.random.key(5), (3, 12), 0, 11)


def rms(x):
    return np.sqrt((np.asarray(x, np.float64) ** 2).mean())


def test_diagnostics_match_blocks_applied_one_by_one():
    built, params = tiny_model(model__n_layer=3, model__unroll=False)
    got = jax.jit(lambda p: observe(built, p, TOKENS, 0))(params)
    bound = bind_unstacked(built, unstack_params(built, params, 0))
    context = bound.model.context(jnp.arange(12), None, 0)
    x = bound.model.embedding(TOKENS, context)
    for layer, block in enumerate(bound.blocks):
        a = block.attn.sublayer(block.attn.pre(x), context)[0]
        f = block.mlp.sublayer(block.mlp.pre(x + a), context)[0]
        y = x + a + f
        assert got.attn_ratio[layer] == pytest.approx(rms(a) / rms(x), rel=1e-4)
        assert got.mlp_ratio[layer] == pytest.approx(rms(f) / rms(x + a), rel=1e-4)
        assert got.stream_rms[layer] == pytest.approx(rms(y), rel=1e-4)
        x_64, y_64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
        length = np.linalg.norm(x_64, axis=-1) * np.linalg.norm(y_64, axis=-1)
        assert got.cosine[layer] == pytest.approx(((x_64 * y_64).sum(-1) / length).mean(), rel=1e-4)
        q, k, _ = block.attn.sublayer.project(block.attn.pre(x), context)
        scores = np.einsum("bhtk,bhsk->bhts", q, k) * 8**-0.5
        scores[..., np.triu(np.ones((12, 12), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        nats = -(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean()
        assert got.entropy[layer] == pytest.approx(nats, rel=1e-4)
        assert got.largest_score[layer] == pytest.approx(scores.max(), rel=1e-4)
        x = y


@pytest.mark.parametrize("name", EVERY_AT_LENGTH)
def test_every_placement_has_diagnostics_for_each_block(name):
    n_layer = depth(name)
    built, params = tiny_model(placement__preset=name, model__n_layer=n_layer, model__unroll=False)

    @jax.jit
    def figures(params):
        loss = lambda p: jax.nn.logsumexp(built.bind(p)(TOKENS, step=700), -1).mean()
        return observe(built, params, TOKENS, 700), gradient_norms(built, jax.grad(loss)(params))

    for values in jax.tree.leaves(figures(params)):
        assert values.shape == (n_layer,)
        assert np.isfinite(values).all() and (np.asarray(values) != 0).all()


def test_gradient_norms_are_per_block():
    built, params = tiny_model(placement__preset="keel", model__n_layer=4)
    grads = jax.tree.map(jnp.ones_like, params)
    sizes = [sum(x[0].size for x in jax.tree.leaves(params["blocks"][name]))
             for name in built_names(built)]  # fmt: skip
    want = np.sqrt([sizes[0], sizes[1], sizes[1], sizes[1]])
    np.testing.assert_allclose(gradient_norms(built, grads), want, rtol=1e-6)


def built_names(built):
    return [stack.name for stack in built.spec.stacks]
