"""Attention masks as values: which keys each query attends to."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class SequenceMask(NamedTuple):
    """The mask of attention between whole sequences: within one, or from one to another.

    A query attends to the keys of its segment: those up to itself if `causal`, else all of them.
    Padding has a segment number of its own, 0, so no other token attends to it. A query whose
    segment has no keys attends to all keys alike: its output is finite, and must not be used.

    Attributes:
      causal: whether queries attend to no later key; for queries and keys of one sequence.
      queries_BT: the segment number of each query; None if all are in one segment.
      keys_BS: that of each key; None if the keys are the queries' own tokens.
      prefix_BS: keys that all queries of their segment attend to, also earlier ones (prefix-LM;
        Raffel et al. 2020, section 3.2.2); None for none.
    """

    causal: bool = True
    queries_BT: jax.Array | None = None
    keys_BS: jax.Array | None = None
    prefix_BS: jax.Array | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it depends on nothing but `causal`."""
        return self.queries_BT is None and self.keys_BS is None and self.prefix_BS is None

    def allowed(self, n_queries: int, n_keys: int) -> jax.Array | None:
        """Returns (T, S) or (B, 1, T, S), True where query T may attend to key S; None if all."""
        allowed = jnp.tril(jnp.ones((n_queries, n_keys), bool)) if self.causal else None
        if allowed is not None and self.prefix_BS is not None:
            allowed = allowed | self.prefix_BS[:, None, :]
        if self.queries_BT is not None:
            keys_BS = self.queries_BT if self.keys_BS is None else self.keys_BS
            same_BTS = self.queries_BT[:, :, None] == keys_BS[:, None, :]
            allowed = same_BTS if allowed is None else same_BTS & allowed
        return allowed[:, None] if allowed is not None and allowed.ndim == 3 else allowed

    def diagonal(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where query T and key S are the same token."""
        return jnp.eye(n_queries, n_keys)

    def is_token(self) -> jax.Array | None:
        """Returns (B, T), True for queries that are not padding; None if all are tokens."""
        return None if self.queries_BT is None else self.queries_BT != 0


CAUSAL = SequenceMask()


class CacheMask(NamedTuple):
    """Consecutive tokens attend to the columns of a key-value cache.

    Attributes:
      start: the column of the first token.
      mask_BTS: (B or 1, T, S), True where token T may attend to column S.
    """

    start: jax.Array | int
    mask_BTS: jax.Array

    def allowed(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (B or 1, 1, T, S), True where query T may attend to key S."""
        del n_queries, n_keys
        return self.mask_BTS[:, None]

    def diagonal(self, n_queries: int, n_keys: int) -> jax.Array:
        """Returns (T, S), nonzero where query T and key S are the same token."""
        columns_T = self.start + jnp.arange(n_queries)
        return jnp.arange(n_keys) == columns_T[:, None]


Mask = SequenceMask | CacheMask


def first_of_document(is_first_BT: jax.Array, index_T: jax.Array, first_B: jax.Array) -> jax.Array:
    """Returns the index of the first token of each token's document, (B, T).

    Args:
      is_first_BT: whether a token is the first of a document.
      index_T: the indices of the tokens. first_B: that of the first token of the open document;
        earlier tokens are padding.
    """
    begun_BT = jnp.where(is_first_BT, index_T, 0)
    return jnp.maximum(lax.cummax(begun_BT, axis=1), first_B[:, None])


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """Returns each token's position in its segment, (B, T), from 0.

    Args:
      segments_BT: a number per token; the tokens of a segment are contiguous.
    """
    index_T = jnp.arange(segments_BT.shape[1])
    before_BT = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    first_B = jnp.zeros_like(segments_BT[:, 0])
    return index_T - first_of_document(segments_BT != before_BT, index_T, first_B)
