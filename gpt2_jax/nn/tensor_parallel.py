"""Tensor parallelism, as far as layers know of it."""

from __future__ import annotations

import jax

TENSOR = "tensor"  # mesh axis over which heads, hidden units and the vocabulary are split


def is_tensor_parallel() -> bool:
    """Returns whether XLA splits the model over devices, in a `shard_map` that leaves this to it.

    XLA cannot divide the call of a kernel that it did not write.
    """
    return jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1) > 1
