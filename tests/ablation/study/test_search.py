"""The search for a learning rate: what it tries, with how many seeds, and what it leaves open."""

import dataclasses
import math

import pytest

from gpt2_jax.ablation.study.search import Search, parabola_gain

INF = math.inf
FOUR = (0, 101, 102, 103)


def follow(search, loss):
    """Simulates a search with `loss(k, i)` and returns the losses that it requested."""
    losses = {}
    for _ in range(50):
        if not (requested := search.next(losses)):
            return losses
        for k, i in requested:
            assert i == len(losses.setdefault(k, []))
            losses[k].append(loss(k, i))
    raise AssertionError("does not end")


def first(losses):
    return {k: [loss] for k, loss in enumerate(losses)}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], [0, 1, 2]),
        ([3.0, 2.0, 3.0], []),
        ([1.0, 2.0, 3.0], [-2, -1]),
        ([3.0, 2.0, 1.0], [3, 4]),
        ([3.0, 2.0, 1.0, 0.9, INF], []),
        ([INF, INF, INF], [-2, -1]),
        # OLMo 2 in the first placement study: losses fall at the end, although the best is inside.
        ([2.397, 2.345, 2.354, 2.376, 2.403, 2.365], [6, 7]),
        ([2.397, 2.345, 2.354, 2.376, 2.403, 2.365, 2.302, 2.193], [8, 9]),
        ([2.397, 2.345, 2.354, 2.376, 2.403, 2.365, 2.302, 2.193, 2.233, 2.5], []),
        ([2.3, 2.4, 2.0, 2.1, 2.2], [-2, -1]),  # falling toward the other end
    ],
)
def test_search_extends_while_the_best_is_at_an_end_or_losses_fall_there(losses, expected):
    search = Search(1.0, n=3, seeds=(0,))
    assert search.next(first(losses)) == [(k, 0) for k in expected]


def test_search_stops_at_its_limit_and_reports_it():
    search = Search(1.0, n=3, seeds=(0,), max_n=4)
    assert search.next(first([1.0, 2.0, 3.0])) == [(-1, 0)]
    losses = {-1: [0.5]} | first([1.0, 2.0, 3.0])
    assert search.next(losses) == []
    assert "limit of 4 learning rates" in search.unresolved(losses)[0]
    inside = first([3.0, 1.0, 2.0])
    assert not any("limit" in line for line in search.unresolved(inside))
    assert [search.learning_rate(k) for k in (-1, 0, 3)] == [0.5, 1.0, 8.0]


def test_best_its_neighbors_and_near_equals_get_all_seeds():
    noise = [0.0, 0.02, -0.02, 0.01]
    curve = {0: 9.0, 1: 2.3, 2: 2.0, 3: 2.3, 4: 2.2, 5: 2.4, 6: 2.5}
    losses = follow(Search(1.0, n=7, seeds=FOUR), lambda k, i: curve[k] + (-1) ** k * noise[i])
    assert {k for k, values in losses.items() if len(values) == 4} == {1, 2, 3}
    curve[4] = 2.03
    far = follow(Search(1.0, n=7, seeds=FOUR), lambda k, i: curve[k] + (-1) ** k * noise[i])
    assert len(far[4]) == 4  # not a neighbor of the best, but within two standard errors of it


def test_runner_up_within_two_standard_errors_is_in_contention():
    """Differences of four seeds: mean 0.03, sd 0.02, so three standard errors (0.01) away."""
    search = Search(1.0, n=3, seeds=FOUR)
    best = [2.0, 2.0, 2.0, 2.0]
    away = [2.03 + d for d in (0.02, -0.02, math.sqrt(0.0002), -math.sqrt(0.0002))]
    assert search.in_contention({0: [9.0] * 4, 1: best, 2: away}) == [1]
    near = [loss - 0.0101 for loss in away]
    assert search.in_contention({0: [9.0] * 4, 1: best, 2: near}) == [1, 2]
    assert search.in_contention({0: near, 1: best, 2: near}) == [1, 0, 2]
    two = dataclasses.replace(search, max_contenders=2)
    losses = {0: near, 1: best, 2: near}
    assert two.in_contention(losses) == [1, 0]
    assert "1 of the learning rates within two standard errors" in two.unresolved(losses)[0]


def test_neighbors_are_in_contention_with_one_seed():
    search, losses = Search(1.0, n=3, seeds=(0,)), first([2.5, 2.0, 2.4, 3.0])
    assert search.in_contention(losses) == [1, 2, 0]
    assert "one search seed" in search.unresolved(losses)[0]


def test_learning_rate_with_a_broken_seed_is_in_contention_but_not_chosen():
    """The best has one broken seed of four, so an equally good one is chosen."""
    noise = [0.0, 0.02, -0.02, 0.01]

    def loss(k, i):
        return INF if k == 2 and i == 0 else 2.0 + 0.1 * abs(k - 2) + (-1) ** k * noise[i]

    search = Search(1.0, n=5, seeds=FOUR)
    losses = follow(search, loss)
    assert search.best(losses) == 2 and search.in_contention(losses) == [2]
    near = losses | {3: [2.01, 2.02, 1.97, 2.0]}
    assert search.in_contention(near) == [3, 2]
    apart = losses | {3: [2.0, INF, INF, 2.05]}  # shares too few unbroken seeds with the best
    assert search.in_contention(apart | {2: [INF, 2.02, 1.98, 2.01]}) == [2, 3]
    half = losses | {2: [INF, INF, INF, 2.0]}  # more than half broke
    assert 2 not in search.in_contention(half)
    every = follow(search, lambda k, i: INF)
    assert search.in_contention(every) == [min(every)]
    assert any("more than half of the seeds broke" in line for line in search.unresolved(every))


def test_parabola_minimum_between_grid_points():
    """(k - 0.25)^2 at -1, 0, 1: 1.5625, 0.0625, 0.5625; its minimum is 0."""
    assert parabola_gain(1.5625, 0.0625, 0.5625) == pytest.approx(0.0625)
    assert parabola_gain(1.0, 1.0, 1.0) == 0
