"""Beam search with a GPT-2, against a search with lists and full forward passes."""

import jax
import numpy as np
import pytest

from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import GREEDY
from gpt2_jax.model.beam import BeamParams
from tests.tools import tiny_model

END, WINDOW = 0, 12
PROMPTS = [[1, 2, 3], [7, 0, 9, 9, 4], [5], [1, 2, 0]]


def listed_search(model_def, params, prompt, n_new, beam: BeamParams):
    """Searches without caches and without stopping early; returns [(ids, score)]."""
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model_def.bind(params)(tokens)))

    def log_p(ids):
        padded = np.zeros((1, WINDOW), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(forward(padded)[0, len(ids) - 1, :11], np.float64)

    live, finished = [(0.0, [])], []
    for n in range(1, n_new + 1):
        extended = [
            (total + p, [*ids, token])
            for total, ids in live
            for token, p in enumerate(log_p([*prompt, *ids]))
        ]
        extended.sort(key=lambda one: -one[0])
        ended = lambda one: one[1][-1] == END or len(one[1]) == n_new
        finished += [(ids, t / n**beam.alpha) for t, ids in filter(ended, extended[: beam.n_beams])]
        live = [one for one in extended[: 2 * beam.n_beams] if not ended(one)][: beam.n_beams]
    return sorted(finished, key=lambda one: -one[1])[: beam.n_beams]


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 3.0),
        ({"placement__preset": "post_ln", "placement__positions": "rotary"}, 1.0),
        ({"model__document_mask": True, "model__end_of_text": END}, 3.0),
    ],
)
def test_beams_of_a_batch_equal_a_search_without_caches(changes, scale):
    """Prompts of three lengths share a batch; two contain the end of a document."""
    model_def, params = tiny_model(**changes)
    params = jax.tree.map(lambda x: scale * x, params)  # so that log p differs more
    generator, beam = Generator(model_def, params, 0, WINDOW, END), BeamParams(3)
    found = generator.search(PROMPTS, 6, beam)
    for prompt, got in zip(PROMPTS, found, strict=True):
        want = listed_search(model_def, params, prompt, 6, beam)
        assert [ids for ids, _ in got] == [[i for i in ids if i != END] for ids, _ in want]
        np.testing.assert_allclose([s for _, s in got], [s for _, s in want], rtol=1e-3, atol=1e-5)
    if not changes:
        assert [got[0][0] for got in found] != generator.generate(PROMPTS, 6, GREEDY)


def test_one_beam_equals_greedy_generation():
    generator = Generator(*tiny_model(), step=0, window=WINDOW, end=END)
    found = generator.search(PROMPTS, 6, BeamParams(1))
    assert [got[0][0] for got in found] == generator.generate(PROMPTS, 6, GREEDY)


def test_search_ends_where_the_window_is_full():
    generator = Generator(*tiny_model(), step=0, window=WINDOW)
    (found,) = generator.search([[1] * 8], 100, BeamParams(2))
    assert [len(ids) for ids, _ in found] == [4, 4]
