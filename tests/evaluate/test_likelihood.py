"""Batched log-likelihoods compared with one forward pass per request."""

from functools import cache

import jax
import numpy as np
import pytest

from gpt2_jax.evaluate import likelihood
from gpt2_jax.evaluate.likelihood import Request, Scorer
from tests.tools import noisy, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(model__n_positions=24)


def requests(n=40, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda low, high: tuple(random.integers(0, 11, random.integers(low, high)).tolist())
    return [Request(draw(1, 16), draw(1, 6)) for _ in range(n)]


@cache
def forward(model_def):
    return jax.jit(lambda params, ids: jax.nn.log_softmax(model_def.bind(params)(ids)[0]))


def by_hand(model, request, window):
    """One forward pass; padding after the request does not affect it."""
    ids = (request.context + request.continuation)[-(window + 1) :]
    padded = np.zeros((1, 24), np.int32)
    padded[0, : len(ids) - 1] = ids[:-1]
    model_def, params = model
    log_p = np.asarray(forward(model_def)(params, padded))
    at = range(len(ids) - 1 - min(len(request.continuation), len(ids) - 1), len(ids) - 1)
    return sum(log_p[i, ids[i + 1]] for i in at), all(log_p[i].argmax() == ids[i + 1] for i in at)


def test_batched_likelihoods_equal_those_of_each_request_alone(model, monkeypatch):
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 64)
    queries = requests()
    reported = {}
    results = Scorer(*model, step=0, window=24).score(queries, reported.__setitem__)
    assert reported == dict(enumerate(results))
    for request, result in zip(queries, results, strict=True):
        log_p, greedy = by_hand(model, request, 24)
        assert result.log_p == pytest.approx(log_p, abs=1e-4)
        assert result.is_greedy == greedy
    assert len({round(result.log_p, 3) for result in results}) == len(queries)


def test_greedy_continuations_are_recognized(model):
    """After each token, so that no result depends on what a row's padding happens to predict."""
    model_def, params = model[0], noisy(model[1], 1.0)
    logits = np.asarray(model_def.bind(params)(np.arange(11)[:, None]))[:, 0, :11]
    assert len(set(logits.argmax(-1).tolist())) > 1
    likely = [Request((i,), (int(row.argmax()),)) for i, row in enumerate(logits)]
    other = [Request((i,), (int(row.argmin()),)) for i, row in enumerate(logits)]
    results = Scorer(model_def, params, step=0, window=24).score(likely + other)
    assert [a.is_greedy for a in results] == [True] * 11 + [False] * 11


def test_beginning_of_a_too_long_request_is_cut_off(model):
    long = Request(tuple([5, 7] * 20), (3, 1))
    (result,) = Scorer(*model, step=0, window=12).score([long])
    assert result.log_p == pytest.approx(by_hand(model, long, 12)[0], abs=1e-4)
    assert result.log_p != pytest.approx(by_hand(model, long, 24)[0], abs=1e-4)


def test_continuation_longer_than_the_window_is_scored_in_full(model):
    """Half a window at a time, each token once, given the tokens that fit before it."""
    long = Request((5, 7, 1), tuple(np.random.default_rng(3).integers(0, 11, 29).tolist()))
    reported = {}
    queries = [Request((1,), (2,)), long]
    _, result = Scorer(*model, step=0, window=12).score(queries, reported.__setitem__)
    every = long.context + long.continuation
    starts = range(3, len(every), 6)
    parts = [Request(every[:start], every[start : start + 6]) for start in starts]
    assert sum(len(part.continuation) for part in parts) == 29
    assert result.log_p == pytest.approx(sum(by_hand(model, p, 12)[0] for p in parts), abs=1e-4)
    assert reported[1] == result and not result.is_greedy


@pytest.mark.parametrize(("context", "continuation"), [((), (1,)), ((1,), ())])
def test_empty_context_or_continuation_is_refused(context, continuation):
    with pytest.raises(ValueError, match="at least one token"):
        Request(context, continuation)


def test_few_programs_are_compiled_for_many_lengths(model):
    before = likelihood._score._cache_size()
    Scorer(*tiny_model(model__n_positions=24), step=0, window=24).score(requests(60, seed=1))
    assert likelihood._score._cache_size() - before <= 6
