"""Statistics compared with scipy, tables, cases worked by hand, and simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import null_studies
from gpt2_jax.ablation.statistics import (
    POWER,
    Arm,
    binomial_tail,
    compare,
    detectable,
    holm,
    median_interval,
    power,
    seeds_for,
    seeds_to_reject,
    sensitivity,
    share_interval,
    t_interval,
)  # fmt: skip
from gpt2_jax.ablation.study.search import Search

INF = math.inf
LOSSES = [3.1, 3.4, 3.0, 3.3, 3.2]


def test_t_interval_by_hand():
    """Mean 3.2, s^2 = 0.1 / 4, s/sqrt(5) = 0.070711, and t(0.975, 4) = 2.776 from a table."""
    found = t_interval(LOSSES)
    assert found.estimate == pytest.approx(3.2)
    assert found.high - found.estimate == pytest.approx(2.776445 * 0.0707107, rel=1e-5)
    assert found.estimate - found.low == pytest.approx(found.high - found.estimate)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_t_interval_equals_scipys(level):
    values = np.random.default_rng(1).normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert t_interval(values, level)[1:] == pytest.approx((expected.low, expected.high))


def test_single_value_has_no_interval():
    for interval in (t_interval, median_interval):
        found = interval([2.5])
        assert found.estimate == 2.5 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("n", "rank"), [(5, None), (6, 1), (8, 1), (9, 2), (12, 3), (17, 5), (20, 6), (25, 8)]
)
def test_ranks_that_enclose_the_median_match_a_table(n, rank):
    """Ranks of the 95% interval from tables of the sign test."""
    values = [float(i) for i in range(1, n + 1)]
    found = median_interval(reversed(values))
    assert found.estimate == np.median(values)
    ends = (math.nan, math.nan) if rank is None else (rank, n + 1 - rank)
    assert (found.low, found.high) == pytest.approx(ends, nan_ok=True)


def test_broken_seeds_are_the_largest_losses():
    assert median_interval([1.0, 2, 3, 4, 5, INF]) == (3.5, 1.0, INF)
    assert median_interval([1.0, *[INF] * 6]).estimate == INF


def arms(differences):
    return Arm([3.0 + d for d in differences]), Arm([3.0] * len(differences))


def one(differences, smallest=0.0, **more):
    return compare({"a": arms(differences)}, smallest, **more)["a"]


def test_sign_test_equals_scipys():
    for k, n in ((9, 9), (8, 9), (5, 9), (0, 7)):
        expected = stats.binomtest(k, n, alternative="greater").pvalue
        assert binomial_tail(n, k) == pytest.approx(expected)
    found = one([-0.1] * 8 + [0.2])
    assert found.p == pytest.approx(stats.binomtest(8, 9).pvalue)  # 20 / 512
    assert found.verdict == "better" and found.n == 9
    assert one([0.1] * 8 + [-0.2]).verdict == "worse"
    assert one([0.1] * 7 + [-0.2] * 2).verdict == "not distinguishable"


def test_negligible_difference_is_not_better():
    assert one([-4e-16] * 9, 1e-9).verdict == "equivalent"
    assert one([-0.004] * 9, 0.005).verdict == "equivalent"
    assert one([-0.006] * 9, 0.005).verdict == "better"
    assert one([-0.006] * 7 + [-0.004] * 2, 0.005).verdict == "not distinguishable"
    assert one([0.0] * 9).verdict == "equivalent"


def test_equivalence_is_corrected_for_the_number_of_comparisons():
    """Of nine values, the second smallest and largest enclose the median with 96.1%, not 99.4%."""
    values = [-0.01, 0.01, *[0.001] * 7]
    assert one(values, 0.005).verdict == "equivalent"
    found = one(values, 0.005, family=9)
    assert found.verdict == "not distinguishable"
    assert found.bounds == pytest.approx((0.001, -0.01, 0.01))
    assert found.difference == pytest.approx((0.001, 0.001, 0.001))


def test_too_few_seeds_are_inconclusive():
    assert one([-1.0] * 5).verdict == "inconclusive: too few seeds"
    assert one([-1.0] * 6).verdict == "better"
    assert one([-1.0] * 6, family=2).verdict == "inconclusive: too few seeds"
    assert [seeds_to_reject(m) for m in (0, 1, 2, 3, 9, 12, 13)] == [6, 6, 7, 7, 9, 9, 10]
    for m in (1, 2, 9, 13):
        n = seeds_to_reject(m)
        assert 2 * 0.5**n * m <= 0.05 < 2 * 0.5 ** (n - 1) * m


def test_verdict_must_hold_at_every_learning_rate_in_contention():
    """The baseline is as good as the variant at its second learning rate, but not vice versa."""
    low, high = [3.0] * 9, [3.1] * 9
    of = lambda variant, baseline: compare({"a": (variant, baseline)})["a"]
    assert of(Arm(low), Arm(high)).verdict == "better"
    found = of(Arm(low), Arm(high, [low]))
    assert found.verdict == "not distinguishable" and found.p == 1
    assert found.difference == pytest.approx((-0.1, -0.1, 0.0))
    assert of(Arm(low, [high]), Arm(high)).verdict == "better"  # the chosen learning rate suffices
    assert of(Arm(high, [low]), Arm(low)).verdict == "not distinguishable"
    assert of(Arm(high), Arm(low, [high])).verdict == "worse"


def test_broken_seeds_count_against_the_loss_and_have_a_separate_verdict():
    found = one([-0.1] * 8 + [INF])
    assert found.verdict == "better" and found.broken == (1, 0)
    assert found.broken_verdict == "not distinguishable"
    assert found.mean == pytest.approx(-0.1) and found.difference.high == pytest.approx(-0.1)
    found = one([-0.1] * 4 + [INF] * 5)
    assert found.verdict == "not distinguishable" and found.difference.estimate == INF
    assert found.broken_verdict == "less stable"
    assert found.broken_p == pytest.approx(stats.fisher_exact([[5, 4], [0, 9]]).pvalue)
    both = Arm([INF] * 9)
    assert compare({"a": (both, both)})["a"].difference.estimate == 0
    assert compare({"a": (both, both)})["a"].broken_verdict == "not distinguishable"
    all_broken = one([INF] * 9)
    assert all_broken.verdict == "worse" and math.isnan(all_broken.sd)
    each = compare({"a": (Arm([3.0, INF] * 3), Arm([INF, 3.0] * 3))})["a"]  # never both broken
    assert math.isnan(each.difference.estimate) and each.difference[1:] == (-INF, INF)
    assert each.verdict == each.broken_verdict == "not distinguishable"
    low, high = share_interval(0, 9)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 9))


def test_proportions_of_broken_seeds_are_compared_at_every_learning_rate():
    whole, half = [3.0] * 9, [3.0] * 4 + [INF] * 5
    of = lambda variant, baseline: compare({"a": (variant, baseline)})["a"].broken_verdict
    assert of(Arm(half), Arm(whole)) == "less stable"
    assert of(Arm(half, [whole]), Arm(whole)) == "not distinguishable"
    assert of(Arm(half), Arm(whole, [half])) == "less stable"
    assert of(Arm(whole), Arm(half)) == "more stable"
    assert of(Arm(whole), Arm(half, [whole])) == "not distinguishable"


def test_family_includes_all_planned_comparisons():
    pairs = {str(i): arms([-0.1] * 9) for i in range(2)}
    pairs["broken"] = arms([0.1] * 4 + [INF] * 5)
    assert [c.adjusted_p for c in compare(pairs).values()] == pytest.approx([3 / 256] * 3)
    assert compare(pairs, family=9)["0"].adjusted_p == pytest.approx(9 / 256)


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04 x 1, none below the previous one."""
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02, "none": math.nan})
    assert [found[name] for name in "abcd"] == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert math.isnan(found["none"])
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_power_by_hand():
    """All 9 seeds agree by chance in 1 of 512 cases per sign; nine comparisons require all 9."""
    assert power(0.0, 9, 9) == pytest.approx(1 / 512)
    share = stats.norm.cdf(1.5)
    assert power(1.5, 9, 9) == pytest.approx(share**9)
    assert power(-1.5, 9, 1) == pytest.approx(share**9 + 9 * share**8 * (1 - share))
    assert power(1.5, 9, 9, contenders=2) == pytest.approx(share**18)
    assert power(9.0, 8, 9) == 0 and detectable(8, 9) is None
    assert stats.norm.cdf(detectable(9, 9)) ** 9 == pytest.approx(POWER, abs=1e-3)
    assert detectable(13, 9) < detectable(9, 9) < detectable(9, 9, contenders=2)


