"""What a handful of seeds allows one to say: intervals, paired differences, how many it would take.

Losses are one number for each seed; lower is better. Everything is a function of its arguments: the
bootstrap's draws come from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals; 1 - LEVEL of verdicts are wrong where nothing differs
POWER = 0.8  # that a number of seeds is asked for
MOST_SEEDS = 1000  # beyond which nobody would go
RESAMPLES = 9999


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval; not numbers (nan) for a single value."""

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the mean with Student's interval."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return Interval(float(x.mean()), np.nan, np.nan)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def bootstrap_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the mean with the bootstrap's percentile interval (Efron 1979).

    Of a few values it is too narrow (of five, about as narrow as one of 85 %); it stands beside
    `t_interval` for those who expect it, and no verdict hangs on it.
    """
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    ends = found.confidence_interval
    return Interval(mean, float(ends.low), float(ends.high))


@dataclass(frozen=True)
class Comparison:
    """A variant beside its baseline, seed by seed.

    Attributes:
      difference: variant less baseline, mean over the seeds; below 0 is better.
      spread: std of the differences. p: two-sided, of the paired t test; corrected: for the number
        of comparisons. n: seeds.
    """

    difference: Interval
    spread: float
    p: float
    corrected: float
    n: int

    @property
    def verdict(self) -> str:
        """The plain word."""
        if np.isnan(self.corrected):
            return "cannot be said: too few seeds"
        if self.corrected > 1 - LEVEL:
            return "not distinguishable"
        return "better" if self.difference.mean < 0 else "worse"


def compare(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> dict[str, Comparison]:
    """Returns the comparison of each (variant's losses, baseline's losses), seed by seed.

    p-values are corrected together by Holm's method (Holm 1979): where no variant differs, the
    probability that any is called better or worse is at most 1 - LEVEL.
    """
    differences = {n: np.asarray(a, float) - np.asarray(b, float) for n, (a, b) in pairs.items()}
    ps = {name: paired_p(d) for name, d in differences.items()}
    corrected = holm(ps)
    return {
        name: Comparison(
            t_interval(d),
            float(d.std(ddof=1)) if len(d) > 1 else np.nan,
            ps[name],
            corrected[name],
            len(d),
        )
        for name, d in differences.items()
    }


def paired_p(differences: Sequence[float] | np.ndarray) -> float:
    """Returns the two-sided p-value of the mean difference being 0; nan for fewer than two."""
    d = np.asarray(differences, float)
    if len(d) < 2:
        return np.nan
    if np.ptp(d) == 0:
        return 1.0 if d[0] == 0 else 0.0
    return float(stats.ttest_1samp(d, 0.0).pvalue)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Returns p-values corrected for their number; those that are no numbers are none of them.

    The i-th smallest of m, from 0, is multiplied by m - i; none is below a smaller one's, or
    above 1.
    """
    known = sorted((p, name) for name, p in ps.items() if not np.isnan(p))
    out, largest = dict.fromkeys(ps, np.nan), 0.0
    for i, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - i)))
        out[name] = largest
    return out


def power(effect: float, n: int, alpha: float = 1 - LEVEL) -> float:
    """Returns the probability that a paired t test of n seeds sees an effect.

    Args:
      effect: mean of the differences over their std.
    """
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    far = effect * n**0.5  # of the t statistic's distribution, a noncentral t
    if abs(far) > 100 * critical:  # beyond what scipy can say; short of it by no sample
        return 1.0
    # Of a side that is far out scipy says nan; there is nothing of it to add.
    sides = stats.nct.sf(critical, n - 1, far), stats.nct.cdf(-critical, n - 1, far)
    return float(np.nansum(sides))


def seeds_needed(effect: float, comparisons: int = 1) -> int | None:
    """Returns how many seeds would see an effect as large with probability `POWER`.

    Each of the comparisons is held to (1 - LEVEL) / comparisons, Holm's strictest. None: more than
    `MOST_SEEDS`. The effect is itself an estimate from few seeds, and so is the answer.
    """
    if not np.isfinite(effect):
        return None
    alpha = (1 - LEVEL) / comparisons
    low, high = 1, MOST_SEEDS  # low too few, high perhaps enough
    if power(abs(effect), high, alpha) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if power(abs(effect), middle, alpha) >= POWER:
            high = middle
        else:
            low = middle
    return high


def sensitivity(losses: Sequence[float], start_loss: float) -> float:
    """Returns how much a rate's choice costs: E over rates of min(loss, start) less the best.

    Wortsman et al. 2023 (2309.14322), section 2.2: the rates are evenly spaced in their logarithm,
    and a run that diverges counts as one that learned nothing.

    Args:
      losses: at each rate, infinite where it diverges. start_loss: before the first update.
    """
    clipped = np.minimum(np.asarray(losses, float), start_loss)
    return float(clipped.mean() - clipped.min())
