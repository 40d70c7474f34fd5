"""Layouts of tensors: literal values, and inverses."""

import numpy as np
import pytest

from gpt2_jax.interop.layouts import Layout, their_shape, to_ours, to_theirs

# For each layout, the shapes of parameters that have it: widths, 3 (q, k, v), heads, head width.
SHAPES = {
    Layout.SAME: [(5,), (5, 7)],
    Layout.TRANSPOSED: [(5, 7)],
    Layout.HEADS_OUT: [(8, 3, 2, 4), (3, 2, 4)],
    Layout.HEADS_IN: [(2, 4, 8)],
    Layout.HEADS_IN_TRANSPOSED: [(2, 4, 8)],
    Layout.AS_ROW: [(5,)],
    Layout.QKV_ROWS: [(8, 3, 2, 4), (3, 2, 4)],
}
CASES = [(layout, shape) for layout, shapes in SHAPES.items() for shape in shapes]


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_layouts_are_inverted(layout, shape):
    ours = np.arange(np.prod(shape)).reshape(shape)
    theirs = to_theirs(layout, ours)
    n_tensors = 3 if layout is Layout.QKV_ROWS else 1
    assert [tensor.shape for tensor in theirs] == [their_shape(layout, shape)] * n_tensors
    np.testing.assert_array_equal(to_ours(layout, theirs, shape), ours)


def test_tensors_are_those_of_linear_layers():
    """x W for their matrix products: Conv1D computes x W, torch.nn.Linear x W^T."""
    rng = np.random.default_rng(0)
    x_D, qkv_D3HK = rng.normal(size=8), rng.normal(size=(8, 3, 2, 4))
    want_3HK = np.einsum("D,DPHK->PHK", x_D, qkv_D3HK)
    (conv,) = to_theirs(Layout.HEADS_OUT, qkv_D3HK)
    np.testing.assert_allclose(x_D @ conv, want_3HK.reshape(-1))
    rows = to_theirs(Layout.QKV_ROWS, qkv_D3HK)
    np.testing.assert_allclose([row @ x_D for row in rows], want_3HK.reshape(3, 8))
    o_HK, out_HKD = rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 5))
    want_D = np.einsum("HK,HKD->D", o_HK, out_HKD)
    (conv,) = to_theirs(Layout.HEADS_IN, out_HKD)
    (linear,) = to_theirs(Layout.HEADS_IN_TRANSPOSED, out_HKD)
    np.testing.assert_allclose(o_HK.reshape(-1) @ conv, want_D)
    np.testing.assert_allclose(linear @ o_HK.reshape(-1), want_D)
