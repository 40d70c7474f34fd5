"""What a handful of seeds can show: medians, paired differences, and how many seeds it takes.

Losses are one number per seed; lower is better, and infinity stands for a broken seed (one that
diverged, or ended no better than guessing by frequency).

The estimand of a comparison is the median over seeds of (variant's loss - baseline's loss), runs of
one seed sharing initial weights and data order, each variant at its best learning rate. It is
tested by the exact sign test and bounded by order statistics, which hold for noise of any shape:
skewed, heavy-tailed, in one variant alone, broken seeds included. (Student's t and Wilcoxon's test
cover the truth in 84 to 92 % instead of 95 where one variant alone is skewed.)

The best learning rate is itself an estimate. Every learning rate that the search could not rule out
has losses of its own, and a verdict must hold against all of them: a variant, at the learning rate
that the search chose for it, is better only if it is better than the baseline at *each* of the
baseline's learning rates in contention, and worse only if the baseline is better than it at each of
its own. This intersection-union test (Berger 1982) needs no further correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals; at most 1 - LEVEL of studies without differences have a wrong verdict
POWER = 0.8  # with which a report says what can be detected
SPREAD_LEVEL = 0.8  # of the range given for a number of seeds
MOST_SEEDS = 1000  # beyond which nobody would go


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; nan where there are too few values."""

    estimate: float
    low: float
    high: float


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the mean with Student's interval."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return Interval(float(x.mean()), np.nan, np.nan)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the median with the exact interval between two order statistics.

    It covers the median of any distribution with probability `level` or more. nan ends: fewer
    values than it takes (6 for 95 %). Infinite values are in order; a median between -inf and inf
    is nan.
    """
    x = sorted(float(value) for value in values)
    rank = _rank(len(x), level)
    ends = (x[rank - 1], x[-rank]) if rank else (np.nan, np.nan)
    return Interval(_median(x), *ends)


def _median(ordered: Sequence[float]) -> float:
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return low if low == high else (low + high) / 2  # equal infinities have no sum to halve


@cache
def _rank(n: int, level: float) -> int:
    """Returns r such that the r-th smallest and largest of n bound the median; 0: there is none."""
    rank = 0
    while 2 * tail(n, n - rank) <= 1 - level and 2 * (rank + 1) <= n:
        rank += 1
    return rank


@cache
def tail(n: int, k: int) -> float:
    """Returns the probability that k or more of n fair coins show heads."""
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n


class Arm(NamedTuple):
    """A variant's losses, seed by seed.

    Attributes:
      losses: at the learning rate that the search chose. rivals: at each other learning rate that
        the search could not rule out, of the same seeds in the same order.
    """

    losses: Sequence[float]
    rivals: Sequence[Sequence[float]] = ()

    @property
    def all(self) -> tuple[Sequence[float], ...]:
        """The losses at every learning rate in contention."""
        return (self.losses, *self.rivals)


@dataclass(frozen=True)
class Comparison:
    """A variant compared with its baseline, seed by seed.

    Attributes:
      difference: variant - baseline, median over the seeds; below 0 is better. The interval covers
        the difference at the best learning rates, whichever of those in contention they are.
      bounds: the same, wide enough for the intervals of all comparisons to cover theirs together
        (Bonferroni).
      mean: mean of the differences of seeds that broke in neither.
      spread: std of those; nan for fewer than two.
      p: two-sided, of a difference of at most `smallest`; corrected: for the number of comparisons.
      n: seeds. smallest: difference that matters, in the losses' unit.
      broken: number of broken seeds of the variant and of its baseline; broken_p: Fisher's exact
        test of their shares at every learning rate in contention, two-sided, corrected for the
        number of comparisons.
      decidable: whether so many seeds can show any difference after the correction.
    """

    difference: Interval
    bounds: Interval
    mean: float
    spread: float
    p: float
    corrected: float
    n: int
    smallest: float
    broken: tuple[int, int]
    broken_p: float
    decidable: bool

    @property
    def verdict(self) -> str:
        """The verdict on the loss."""
        if self.decidable and self.corrected <= 1 - LEVEL:
            return "better" if self.difference.estimate < 0 else "worse"
        if -self.smallest <= self.bounds.low and self.bounds.high <= self.smallest:
            return "equivalent"
        return "not distinguishable" if self.decidable else "cannot be said: too few seeds"

    @property
    def is_open(self) -> bool:
        """Whether the seeds did not settle the verdict on the loss."""
        return self.verdict not in ("better", "worse", "equivalent")

    @property
    def broken_verdict(self) -> str | None:
        """The verdict on the share of broken seeds; None where none broke."""
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

    p-values are corrected together by Holm's method (Holm 1979), those of losses in one family and
    those of broken seeds in another: where no difference exceeds `smallest`, the probability that
    any variant is called better or worse is at most 1 - level. So is the probability that any is
    called equivalent whose difference exceeds `smallest`.

    Args:
      smallest: a difference of at most this does not matter: only larger ones are better or worse.
      family: comparisons that the study plans, if more than these: what is missing still counts.
    """
    family = max(family, len(pairs))
    lower = lambda losses, other: _sign_p(losses, other, smallest)
    ps = {name: _two_sided(*pair, lower) for name, pair in pairs.items()}
    shares = {name: _two_sided(*pair, _share_p) for name, pair in pairs.items()}
    corrected, broken_p = holm(ps, family), holm(shares, family)
    out = {}
    for name, (variant, baseline) in pairs.items():
        mean, spread = _moments(differences(variant.losses, baseline.losses))
        n = len(variant.losses)
        out[name] = Comparison(
            difference=_interval(variant, baseline, level),
            bounds=_interval(variant, baseline, 1 - (1 - level) / max(1, family)),
            mean=mean,
            spread=spread,
            p=ps[name],
            corrected=corrected[name],
            n=n,
            smallest=smallest,
            broken=(_broken(variant.losses), _broken(baseline.losses)),
            broken_p=broken_p[name],
            decidable=n >= seeds_to_reject(family),
        )
    return out


