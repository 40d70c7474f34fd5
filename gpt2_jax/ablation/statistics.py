"""Statistics for few seeds: medians, paired differences, and how many seeds are needed.

A loss is one number per seed; lower is better. A broken seed (one that diverged, or ended no better
than the unigram entropy) counts as an infinite loss.

**What is estimated.** The median over seeds of (variant's loss - baseline's loss), each variant at
its best learning rate. Runs of one seed share initial weights and data order, so differences are
paired.

**How it is tested.** By the exact sign test (Dixon & Mood 1946), with intervals between order
statistics (Thompson 1936). Both are valid for any distribution of the noise: skewed, heavy-tailed,
different between variants, with broken seeds. (If only one of two variants has skewed noise,
Student's t and Wilcoxon's signed-rank intervals cover the true difference in 84 to 92% of cases
instead of 95%.)

**The choice of learning rate.** The best learning rate is itself an estimate. Every one that the
search could not rule out is in contention and is trained with the verdict's seeds, and a verdict
must hold at all of them. A variant, at the learning rate that the search chose for it, is better
only if it beats the baseline at *each* of the baseline's learning rates in contention, and worse
only if the baseline beats it at each of its own. This is an intersection-union test (Berger 1982):
its p-value is the largest of its parts' p-values, and needs no further correction.

**Several comparisons.** p-values are adjusted by Holm's method (Holm 1979) and simultaneous
intervals by Bonferroni's, so that the family-wise error rate is at most 5%.

References: Berger 1982 (Technometrics 24:295), Clopper & Pearson 1934 (Biometrika 26:404), Cramér
1946 (Mathematical Methods of Statistics, chapter 28), Dixon & Mood 1946 (JASA 41:557), Fisher 1935
(JRSS 98:39), Holm 1979 (Scand. J. Statist. 6:65), Schuirmann 1987 (J. Pharmacokinet. Biopharm.
15:657), Student 1908 (Biometrika 6:1), Thompson 1936 (Ann. Math. Statist. 7:122), Wortsman et al.
2023 (arXiv 2309.14322).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from gpt2_jax.intervals import Interval

LEVEL = 0.95  # of intervals; 1 - LEVEL bounds the share of null studies with a wrong verdict
POWER = 0.8  # power at which reports state detectable differences
SPREAD_LEVEL = 0.8  # confidence level of the reported range of seeds needed
MAX_SEEDS = 1000  # reports give no exact number of seeds above it


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the mean with Student's t interval: mean ± t(n-1) s / sqrt(n) (Student 1908)."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return Interval(float(x.mean()), np.nan, np.nan)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the sample median with an exact interval between order statistics (Thompson 1936).

    For n values in order, x(r) and x(n+1-r) enclose the median of any distribution with a
    probability of at least 1 - 2 P(Bin(n, 1/2) < r). The largest r for which that is at least
    `level` is used; if there is none, the ends are nan (95% requires 6 values). Infinite values are
    ordered like any others; the median of -inf and inf is nan.
    """
    x = sorted(float(value) for value in values)
    rank = _rank(len(x), level)
    ends = (x[rank - 1], x[-rank]) if rank else (np.nan, np.nan)
    return Interval(_median(x), *ends)


def _median(ordered: Sequence[float]) -> float:
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return low if low == high else (low + high) / 2  # the sum of opposite infinities is nan


@cache
def _rank(n: int, level: float) -> int:
    """Returns the largest r such that x(r) and x(n+1-r) enclose the median; 0 if there is none."""
    rank = 0
    while 2 * binomial_tail(n, n - rank) <= 1 - level and 2 * (rank + 1) <= n:
        rank += 1
    return rank


@cache
def binomial_tail(n: int, k: int) -> float:
    """Returns P(Bin(n, 1/2) >= k)."""
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n


