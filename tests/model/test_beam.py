"""Beam search on a toy model with a memory, against exhaustive search and a list-based search."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.errors import UserError
from gpt2_jax.model.beam import BeamParams, beam_search
from tests.model.reordering import reordering

END, N_IDS, N_STATES = 4, 5, 97
STEPS = []  # one entry per step of a search
FIRST = (1, 2, 0, 3)
PENALTIES = [("power", 1.0), ("power", 0.0), ("power", -1.0), ("power", 3.0), ("gnmt", 0.6)]


def table(seed: int, scale: float = 1.5) -> np.ndarray:
    """Returns logits (state, id): what a text of the toy model continues with."""
    logits = scale * np.random.default_rng(seed).normal(size=(N_STATES, N_IDS))
    logits[:, END] += 0.5
    return logits.astype(np.float32)


def log_p_of(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def next_state(state, token):
    """The state depends on all tokens and their order, so hypotheses need their own caches."""
    return (3 * state + token + 1) % N_STATES


@partial(jax.jit, static_argnames=("params", "length", "end"))
def searched(logits, states_N, first_B, limits_B, params, length, end):
    """Searches with a state per hypothesis, which must be reordered."""

    def step(states_N, tokens_N):
        jax.debug.callback(lambda: STEPS.append(1))
        states_N = next_state(states_N, tokens_N)
        return logits[states_N], states_N

    toy = reordering(step, lambda states_N, rows_N: states_N[rows_N])
    return beam_search(toy, states_N, first_B, limits_B, params, length=length, end=end)


def search(logits, params, first=FIRST, limits=(4, 4, 4, 4), length=4, end=END):
    states_N = np.zeros(len(first) * params.n_beams, np.int32)
    found = searched(logits, states_N, np.array(first), np.array(limits), params, length, end)
    return jax.tree.map(np.asarray, found)


def texts(found, row: int):
    """Returns (ids, score) of each hypothesis of a row."""
    triples = zip(*(x[row] for x in found), strict=True)
    return [(tuple(ids[:n].tolist()), float(score)) for ids, n, score in triples if n]


def penalty(params, n):
    return ((5 + n) / 6 if params.penalty == "gnmt" else n) ** params.alpha


def all_texts(logits, params, first, limit, end=END):
    """Returns (ids, score) of every text, the best first."""
    log_p, scored = log_p_of(logits), []
    for n in range(1, limit + 1):
        for ids in itertools.product(range(N_IDS), repeat=n):
            if end in ids[:-1] or (n < limit and ids[-1] != end):
                continue
            state, total = 0, 0.0
            for before, token in zip((first, *ids), ids, strict=False):
                state = next_state(state, before)
                total += log_p[state, token]
            scored.append((ids, total / penalty(params, n)))
    return sorted(scored, key=lambda one: -one[1])


def listed_search(logits, params, first, limit, end=END):
    """Searches with lists and without stopping early; returns (ids, score), the best first."""
    k, log_p = params.n_beams, log_p_of(logits)
    live, finished = [(0.0, (), next_state(0, first))], []
    for n in range(1, limit + 1):
        extended = [
            (total + log_p[state, token], (*ids, token), next_state(state, token))
            for total, ids, state in live
            for token in range(N_IDS)
        ]
        extended.sort(key=lambda one: -one[0])
        ended = lambda one: one[1][-1] == end or len(one[1]) == limit
        finished += [(ids, t / penalty(params, n)) for t, ids, _ in filter(ended, extended[:k])]
        live = [one for one in extended[: 2 * k] if not ended(one)][:k]
    return sorted(finished, key=lambda one: -one[1])[:k]


def assert_equal_texts(got, want):
    assert [ids for ids, _ in got] == [ids for ids, _ in want]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in want], rtol=1e-5)


@pytest.mark.parametrize(("name", "alpha"), PENALTIES)
def test_wide_beam_equals_exhaustive_search(name, alpha):
    params, logits = BeamParams(320, alpha, name), table(0)
    found = search(logits, params)
    for row, first in enumerate(FIRST):
        want = all_texts(logits, params, first, 4)
        assert len(want) == 1 + 4 + 16 + 64 * 5
        assert_equal_texts(texts(found, row)[:20], want[:20])


def test_penalties_change_the_best_text():
    best = {
        (name, alpha): texts(search(table(0), BeamParams(320, alpha, name)), 0)[0][0]
        for name, alpha in PENALTIES
    }
    assert len(best["power", -1.0]) < len(best["power", 3.0])
    assert len(set(best.values())) > 1


@pytest.mark.parametrize(("name", "alpha"), PENALTIES)
@pytest.mark.parametrize("n_beams", [2, 5])
def test_narrow_beam_equals_a_search_with_lists(n_beams, name, alpha):
    """The lists never stop early, so an early stop loses nothing."""
    params = BeamParams(n_beams, alpha, name)
    for seed in range(4):
        logits, limits = table(seed), (8, 3, 1, 6)
        found = search(logits, params, limits=limits, length=8)
        for row, (first, limit) in enumerate(zip(FIRST, limits, strict=True)):
            want = listed_search(logits, params, first, limit)
            assert_equal_texts(texts(found, row), want)


def test_narrow_beam_is_not_exhaustive():
    params = BeamParams(2, 0.0)
    best = lambda search, seed: search(table(seed), params, FIRST[0], 4)[0]
    assert any(best(listed_search, seed) != best(all_texts, seed) for seed in range(20))


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
def test_one_beam_is_greedy(alpha):
    """It ends with the first text that ends, even if another could score better."""
    for seed in range(6):
        logits = table(seed)
        found = search(logits, BeamParams(1, alpha), limits=(8, 8, 8, 8), length=8)
        for row, first in enumerate(FIRST):
            state, ids = next_state(0, first), []
            while len(ids) < 8 and END not in ids:
                ids.append(int(logits[state].argmax()))
                state = next_state(state, ids[-1])
            assert texts(found, row)[0][0] == tuple(ids)


def test_rows_are_independent():
    logits, params = table(1), BeamParams(3)
    limits = (8, 2, 5, 8)
    found = search(logits, params, limits=limits, length=8)
    for row, (first, limit) in enumerate(zip(FIRST, limits, strict=True)):
        alone = search(logits, params, (first,), (limit,), 8)
        for x, y in zip(found, alone, strict=True):
            np.testing.assert_array_equal(x[row], y[0])


def test_ids_after_the_end_and_missing_hypotheses():
    found = search(table(0), BeamParams(320), limits=(2, 1, 4, 4))
    assert (found.lengths_BK[1] > 0).sum() == N_IDS
    assert np.isneginf(found.scores_BK[1, N_IDS:]).all()
    for ids_T, n in zip(found.ids_BKT[0], found.lengths_BK[0], strict=True):
        assert (ids_T[n:] == END).all() and (ids_T[: max(0, n - 1)] != END).all()
    assert (np.diff(found.scores_BK[2]) <= 0).all()


def test_without_an_end_all_texts_have_the_longest_length():
    params = BeamParams(3)
    found = search(table(0), params, end=None)
    assert (found.lengths_BK == 4).all()
    assert_equal_texts(texts(found, 0), listed_search(table(0), params, FIRST[0], 4, end=None))


def test_search_stops_when_no_live_hypothesis_can_win():
    """Texts that end with probability 0.97 leave others no chance if longer is not better."""
    logits = np.full((N_STATES, N_IDS), -1.0, np.float32)
    logits[:, END] = 4.0
    steps = {}
    for params in (BeamParams(2, 0.0), BeamParams(2, -1.0), BeamParams(2, 1.0), BeamParams(1)):
        STEPS.clear()
        search(logits, params, limits=(64,) * 4, length=64)
        jax.effects_barrier()
        steps[params.n_beams, params.alpha] = len(STEPS)
    assert steps[2, 0.0] <= 3 and steps[2, -1.0] <= 3
    assert 3 < steps[2, 1.0] < 64
    assert steps[1, 1.0] == 1


def test_slots_say_where_each_hypothesis_was():
    """A step that reads its history by `slots_BKT` equals one whose caches are reordered."""
    logits, params, length = table(2), BeamParams(3), 7

    def step(tokens_BTK, beams):
        t = beams.column
        tokens_BTK = tokens_BTK.at[:, t].set(beams.tokens_BK)
        states_BK = jnp.zeros_like(beams.tokens_BK)
        for i in range(length):
            slots_BK = beams.slots_BKT[..., i]
            tokens_BK = jnp.take_along_axis(tokens_BTK[:, i], slots_BK, 1)
            states_BK = jnp.where(i <= t, next_state(states_BK, tokens_BK), states_BK)
        return jnp.asarray(logits)[states_BK], tokens_BTK

    limits = (7, 7, 5, 7)
    got = beam_search(
        step,
        jnp.zeros((4, length, 3), jnp.int32),
        jnp.array(FIRST),
        jnp.array(limits),
        params,
        length=length,
        end=END,
    )
    want = search(logits, params, limits=limits, length=length)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_large_vocabulary_and_padding_ids():
    """The best ids are found in any group; padding has the lowest finite logit."""
    rng = np.random.default_rng(0)
    logits_NV = rng.normal(size=(2, 300)).astype(np.float32)
    logits_NV[:, 290:] = np.finfo(np.float32).min

    def step(count, beams):
        return jnp.broadcast_to(logits_NV[:, None], (2, 150, 300)), count

    limits = jnp.array([1, 1])
    found = beam_search(step, 0, jnp.zeros(2, int), limits, BeamParams(150), length=1, end=None)
    for row in range(2):
        assert found.ids_BKT[row, :, 0].tolist() == (-logits_NV[row]).argsort()[:150].tolist()
    few = beam_search(
        lambda c, beams: (step(c, beams)[0][..., 280:], c),
        *(0, jnp.zeros(2, int), limits, BeamParams(150)),
        length=1,
        end=None,
    )
    assert (few.lengths_BK > 0).sum(1).tolist() == [10, 10]


@pytest.mark.parametrize("params", [BeamParams(0), BeamParams(1001), BeamParams(2, 11.0)])
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(UserError, match="must be from"):
        params.check()