def test_seeds_needed_reflect_the_uncertainty_of_the_standard_deviation():
    """1.96 sqrt(pi / 2) 0.02 / sqrt(n) = 0.01 at n = 24.1; sd of 9 seeds: 0.77 to 1.51 of it."""
    low, high = seeds_for(0.01, 0.02, 9)
    assert (low, high) == (math.ceil(24.14 * 8 / 13.362), math.ceil(24.14 * 8 / 3.490))
    assert seeds_for(0.01, 0.02, 500)[0] > 22 and seeds_for(0.01, 0.02, 500)[1] < 28
    assert seeds_for(0.01, math.nan, 9) is None and seeds_for(0.01, 0.0, 9) is None


STUDIES = 100  # benchmarks/null_studies.py simulates 2,000 per row


@pytest.mark.parametrize(
    ("curve", "noise"),
    [
        ("Pre-LN's", "normal"),
        ("Pre-LN's", "15 % broken"),
        ("flat", "heavy tails"),
        ("quadratic, 2 sd", "skewed in one variant alone"),
        ("off-grid by 1/4, 2 sd", "very skewed"),
    ],
)
def test_error_rate_of_null_studies_is_as_stated(curve, noise):
    """With the real search; the bounds are 6% and 94% with three standard errors."""
    found = null_studies.tally(curve, noise, STUDIES, seed=3)
    assert found.wrong / STUDIES < 0.06 + 3 * (0.06 * 0.94 / STUDIES) ** 0.5
    assert np.mean(found.covered) > 0.94 - 3 * (0.94 * 0.06 / STUDIES) ** 0.5
    assert found.favored <= 0.05 * STUDIES


