"""Statistics against scipy, tables, hand-worked cases, and campaigns whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from gpt2_jax.ablate.statistics import (
    MOST_SEEDS,
    bootstrap_interval,
    compare,
    holm,
    paired_p,
    power,
    seeds_needed,
    sensitivity,
    t_interval,
)  # fmt: skip

LOSSES = [3.1, 3.4, 3.0, 3.3, 3.2]


def test_student_by_hand():
    """Mean 3.2, s^2 = 0.1 / 4, s/sqrt(5) = 0.070711, t(0.975, 4) = 2.776 of any table."""
    found = t_interval(LOSSES)
    assert found.mean == pytest.approx(3.2)
    assert found.high - found.mean == pytest.approx(2.776445 * 0.0707107, rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_student_is_scipys(level):
    values = np.random.default_rng(1).normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert t_interval(values, level)[1:] == pytest.approx((expected.low, expected.high))


def test_a_single_value_has_no_interval():
    for interval in (t_interval, bootstrap_interval):
        found = interval([2.5])
        assert found.mean == 2.5 and math.isnan(found.low) and math.isnan(found.high)


def test_the_bootstrap_is_that_of_all_resamples():
    """Of three values 27 resamples exist; their means' quantiles are what many draws tend to."""
    values = [1.0, 2.0, 6.0]
    means = sorted(np.mean([a, b, c]) for a in values for b in values for c in values)
    found = bootstrap_interval(values)
    expected = np.quantile(means, [0.025, 0.05, 0.95, 0.975], method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx((expected[0], expected[3]))
    found = bootstrap_interval(values, 0.9)
    assert (found.low, found.high) == pytest.approx((expected[1], expected[2]))
    assert expected[0] < expected[1] and found == bootstrap_interval(values, 0.9)
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_pairs_by_hand():
    """d = -1 -2 -3: mean -2, s = 1, t = -2 sqrt(3) = -3.4641; p = 0.0742 with 2 degrees."""
    found = compare({"a": ([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])})["a"]
    assert found.difference.mean == -2 and found.spread == 1 and found.n == 3
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert found.verdict == "not distinguishable"
    assert found.p == pytest.approx(stats.ttest_rel([1, 1, 1], [2, 3, 4]).pvalue)


def test_pairing_sees_what_the_spread_of_seeds_hides():
    rng = np.random.default_rng(0)
    seeds = rng.normal(3, 0.5, 6)
    better = seeds - 0.05 + rng.normal(0, 0.01, 6)
    assert compare({"a": (better, seeds)})["a"].verdict == "better"
    assert compare({"a": (seeds, better)})["a"].verdict == "worse"
    assert stats.ttest_ind(better, seeds).pvalue > 0.5


def test_pairs_without_spread():
    assert paired_p([0.0, 0.0]) == 1 and paired_p([0.1, 0.1]) == 0
    assert math.isnan(paired_p([0.3]))
    assert compare({"a": ([1.0], [2.0])})["a"].verdict == "cannot be said: too few seeds"


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04 x 1, none below the one before."""
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02, "none": math.nan})
    assert [found[name] for name in "abcd"] == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert math.isnan(found["none"])
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_power_of_a_table():
    """Cohen's paired t test: effect 0.5, n = 34, alpha 0.05 two-sided has power 0.807."""
    assert power(0.5, 34) == pytest.approx(0.8078, abs=2e-3)
    assert power(0.0, 10) == pytest.approx(0.05, abs=1e-6)
    assert seeds_needed(0.5) == 34 and seeds_needed(-0.5) == 34
    assert seeds_needed(1.0) == 10 and seeds_needed(0.8) == 15  # G*Power 3.1
    assert seeds_needed(0.5, comparisons=9) > 50
    assert seeds_needed(1e14, comparisons=12) == 2
    assert seeds_needed(0.01) is None and seeds_needed(math.nan) is None
    assert power(3.5 / MOST_SEEDS**0.5, MOST_SEEDS) > 0.8


def campaign(rng, effects, n, spread=0.02):
    """Losses of a baseline and variants that share what a seed does to a run."""
    shared = rng.normal(3.0, 0.1, n)
    baseline = shared + rng.normal(0, spread / 2**0.5, n)
    draw = lambda: shared + rng.normal(0, spread / 2**0.5, n)
    return {f"v{i}": (draw() + effect, baseline) for i, effect in enumerate(effects)}


def test_false_positives_of_whole_campaigns():
    """Nine variants that do not differ: one of them is called different in at most 5 %."""
    rng, n = np.random.default_rng(5), 250
    wrong = sum(
        any(
            c.verdict != "not distinguishable"
            for c in compare(campaign(rng, [0.0] * 9, 5)).values()
        )
        for _ in range(n)
    )
    sigma = (0.05 * 0.95 / n) ** 0.5
    assert wrong / n < 0.05 + 3 * sigma
    uncorrected = [
        any(c.p < 0.05 for c in compare(campaign(rng, [0.0] * 9, 5)).values()) for _ in range(100)
    ]
    assert np.mean(uncorrected) > 0.12  # which is what the correction is for


def test_a_single_comparison_is_wrong_as_often_as_it_says():
    rng, n = np.random.default_rng(6), 1000
    wrong = sum(compare(campaign(rng, [0.0], 5))["v0"].corrected < 0.05 for _ in range(n))
    assert wrong / n == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / n) ** 0.5)


@pytest.mark.parametrize(("effect", "n"), [(0.03, 5), (0.02, 8)])
def test_power_is_as_claimed(effect, n):
    rng, runs, spread = np.random.default_rng(7), 500, 0.02
    seen = sum(
        compare(campaign(rng, [effect], n, spread))["v0"].verdict == "worse" for _ in range(runs)
    )
    claimed = power(effect / spread, n)
    assert 0.5 < claimed < 0.95
    assert seen / runs == pytest.approx(claimed, abs=4 * (0.25 / runs) ** 0.5)


def test_the_seeds_asked_for_are_enough():
    effect, spread = 0.025, 0.02
    n = seeds_needed(effect / spread, comparisons=4)
    rng, runs = np.random.default_rng(8), 200
    found = [compare(campaign(rng, [-effect, 0.0, 0.0, 0.0], n, spread)) for _ in range(runs)]
    seen = np.mean([c["v0"].verdict == "better" for c in found])
    assert 0.72 < seen < 0.95  # Holm is a little kinder than its strictest step
    fewer = [compare(campaign(rng, [-effect, 0.0, 0.0, 0.0], n // 2, spread)) for _ in range(runs)]
    assert np.mean([c["v0"].verdict == "better" for c in fewer]) < 0.6


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, runs = np.random.default_rng(9), 1500
    covered = {"t": 0, "bootstrap": 0}
    for i in range(runs):
        values = rng.normal(size=5)
        found = t_interval(values)
        covered["t"] += found.low < 0 < found.high
        if i < 150:  # each takes ten thousand draws
            found = bootstrap_interval(values)
            covered["bootstrap"] += found.low < 0 < found.high
    assert covered["t"] / runs == pytest.approx(0.95, abs=4 * (0.05 * 0.95 / runs) ** 0.5)
    assert 0.72 < covered["bootstrap"] / 150 < 0.92  # too narrow, as its docstring says


def test_sensitivity_by_hand():
    """min(loss, 5) - 3 at four rates: 1, 0, 0.5, 2: their mean."""
    assert sensitivity([4.0, 3.0, 3.5, math.inf], 5.0) == pytest.approx(3.5 / 4)
    assert sensitivity([3.0, 3.0], 5.0) == 0
