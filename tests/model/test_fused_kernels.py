"""A model with the GPU kernels, interpreted, equals one without."""

import jax
import numpy as np
import pytest

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model import builder, transformer
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.loss import mean_loss
from gpt2_jax.train.mesh import make_mesh
from tests.tools import tiny, tiny_model

TOKENS = Batch(jax.random.randint(jax.random.key(5), (3, 13), 0, 11))


def loss_function(model):
    return lambda params: mean_loss(params, model, TOKENS, None, 0)


@pytest.fixture
def fused(monkeypatch):
    for module in (builder, transformer):
        monkeypatch.setattr(module, "fuses", lambda cfg: True)


def n_kernels(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("pallas_call[")


# nGPT has no LayerNorm, and scales its logits.
@pytest.mark.parametrize(("preset", "uses_kernels"), [("pre_ln", True), ("ngpt", False)])
def test_loss_and_gradients_are_those_of_the_plain_model(preset, uses_kernels, request):
    model, params = tiny_model(placement__preset=preset)
    plain = jax.jit(jax.value_and_grad(loss_function(model)))(params)
    request.getfixturevalue("fused")
    fused_model, _ = tiny_model(placement__preset=preset)
    function = jax.value_and_grad(loss_function(fused_model))
    assert (n_kernels(function, params) > 0) == uses_kernels
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.jit(function)(params),
        plain,
    )


def test_evaluation_is_that_of_the_plain_model(request):
    ids = np.random.default_rng(1).integers(0, 11, 40).astype(np.uint16)
    mesh = make_mesh(tiny().train, tiny().mesh)

    def score():
        model, params = tiny_model()
        return Evaluator(model, mesh, 12, 8).score(params, 0, Tokens([ids]))

    plain = score()
    request.getfixturevalue("fused")
    assert score().loss == pytest.approx(plain.loss, rel=1e-6)


def test_kernels_are_for_gpus_unless_turned_off(monkeypatch):
    model, _ = tiny_model()
    assert not builder.fuses(model.cfg)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert builder.fuses(model.cfg)
    assert not builder.fuses(tiny_model(model__fused_kernels=False)[0].cfg)
