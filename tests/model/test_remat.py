"""What `model.remat` stores and what it computes again."""

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from gpt2_jax.data.batch import Batch
from gpt2_jax.train.loss import mean_loss
from tests.tools import tiny_model

BATCH = Batch(jax.random.randint(jax.random.key(5), (3, 13), 0, 11))


@pytest.mark.parametrize(("remat", "calls"), [("none", 1), ("elementwise", 1), ("block", 2)])
def test_cudnn_attention_is_computed_again_only_with_whole_blocks(remat, calls, monkeypatch):
    """Traced only, as if a GPU were there."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    model, params = tiny_model(
        model__dtype="bfloat16", model__attention="cudnn", model__remat=remat
    )
    loss = lambda params: mean_loss(params, model, BATCH, None, 0)
    gradient = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert gradient.count("= dot_product_attention_bwd") == 1
    assert gradient.count("= dot_product_attention_fwd") == calls


@pytest.mark.parametrize("matmul_dtype", [None, "bfloat16"])
@pytest.mark.parametrize(("remat", "products"), [("none", 7), ("elementwise", 9), ("block", 12)])
def test_products_of_layers_are_computed_again_only_with_whole_blocks(
    remat, products, matmul_dtype
):
    """A block has four layers and two products of attention; `elementwise` stores the former.

    The result of the last layer is not needed again.
    """
    model, params = tiny_model(model__remat=remat, model__matmul_dtype=matmul_dtype)
    loss = lambda params: mean_loss(params, model, BATCH, None, 0)
    text = lambda f: str(jax.make_jaxpr(f)(params))
    forward = text(loss).count("= dot_general[")
    assert forward == 7
    backward = 2 * forward
    if matmul_dtype is not None:  # each for a CPU and for other platforms
        backward *= 2
    assert text(jax.grad(loss)).count("= dot_general[") == products + backward
