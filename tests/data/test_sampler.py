"""Batches are a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.data.sampler import Sampler, permute
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError


def tokens(n):
    """Returns ids that equal their positions, in three arrays of different lengths."""
    ids = np.arange(n, dtype=np.uint32)
    return Tokens([ids[: n // 5], ids[n // 5 : n // 2], ids[n // 2 :]])


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_permute_is_a_permutation(n, seed):
    images = permute(np.arange(n, dtype=np.uint64), n, np.full(n, seed, np.uint64))
    assert sorted(images.tolist()) == list(range(n))


def test_permutations_differ_by_key_and_are_not_the_identity():
    index = np.arange(1000, dtype=np.uint64)
    a, b = (permute(index, 1000, np.full(1000, k, np.uint64)) for k in (1, 2))
    assert (a != index).mean() > 0.99 and (a != b).mean() > 0.99


def test_epoch_uses_every_window_once_and_the_next_uses_others():
    sampler = Sampler(tokens(1000), seq_len=10, batch_size=11, seed=3)
    assert sampler.windows_per_epoch == 99
    epochs = [
        np.concatenate([sampler.starts(step) for step in range(9 * e, 9 * e + 9)])
        for e in (0, 1, 2)
    ]
    for starts in epochs:
        offset = starts.min() % 10
        np.testing.assert_array_equal(np.sort(starts), offset + 10 * np.arange(99))
    assert len({int(starts.min()) % 10 for starts in epochs}) > 1  # offsets differ
    assert not np.array_equal(epochs[0] // 10, epochs[1] // 10)  # orders differ


def test_windows_are_consecutive_tokens_across_shards():
    sampler = Sampler(tokens(1000), seq_len=10, batch_size=8, seed=0)
    for step in range(30):
        batch = sampler.batch(step).tokens_BT1
        assert batch.dtype == np.int32 and batch.shape == (8, 11)
        np.testing.assert_array_equal(batch - batch[:, :1], np.tile(np.arange(11), (8, 1)))


def test_order_is_a_function_of_seed_and_step():
    make = lambda seed: Sampler(tokens(5000), 10, 8, seed)
    there, again, other = make(7), make(7), make(8)
    there.batch(3)
    for step in (1000, 2, 77):
        np.testing.assert_array_equal(there.batch(step).tokens_BT1, again.batch(step).tokens_BT1)
        assert (there.batch(step).tokens_BT1 != other.batch(step).tokens_BT1).any()


def test_processes_read_their_own_rows_of_one_batch():
    sampler = Sampler(tokens(5000), 10, 8, 0)
    parts = [sampler.batch(5, slice(start, start + 2)).tokens_BT1 for start in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), sampler.batch(5).tokens_BT1)


def test_order_has_fixed_literal_values():
    """A change of the data order would change every run."""
    sampler = Sampler(tokens(1000), seq_len=10, batch_size=6, seed=42)
    assert sampler.starts(0).tolist() == PINNED[0]
    assert sampler.starts(10**12).tolist() == PINNED[1]


PINNED = ([280, 530, 880, 650, 510, 320], [806, 296, 686, 36, 26, 356])


def test_too_little_text_is_a_one_line_error():
    with pytest.raises(UserError, match=r"20 tokens, too few for windows of data\.seq_len=10"):
        Sampler(tokens(20), 10, 2, 0)
