"""A model with the GPU kernels, interpreted, equals one without."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.builder import fuses
from gpt2_jax.nn.target import Target, target_of
from gpt2_jax.tasks.losses import LossOptions
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.loss import mean_loss
from tests.tools import tiny, tiny_model

TOKENS = Batch(jax.random.randint(jax.random.key(5), (3, 13), 0, 11))


def loss_function(model):
    return lambda params: mean_loss(params, model, TOKENS, None, 0)


pytestmark = pytest.mark.usefixtures("interpreted")
FUSED = Target("cpu", runs_triton=True)


def n_kernels(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("pallas_call[")


# Kernels: two per norm, of which there are two in the block that is scanned, and a final one; and
# one for the loss, unless the placement scales the logits. nGPT does, and has no LayerNorm. Norms
# of q and k are left to XLA.
@pytest.mark.parametrize(
    ("changes", "kernels"),
    [
        ({}, 7),
        ({"model__tie_head": False}, 7),
        ({"placement__norm_sites": "pre+qk | pre"}, 7),
        ({"placement__preset": "completep", "placement__base_n_embd": 8}, 6),
        ({"placement__preset": "ngpt"}, 0),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_model(changes, kernels):
    model, params = tiny_model(**changes)
    plain = jax.jit(jax.value_and_grad(loss_function(model)))(params)
    fused_model, _ = tiny_model(FUSED, **changes)
    function = jax.value_and_grad(loss_function(fused_model))
    assert n_kernels(function, params) == kernels
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.jit(function)(params),
        plain,
    )


@pytest.mark.parametrize(
    ("remat", "weighted"), [("none", True), ("elementwise", False), ("block", True)]
)
def test_loss_weights_and_remat_give_the_gradients_of_the_plain_model(remat, weighted):
    weights_BT = np.random.default_rng(2).uniform(0, 1, (3, 12)).astype(np.float32)
    batch = TOKENS._replace(weights_BT=weights_BT if weighted else None)
    options = LossOptions(z_loss=0.1)
    loss = lambda model: lambda p: mean_loss(p, model, batch, None, 0, options=options)
    model, params = tiny_model()
    plain = jax.jit(jax.value_and_grad(loss(model)))(params)
    fused_model, _ = tiny_model(FUSED, model__remat=remat)
    function = jax.value_and_grad(loss(fused_model))
    # `block` and `elementwise` compute the two norms of the block again in the backward pass.
    assert n_kernels(function, params) == (7 if remat == "none" else 9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.jit(function)(params),
        plain,
    )


def test_evaluation_is_that_of_the_plain_model():
    ids = np.random.default_rng(1).integers(0, 11, 40).astype(np.uint16)
    mesh = make_mesh(tiny().train, tiny().mesh)

    def score(target=None):
        model, params = tiny_model(target)
        return Evaluator(model, mesh, 12, 8).score(params, 0, Tokens([ids]))

    assert score(FUSED).loss == pytest.approx(score().loss, rel=1e-6)


@pytest.mark.parametrize(
    ("device", "kind", "capability", "expected"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", "9.0", True),
        ("gpu", "NVIDIA B200", "10.0", True),
        ("gpu", "Tesla V100-SXM2-16GB", "7.0", False),
        ("gpu", "NVIDIA TITAN RTX", "7.5", False),
        ("gpu", "gfx942", "9.4", False),
        ("cpu", "cpu", None, False),
        ("tpu", "TPU v5 lite", None, False),
    ],
)
def test_kernels_are_for_nvidia_gpus_from_ampere_on(device, kind, capability, expected):
    fake = SimpleNamespace(platform=device, device_kind=kind, compute_capability=capability)
    assert fuses(tiny().model, target_of(fake)) == expected
    assert not fuses(tiny(model__fused_kernels=False).model, target_of(fake))