class Arm(NamedTuple):
    """A variant's losses, seed by seed.

    Attributes:
      losses: losses at the learning rate that the search chose.
      alternatives: losses at each other learning rate in contention, with the seeds in the same
        order.
    """

    losses: Sequence[float]
    alternatives: Sequence[Sequence[float]] = ()

    @property
    def all(self) -> tuple[Sequence[float], ...]:
        """The losses at every learning rate in contention."""
        return (self.losses, *self.alternatives)


@dataclass(frozen=True)
class Comparison:
    """A variant compared with its baseline, seed by seed.

    Attributes:
      difference: median over seeds of variant - baseline; below 0 is better. The interval covers
        the difference at the best learning rates, whichever of those in contention they are.
      bounds: the same at the Bonferroni level; the bounds of all comparisons hold simultaneously.
      mean, sd: mean and standard deviation of the differences, without seeds that broke in either;
        sd is nan for fewer than two.
      p: two-sided p-value for the null hypothesis that the median difference is at most `smallest`
        in size.
      adjusted_p: p adjusted by Holm's method.
      n: number of seeds.
      smallest: smallest difference that matters, in the losses' unit.
      broken: numbers of broken seeds of the variant and of its baseline.
      broken_p: p-value of Fisher's exact test of these proportions at every learning rate in
        contention, two-sided, Holm-adjusted.
      is_decidable: whether n seeds can show any difference after the adjustment.
    """

    difference: Interval
    bounds: Interval
    mean: float
    sd: float
    p: float
    adjusted_p: float
    n: int
    smallest: float
    broken: tuple[int, int]
    broken_p: float
    is_decidable: bool

    @property
    def verdict(self) -> str:
        """The verdict on the loss.

        Better or worse: the adjusted p-value is at most 5%. Equivalent: the simultaneous interval
        lies within ±smallest (interval inclusion at level 1 - alpha/m, which is stricter than the
        1 - 2 alpha of Schuirmann's 1987 two one-sided tests).
        """
        if self.is_decidable and self.adjusted_p <= 1 - LEVEL:
            return "better" if self.difference.estimate < 0 else "worse"
        if -self.smallest <= self.bounds.low and self.bounds.high <= self.smallest:
            return "equivalent"
        return "not distinguishable" if self.is_decidable else "inconclusive: too few seeds"

    @property
    def is_open(self) -> bool:
        """Whether the loss is neither better, worse nor equivalent."""
        return self.verdict not in ("better", "worse", "equivalent")

    @property
    def broken_verdict(self) -> str | None:
        """The verdict on the proportion of broken seeds; None if no seed broke."""
        mine, theirs = self.broken
        if not mine and not theirs:
            return None
        if self.broken_p > 1 - LEVEL:
            return "not distinguishable"
        return "more stable" if mine < theirs else "less stable"