def differences(variant: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Returns variant - baseline, seed by seed; 0 for a seed that is broken in both."""
    return [0.0 if a == b else a - b for a, b in zip(variant, baseline, strict=True)]


def _two_sided(
    variant: Arm, baseline: Arm, lower: Callable[[Sequence[float], Sequence[float]], float]
) -> float:
    """Returns the two-sided p-value of a test against every learning rate in contention.

    Args:
      lower: the one-sided p-value of the first losses not being lower than the second.
    """
    better = max(lower(variant.losses, other) for other in baseline.all)
    worse = max(lower(baseline.losses, other) for other in variant.all)
    return min(1.0, 2 * min(better, worse)) if variant.losses else np.nan


def _sign_p(losses: Sequence[float], other: Sequence[float], smallest: float) -> float:
    """Returns the one-sided p-value of the losses not being lower than others by `smallest`."""
    lower = sum(d < -smallest for d in differences(losses, other))
    return tail(len(losses), lower)


def _interval(variant: Arm, baseline: Arm, level: float) -> Interval:
    """Returns the interval that has the difference at the best learning rates within it.

    The variant at its chosen learning rate is no better than at its best, so that the highest of
    its upper ends against the baseline's learning rates in contention bounds the difference from
    above; and the other way around.
    """
    middle = median_interval(differences(variant.losses, baseline.losses), level)
    highs = [
        median_interval(differences(variant.losses, other), level).high for other in baseline.rivals
    ]
    lows = [
        median_interval(differences(other, baseline.losses), level).low for other in variant.rivals
    ]
    return Interval(
        middle.estimate, min(middle.low, *lows, np.inf), max(middle.high, *highs, -np.inf)
    )


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and std of the values that are finite."""
    known = [value for value in values if math.isfinite(value)]
    mean = float(np.mean(known)) if known else np.nan
    return mean, float(np.std(known, ddof=1)) if len(known) > 1 else np.nan


def _broken(losses: Sequence[float]) -> int:
    return sum(math.isinf(loss) for loss in losses)


def _share_p(losses: Sequence[float], other: Sequence[float]) -> float:
    """Returns the one-sided p-value of no fewer seeds being broken than of others."""
    return _fewer_p(_broken(losses), _broken(other), len(losses))


@cache
def _fewer_p(mine: int, theirs: int, n: int) -> float:
    """Returns Fisher's exact p-value of two counts of n; seeds broken together only weaken it."""
    found = stats.fisher_exact([[mine, n - mine], [theirs, n - theirs]], alternative="less")
    return float(found.pvalue)


def share_interval(broken: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the exact interval of a share (Clopper & Pearson 1934)."""
    found = stats.binomtest(broken, n).proportion_ci(level)
    return float(found.low), float(found.high)


def holm(ps: Mapping[str, float], family: int = 0) -> dict[str, float]:
    """Returns p-values corrected for their number; those that are nan are not counted.

    The i-th smallest of m, from 0, is multiplied by m - i; none is below a smaller one's, or
    above 1.

    Args:
      family: m, if more than these.
    """
    known = sorted((p, name) for name, p in ps.items() if not np.isnan(p))
    out, largest, m = dict.fromkeys(ps, np.nan), 0.0, max(family, len(known))
    for i, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (m - i)))
        out[name] = largest
    return out


@cache
def seeds_to_reject(comparisons: int, level: float = LEVEL) -> int:
    """Returns the fewest seeds whose sign test can show a difference after Holm's correction.

    That is, of which all point the same way: 2 * 2**-n <= (1 - level) / comparisons.
    """
    n = 1
    while 2 * tail(n, n) > (1 - level) / max(1, comparisons):
        n += 1
    return n


def power(effect: float, n: int, comparisons: int = 1, contenders: int = 1) -> float:
    """Returns the least probability that a difference is seen, for normal noise.

    Each of the comparisons is held to (1 - LEVEL) / comparisons, Holm's strictest.

    Args:
      effect: by how much the median difference exceeds the smallest that matters, in standard
        deviations of the differences between two runs of one seed.
      contenders: learning rates, all as good as the best, that the verdict must hold against.
    """
    share = float(stats.norm.cdf(abs(effect)))
    alpha = (1 - LEVEL) / max(1, comparisons)
    needed = next((k for k in range(n + 1) if 2 * tail(n, k) <= alpha), None)
    if needed is None:
        return 0.0
    return float(stats.binom.sf(needed - 1, n, share)) ** contenders


def detectable(n: int, comparisons: int = 1, contenders: int = 1) -> float | None:
    """Returns the smallest effect that is seen with probability `POWER`, as `power` counts it.

    None: so few seeds see none.
    """
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


def seeds_for(width: float, spread: float, n: int) -> tuple[int, int] | None:
    """Returns the range of how many seeds make a 95 % interval reach `width` to either side.

    It rests on the spread alone, not on the estimated difference, which says little where nothing
    was decided. The range is that of the spread, itself estimated from n seeds, at `SPREAD_LEVEL`,
    for normal noise, of which a median needs pi / 2 times as many seeds as a mean. None: the spread
    is not known.
    """
    if not (spread > 0 and width > 0 and n > 1):
        return None
    chi2 = stats.chi2.ppf([(1 + SPREAD_LEVEL) / 2, (1 - SPREAD_LEVEL) / 2], n - 1)
    spreads = spread * np.sqrt((n - 1) / chi2)
    z = stats.norm.ppf((1 + LEVEL) / 2)
    low, high = (math.ceil(np.pi / 2 * (z * s / width) ** 2) for s in spreads)
    return low, high


def sensitivity(losses: Sequence[float], start_loss: float) -> float:
    """Returns how much a rate's choice costs: E over rates of min(loss, start) less the best.

    Wortsman et al. 2023 (2309.14322), section 2.2: the rates are evenly spaced in their logarithm,
    and a run that diverges counts as one that learned nothing.

    Args:
      losses: at each rate, infinite where it diverges. start_loss: before the first update.
    """
    clipped = np.minimum(np.asarray(losses, float), start_loss)
    return float(clipped.mean() - clipped.min())