def test_error_rate_is_high_with_one_trusted_search_seed():
    """In the first version of these studies, a third had a wrong verdict."""
    search = Search(2.0**-11, n=6, seeds=(0,), max_contenders=1)
    found = null_studies.tally("Pre-LN's", "normal", STUDIES, seed=3, search=search)
    assert found.wrong / STUDIES > 0.1


def test_power_is_as_stated():
    effect = detectable(9, 9)
    nats = effect * null_studies.SPREAD * math.sqrt(2)
    found = null_studies.tally("Pre-LN's", "normal", STUDIES, seed=4, effect=nats)
    share, sigma = found.found / STUDIES, (0.8 * 0.2 / STUDIES) ** 0.5
    assert power(effect, 9, 9, contenders=2) - 3 * sigma < share < POWER + 4 * sigma
    assert found.wrong / STUDIES < 0.06 + 3 * (0.06 * 0.94 / STUDIES) ** 0.5


def test_sensitivity_by_hand():
    """min(loss, 5) - 3 at four learning rates is 1, 0, 0.5, 2; the sensitivity is their mean."""
    assert sensitivity([4.0, 3.0, 3.5, math.inf], 5.0) == pytest.approx(3.5 / 4)
    assert sensitivity([3.0, 3.0], 5.0) == 0