def compare(
    pairs: Mapping[str, tuple[Arm, Arm]],
    smallest: float = 0.0,
    family: int = 0,
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Returns the comparison of each (variant, baseline), seed by seed.

    p-values of losses form one family and those of broken seeds another. If no difference exceeds
    `smallest`, the probability that any variant is called better or worse is at most 1 - level; so
    is the probability that any variant whose difference exceeds `smallest` is called equivalent.

    Args:
      smallest: smallest difference that matters; only a larger one is better or worse.
      family: number of comparisons that the study plans, if more than `pairs`.
    """
    family = max(family, len(pairs))
    sign_test = lambda losses, other: _sign_p(losses, other, smallest)
    ps = {name: _two_sided(*pair, sign_test) for name, pair in pairs.items()}
    broken_ps = {name: _two_sided(*pair, _fewer_broken_p) for name, pair in pairs.items()}
    adjusted, broken_adjusted = holm(ps, family), holm(broken_ps, family)
    out = {}
    for name, (variant, baseline) in pairs.items():
        mean, sd = _moments(differences(variant.losses, baseline.losses))
        n = len(variant.losses)
        out[name] = Comparison(
            difference=_interval(variant, baseline, level),
            bounds=_interval(variant, baseline, 1 - (1 - level) / max(1, family)),
            mean=mean,
            sd=sd,
            p=ps[name],
            adjusted_p=adjusted[name],
            n=n,
            smallest=smallest,
            broken=(_n_broken(variant.losses), _n_broken(baseline.losses)),
            broken_p=broken_adjusted[name],
            is_decidable=n >= seeds_to_reject(family),
        )
    return out


def differences(variant: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Returns variant - baseline, seed by seed; 0 for a seed that broke in both."""
    return [0.0 if a == b else a - b for a, b in zip(variant, baseline, strict=True)]


def _two_sided(
    variant: Arm, baseline: Arm, test: Callable[[Sequence[float], Sequence[float]], float]
) -> float:
    """Returns twice the smaller of two one-sided p-values, each of an intersection-union test.

    Berger 1982: a hypothesis that must be rejected at every learning rate in contention is rejected
    at level alpha if each part is, so its p-value is the largest of theirs.

    Args:
      test: returns the one-sided p-value for the null hypothesis that the first losses are not
        lower than the second.
    """
    better = max(test(variant.losses, other) for other in baseline.all)
    worse = max(test(baseline.losses, other) for other in variant.all)
    return min(1.0, 2 * min(better, worse)) if variant.losses else np.nan


def _sign_p(losses: Sequence[float], other: Sequence[float], smallest: float) -> float:
    """Returns the one-sided p-value of the exact sign test (Dixon & Mood 1946).

    The null hypothesis is median(losses - other) >= -smallest. With k of n differences below
    -smallest, p = P(Bin(n, 1/2) >= k). Ties count in favor of the null hypothesis.
    """
    k = sum(d < -smallest for d in differences(losses, other))
    return binomial_tail(len(losses), k)


def _interval(variant: Arm, baseline: Arm, level: float) -> Interval:
    """Returns an interval that covers the difference at the best learning rates of both.

    A variant at its chosen learning rate is no better than at its best. So the largest upper end
    over the baseline's learning rates in contention bounds the difference from above, and likewise
    from below.
    """
    interval = lambda losses, other: median_interval(differences(losses, other), level)
    chosen = interval(variant.losses, baseline.losses)
    highs = [interval(variant.losses, other).high for other in baseline.alternatives]
    lows = [interval(other, baseline.losses).low for other in variant.alternatives]
    return Interval(
        chosen.estimate, min(chosen.low, *lows, np.inf), max(chosen.high, *highs, -np.inf)
    )


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation of the finite values."""
    known = [value for value in values if math.isfinite(value)]
    mean = float(np.mean(known)) if known else np.nan
    return mean, float(np.std(known, ddof=1)) if len(known) > 1 else np.nan


def _n_broken(losses: Sequence[float]) -> int:
    return sum(math.isinf(loss) for loss in losses)


def _fewer_broken_p(losses: Sequence[float], other: Sequence[float]) -> float:
    return _fisher_p(_n_broken(losses), _n_broken(other), len(losses))


@cache
def _fisher_p(mine: int, theirs: int, n: int) -> float:
    """Returns Fisher's exact p-value (Fisher 1935) for two counts out of n each.

    The test treats the groups as independent although they share seeds; seeds that break in both
    only make it conservative.
    """
    found = stats.fisher_exact([[mine, n - mine], [theirs, n - theirs]], alternative="less")
    return float(found.pvalue)


def share_interval(broken: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the exact interval of a binomial proportion (Clopper & Pearson 1934)."""
    found = stats.binomtest(broken, n).proportion_ci(level)
    return float(found.low), float(found.high)


def holm(ps: Mapping[str, float], family: int = 0) -> dict[str, float]:
    """Returns p-values adjusted by Holm's step-down method (Holm 1979); nan values do not count.

    With p(1) <= ... <= p(m), the adjusted p(i) is max over j <= i of min(1, (m - j + 1) p(j)).

    Args:
      family: m, if larger than the number of p-values.
    """
    known = sorted((p, name) for name, p in ps.items() if not np.isnan(p))
    out, largest, m = dict.fromkeys(ps, np.nan), 0.0, max(family, len(known))
    for i, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (m - i)))
        out[name] = largest
    return out


