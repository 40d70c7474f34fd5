"""Masks as values, and attention used on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.nn.masks import SequenceMask, segment_positions
from gpt2_jax.nn.multi_head import MultiHeadAttention, attend

SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
RNG = np.random.default_rng(5)
X, MEMORY = (jnp.asarray(RNG.standard_normal((2, n, 8)), jnp.float32) for n in (4, 6))


def test_a_mask_without_conditions_allows_everything():
    assert SequenceMask(causal=False).allowed(3, 3) is None
    np.testing.assert_array_equal(SequenceMask().allowed(3, 3), np.tril(np.ones((3, 3), bool)))


@pytest.mark.parametrize("causal", [True, False])
def test_segments_do_not_see_each_other(causal):
    allowed = SequenceMask(causal, SEGMENTS).allowed(6, 6)
    for row, numbers in enumerate(np.asarray(SEGMENTS)):
        for t in range(6):
            for s in range(6):
                want = numbers[t] == numbers[s] and (s <= t or not causal)
                assert allowed[row, 0, t, s] == want


def test_cross_attention_reads_the_segment_with_the_same_number():
    queries = jnp.array([[1, 2, 0], [1, 1, 3]])
    allowed = SequenceMask(False, queries, SEGMENTS).allowed(3, 6)[:, 0]
    np.testing.assert_array_equal(allowed[0, 0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(allowed[0, 1], [0, 0, 1, 1, 1, 0])
    assert not allowed[1, 2].any()  # a segment without a source sees nothing


def test_a_prefix_is_seen_by_its_whole_segment():
    """Bidirectional over the prefix, causal after it, never across segments."""
    prefix = jnp.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    allowed = SequenceMask(True, SEGMENTS, prefix_BS=prefix).allowed(6, 6)[:, 0]
    np.testing.assert_array_equal(allowed[0, 0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(allowed[0, 3], [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(allowed[1], SequenceMask(True, SEGMENTS).allowed(6, 6)[1, 0])


def test_positions_restart_in_each_segment():
    np.testing.assert_array_equal(
        segment_positions(SEGMENTS), [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]]
    )


def plain(q, k, v, allowed):
    """Attention of float64 vectors, one query after the other."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[-1]))
    for b, h, t in np.ndindex(q.shape[:3]):
        scores = k[b, h] @ q[b, h, t] / np.sqrt(q.shape[-1])
        weights = np.exp(scores) * allowed[b, h, t]
        out[b, t, h] = weights / weights.sum() @ v[b, h]
    return out


def test_attention_on_its_own_combines_all_masks():
    q, k, v = (jnp.asarray(RNG.standard_normal((2, 3, 5, 4)), jnp.float32) for _ in range(3))
    mask = jnp.asarray(RNG.random((2, 1, 5, 5)) < 0.7) | jnp.eye(5, dtype=bool)
    padding = jnp.array([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    allowed = np.broadcast_to(mask & ~padding[:, None, None], (2, 3, 5, 5))
    allowed = allowed & np.tril(np.ones((5, 5), bool))
    allowed = allowed.copy()
    nothing = ~allowed.any(-1)
    allowed[nothing] = True
    got = attend(q, k, v, mask=mask, key_padding_mask=padding, causal=True)
    lonely = nothing.swapaxes(1, 2)
    np.testing.assert_allclose(got[~lonely], plain(q, k, v, allowed)[~lonely], atol=1e-5)
    assert np.isfinite(got).all()
    assert np.abs(got - attend(q, k, v)).max() > 0.1


def test_a_query_that_sees_no_key_has_a_finite_output_and_gradient():
    everything = jnp.ones((2, 4), bool)
    attention = MultiHeadAttention(8, 2, key=jax.random.key(0))
    loss = lambda x: attention(x, key_padding_mask=everything).sum()
    value, grad = jax.value_and_grad(loss)(X)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()


def test_multi_head_attention_on_its_own():
    """Self- and cross-attention, with padding keys that must not matter."""
    attention = MultiHeadAttention(8, 2, key=jax.random.key(0))
    padding = jnp.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
    got = attention(X, MEMORY, key_padding_mask=padding)
    q, _, _ = (y.swapaxes(1, 2) for y in attention.qkv.each((X, X, X)))
    _, k, v = (y.swapaxes(1, 2) for y in attention.qkv.each((MEMORY,) * 3))
    allowed = np.broadcast_to(~padding[:, None, None], (2, 2, 4, 6))
    want = np.tensordot(plain(q, k, v, allowed), np.asarray(attention.out.kernel[...]), 2)
    np.testing.assert_allclose(got, want, atol=1e-5)
    other = jnp.where(padding[..., None], 9.0, MEMORY)
    np.testing.assert_allclose(attention(X, other, key_padding_mask=padding), got, atol=1e-6)
    assert np.abs(attention(X, other) - got).max() > 1e-2
    last = attention(X, causal=True)[:, -1]
    np.testing.assert_allclose(last, attention(X)[:, -1], atol=1e-6)


@pytest.mark.parametrize(
    ("masks", "line"),
    [
        ({"mask": jnp.ones((2, 2, 4, 3), bool)}, "mask has shape (2, 2, 4, 3), which does not"),
        ({"mask": jnp.ones((4, 4))}, "mask must be boolean, not float32"),
        ({"key_padding_mask": jnp.ones((4, 2), bool)}, "key_padding_mask has shape (4, 2)"),
    ],
)
def test_a_mask_of_the_wrong_shape_is_refused(masks, line):
    attention = MultiHeadAttention(8, 2, key=jax.random.key(0))
    with pytest.raises(ValueError) as error:
        attention(X, **masks)
    assert line in str(error.value)
    with pytest.raises(ValueError, match="n_head=3 does not divide width=8"):
        MultiHeadAttention(8, 3, key=jax.random.key(0))
