"""Writes target sequences for sources with an encoder-decoder: translations, summaries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.data.batch import Tokens
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.model.beam import BeamParams, Beams, Hypotheses, beam_search
from gpt2_jax.model.decode import (
    Caches,
    UnstackedParams,
    bind_unstacked,
    decode_beams,
    empty_caches,
    read_source,
    unstack_params,
)
from gpt2_jax.model.definition import ModelDef

ROWS_AT_ONCE = 32
# Most tokens of a target, per token of the source and in addition: the search continues while a
# longer text could still be better.
LONGEST_RATIO, LONGEST_EXTRA = 1.5, 10
WIDTH_MULTIPLE = 16  # of the sources in a batch, so that few widths are compiled


class Translator:
    """Writes targets by beam search.

    Args:
      params: on one device. step: steps they were trained for.
      lengths: most tokens of a source and of a target, with the one that ends it.
    """

    def __init__(
        self,
        model_def: ModelDef,
        params: Any,
        step: int,
        tokenizer: Tokenizer,
        lengths: tuple[int, int],
        beam: BeamParams,
    ) -> None:
        beam.check()
        self._model_def, self._tokenizer = model_def, tokenizer
        self._lengths, self._beam = lengths, beam
        self._unstacked = unstack_params(model_def, params, step)

    def translate(self, sources: Sequence[str]) -> list[str]:
        """Returns the best target of each source. Longer sources are cut."""
        frame, longest = self._tokenizer.side_frame, self._lengths[0]
        ids = self._tokenizer.encode(sources)
        encoded = [frame.cut(frame.around(one), longest).tolist() for one in ids]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        texts = [""] * len(encoded)
        for first in range(0, len(order), ROWS_AT_ONCE):
            group = order[first : first + ROWS_AT_ONCE]
            found = self._search([encoded[i] for i in group])
            ids_BT, lengths_B = (np.asarray(x[:, 0]) for x in (found.ids_BKT, found.lengths_BK))
            for i, ids, n in zip(group, ids_BT, lengths_B, strict=False):
                texts[i] = self._text(ids[:n].tolist())
        return texts

    def _search(self, sources: Sequence[Sequence[int]]) -> Hypotheses:
        special, frame = self._tokenizer.specials, self._tokenizer.side_frame
        width = -(-max(map(len, sources)) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        width = min(width, self._lengths[0])
        length = min(_longest(width), self._lengths[1])
        ids_BS = np.full((ROWS_AT_ONCE, width), special.pad, np.int32)
        segments_BS, limits_B = np.zeros_like(ids_BS), np.ones(ROWS_AT_ONCE, np.int32)
        segments_BS[:, 0] = 1  # rows that fill the batch have one token
        for row, ids in enumerate(sources):
            ids_BS[row, : len(ids)], segments_BS[row, : len(ids)] = ids, 1
            limits_B[row] = min(_longest(len(ids)), length)
        return _search(
            self._model_def,
            self._unstacked,
            Tokens(ids_BS, segments_BS),
            np.full(ROWS_AT_ONCE, special.start, np.int32),
            limits_B,
            beam=self._beam,
            length=length,
            end=special.eos,
            padding=None if special.pad == special.eos else special.pad,
            forced=(frame.forced_first, frame.forced_last),
        )

    def _text(self, ids: list[int]) -> str:
        if ids and ids[-1] == self._tokenizer.specials.eos:
            ids = ids[:-1]
        return self._tokenizer.decode_bytes(ids).decode(errors="replace").strip()


def _longest(n: int) -> int:
    """Returns the most tokens of a target for a source of n tokens."""
    return int(LONGEST_RATIO * n) + LONGEST_EXTRA


_STATIC = ("model_def", "beam", "length", "end", "padding", "forced")


@partial(jax.jit, static_argnames=_STATIC)
def _search(
    model_def: ModelDef,
    unstacked: UnstackedParams,
    source: Tokens,
    first_B: jax.Array,
    limits_B: jax.Array,
    *,
    beam: BeamParams,
    length: int,
    end: int,
    padding: int | None,
    forced: tuple[int | None, int | None],
) -> Hypotheses:
    """Returns the best targets of sources (B, S), one example per row.

    Padding is never written. Marian has learned no logit for it: it is 0, and often the largest.

    Args:
      forced: as in `SideFrame`: what the first id must be, and the last one at the limit.
    """
    source = Tokens(*(None if x is None else jnp.asarray(x) for x in source))
    bound, (n_rows, _) = bind_unstacked(model_def, unstacked), source.ids_BT.shape
    read, no_padding_B = read_source(bound, source), jnp.zeros(n_rows, jnp.int32)

    def step(caches: Caches, beams: Beams) -> tuple[jax.Array, Caches]:
        logits_BKV, caches = decode_beams(bound, caches, beams, 0, no_padding_B, read)
        if padding is not None:
            logits_BKV = logits_BKV.at[..., padding].set(-jnp.inf)
        for i, column_B in zip(forced, (jnp.zeros_like(limits_B), limits_B - 1), strict=True):
            if i is not None:
                logits_BKV = _forced(logits_BKV, beams.column == column_B, i)
        return logits_BKV, caches

    caches = empty_caches(model_def.cfg, n_rows, length * beam.n_beams)
    return beam_search(step, caches, first_B, limits_B, beam, length=length, end=end)


def _forced(logits_BKV: jax.Array, chosen_B: jax.Array, i: int) -> jax.Array:
    """Returns logits with which the chosen rows can only continue with the id `i`."""
    others_V = jnp.arange(logits_BKV.shape[-1]) != i
    return jnp.where(chosen_B[:, None, None] & others_V, -jnp.inf, logits_BKV)