@cache
def seeds_to_reject(comparisons: int, level: float = LEVEL) -> int:
    """Returns the fewest seeds with which the sign test can reject after Holm's adjustment.

    This is the least n for which n differences of equal sign are significant:
    2 * 2**-n <= (1 - level) / comparisons.
    """
    n = 1
    while 2 * binomial_tail(n, n) > (1 - level) / max(1, comparisons):
        n += 1
    return n


def power(effect: float, n: int, comparisons: int = 1, contenders: int = 1) -> float:
    """Returns a lower bound on the probability of detecting a difference, for normal noise.

    Each comparison is tested at level (1 - LEVEL) / comparisons, Holm's strictest. A difference of
    `effect` exceeds the smallest that matters in a seed with probability q = Phi(effect), and the
    sign test rejects with probability P(Bin(n, q) >= k), k its critical value. Tests at several
    learning rates are treated as independent.

    Args:
      effect: how far the median difference exceeds the smallest that matters, in standard
        deviations of the paired differences.
      contenders: number of learning rates, all as good as the best, at which the verdict must hold.
    """
    q = float(stats.norm.cdf(abs(effect)))
    alpha = (1 - LEVEL) / max(1, comparisons)
    critical = next((k for k in range(n + 1) if 2 * binomial_tail(n, k) <= alpha), None)
    if critical is None:
        return 0.0
    return float(stats.binom.sf(critical - 1, n, q)) ** contenders


def detectable(n: int, comparisons: int = 1, contenders: int = 1) -> float | None:
    """Returns the smallest `effect` whose `power` is `POWER`; None if n seeds cannot detect any."""
    low, high = 0.0, 10.0
    if power(high, n, comparisons, contenders) < POWER:
        return None
    while high - low > 1e-3:
        middle = (low + high) / 2
        if power(middle, n, comparisons, contenders) >= POWER:
            high = middle
        else:
            low = middle
    return high


def seeds_for(width: float, sd: float, n: int) -> tuple[int, int] | None:
    """Returns the range of the number of seeds for which a 95% interval is ±`width`.

    It depends only on the standard deviation, not on the estimated difference, which says little
    if nothing was decided. The standard deviation was itself estimated from n seeds; the range is
    that of its chi-squared interval at `SPREAD_LEVEL`. For normal noise, a median's variance is
    pi/2 times a mean's (Cramér 1946): N = pi/2 (z sd / width)**2. None if the standard deviation
    is unknown.
    """
    if not (sd > 0 and width > 0 and n > 1):
        return None
    chi2 = stats.chi2.ppf([(1 + SPREAD_LEVEL) / 2, (1 - SPREAD_LEVEL) / 2], n - 1)
    sds = sd * np.sqrt((n - 1) / chi2)
    z = stats.norm.ppf((1 + LEVEL) / 2)
    low, high = (math.ceil(np.pi / 2 * (z * s / width) ** 2) for s in sds)
    return low, high


def sensitivity(losses: Sequence[float], initial_loss: float) -> float:
    """Returns the learning rate sensitivity E[min(loss, initial loss)] - best loss.

    Wortsman et al. 2023, section 2.2: the expectation is over learning rates evenly spaced on a
    logarithmic scale; a run that diverges counts as one that learned nothing.

    Args:
      losses: loss at each learning rate; infinite for runs that diverge.
      initial_loss: loss before the first step.
    """
    clipped = np.minimum(np.asarray(losses, float), initial_loss)
    return float(clipped.mean() - clipped.min())
