"""The search for a variant's learning rate: which to try, with which seeds, and which remain.

The search never claims to know the best learning rate. It returns every one that its seeds do not
separate from the best; `statistics.compare` then requires a verdict to hold at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from gpt2_jax.ablation.study import inputs
from gpt2_jax.errors import UserError

EXTENSION = 2  # learning rates that a search adds at a time
NEAR = 2.0  # standard errors from the best within which a learning rate stays in contention

# Final losses by index of the learning rate, for the search's first seeds in order; infinite for a
# broken run.
Losses = Mapping[int, Sequence[float]]


class Gap(NamedTuple):
    """Differences between two learning rates' losses over n seeds: mean and standard deviation."""

    mean: float
    sd: float
    n: int

    @property
    def error(self) -> float:
        """The standard error of the mean; infinite where it is unknown."""
        return self.sd / math.sqrt(max(1, self.n))


@dataclass(frozen=True)
class Search:
    """Learning rates `lowest * ratio**k` for k = 0 .. n-1, extended at either end if it may help.

    Every learning rate is tried with the first seed. Two more are added at an end while the best
    one is at that end, or while the losses still fall towards it. The best, its neighbours, and any
    that may be as good are then run with all seeds. Those within two standard errors of the best
    are in contention, and are trained with the verdict's seeds as well.

    Attributes:
      seeds: of the search; none of them is used for the verdict.
      max_n: learning rates tried per variant, at most.
      max_contenders: learning rates in contention, at most; the best are kept.
    """

    lowest: float
    n: int = 5
    ratio: float = 2.0
    seeds: tuple[int, ...] = (0, 101, 102, 103)
    max_n: int = 15
    max_contenders: int = 3

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)
        set_("seeds", inputs.seeds_of(self.seeds, "the search's seeds="))
        for name in ("lowest", "n", "ratio", "max_n", "max_contenders"):
            set_(name, inputs.plain(getattr(self, name), f"the search's {name}="))

    def check(self, verdict_seeds: Sequence[int]) -> None:
        """Refuses a search that cannot be carried out, or that shares seeds with the verdict.

        Raises:
          UserError: naming the field.
        """
        if self.n > self.max_n:
            raise UserError(
                f"the study's search has n={self.n}; it must be from 3 to max_n={self.max_n}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"the search's seeds={self.seeds} must be distinct, and at least one")
        if both := sorted(set(self.seeds) & set(verdict_seeds)):
            raise UserError(
                f"the search uses seeds of the verdict ({both}); runs that chose a learning rate "
                "cannot also judge it: use other search seeds"
            )
        inputs.check_learning_rates(self.lowest, self.ratio, self.max_n)

    def learning_rate(self, k: int) -> float:
        """Returns learning rate k, which may be negative."""
        return self.lowest * self.ratio**k

    @property
    def typical_runs(self) -> int:
        """The number of runs if the best learning rate is inside the grid, with no others near."""
        return self.n + 3 * (len(self.seeds) - 1)

    def next(self, losses: Losses) -> list[tuple[int, int]]:
        """Returns the runs to do next; none if the search has ended.

        A run is (index of the learning rate, index into `seeds`). The result depends on the losses
        alone, so that all workers agree on it.
        """
        if missing := [(k, 0) for k in range(self.n) if k not in losses]:
            return missing
        wanted = self._beyond(losses)[: max(0, self.max_n - len(losses))]
        if wanted:
            return sorted((k, 0) for k in wanted)
        return [
            (k, i)
            for k in sorted(self._uncertain(losses))
            for i in range(len(losses[k]), len(self.seeds))
        ]

    def best(self, losses: Losses) -> int:
        """Returns the index of the best learning rate; the lowest if all break or are equal."""
        return min(sorted(losses), key=lambda k: score(losses[k]))

    def in_contention(self, losses: Losses) -> list[int]:
        """Returns the indices of the learning rates at which a verdict must hold.

        The first is the one that the variant is judged at: the best of those at which the fewest
        seeds broke, since the losses do not separate them.
        """
        near = self._near(losses)[: self.max_contenders]
        return sorted(near, key=lambda k: sum(map(math.isinf, losses[k])))  # stable

    def unresolved(self, losses: Losses) -> list[str]:
        """Returns what the search could not settle, in words."""
        out, best = [], self.best(losses)
        if self._beyond(losses):
            out.append(
                f"the search ended at its limit of {self.max_n} learning rates while losses still "
                "fell at one end of the range tried, so a better one may lie beyond it"
            )
        if math.isinf(score(losses[best])):
            out.append("more than half of the seeds broke at every learning rate tried")
        elif len(self.seeds) < 2:
            out.append(
                "with one search seed, the uncertainty of the choice of learning rate is unknown"
            )
        if left := self._near(losses)[self.max_contenders :]:
            out.append(
                f"{len(left)} of the learning rates within two standard errors of its best "
                f"({self.learning_rate(best):.3g}) are left out, since verdicts are checked at "
                f"{self.max_contenders} at most"
            )
        return out

    def _beyond(self, losses: Losses) -> list[int]:
        """Returns the indices of learning rates to add, however many have been tried."""
        low, high, best = min(losses), max(losses), self.best(losses)
        out: list[int] = []
        if best == low or _falls(losses, low + 1, low):
            out += [low - i for i in range(1, 1 + EXTENSION)]
        if (best == high and best != low) or _falls(losses, high - 1, high):
            out += [high + i for i in range(1, 1 + EXTENSION)]
        return out

    def _uncertain(self, losses: Losses) -> list[int]:
        """Returns the indices of learning rates that further seeds may show to be the best."""
        best, n = self.best(losses), len(self.seeds)
        sd = _pooled_sd(losses, best)
        wanted = {best - 1, best, best + 1}
        for k in losses:
            gap = _gap(losses, k, best)
            if sd is not None and gap.mean <= NEAR * sd / math.sqrt(max(1, gap.n)):
                wanted.add(k)
        return [k for k in wanted if k in losses and len(losses[k]) < n]

    def _near(self, losses: Losses) -> list[int]:
        """Returns the best and all within two standard errors of it, in order of their losses.

        With one seed the standard error is unknown, and the best's neighbours are returned. With
        several, a learning rate that shares too few unbroken seeds with the best counts as near.
        """
        best = self.best(losses)
        if math.isinf(score(losses[best])):
            return [best]
        gaps = {k: _gap(losses, k, best) for k in losses if k != best}
        if len(self.seeds) > 1:
            near = [k for k, g in gaps.items() if len(losses[k]) > 1 and g.mean <= NEAR * g.error]
        else:
            near = [k for k, g in gaps.items() if abs(k - best) == 1]
        finite = [k for k in near if math.isfinite(gaps[k].mean)]
        return [best, *sorted(finite, key=lambda k: (score(losses[k]), k))]


def score(losses: Sequence[float]) -> float:
    """Returns the mean over unbroken seeds; infinite if more than half of the seeds broke."""
    unbroken = [loss for loss in losses if math.isfinite(loss)]
    return fmean(unbroken) if 2 * len(unbroken) >= len(losses) else math.inf


def _gap(losses: Losses, k: int, other: int) -> Gap:
    """Returns how much worse learning rate k is than another, over the seeds of both."""
    both = zip(losses[k], losses[other], strict=False)  # one may have fewer seeds
    values = [a - b for a, b in both if math.isfinite(a) and math.isfinite(b)]
    mine, theirs, n = score(losses[k]), score(losses[other]), len(values)
    if not values or math.isinf(mine) or math.isinf(theirs):
        return Gap(0.0 if mine == theirs else mine - theirs, math.inf, n)
    mean = fmean(values)
    if n < 2:
        return Gap(mean, math.inf, n)
    return Gap(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)), n)


def _falls(losses: Losses, before: int, last: int) -> bool:
    return before in losses and _gap(losses, last, before).mean < 0


def _pooled_sd(losses: Losses, best: int) -> float | None:
    """Returns the sd of differences from the best, pooled over learning rates with many seeds."""
    gaps = [_gap(losses, k, best) for k in losses if k != best]
    known = [gap.sd**2 for gap in gaps if math.isfinite(gap.sd)]
    return math.sqrt(fmean(known)) if known else None


def parabola_gain(left: float, middle: float, right: float) -> float:
    """Returns how far the parabola through three evenly spaced losses dips below the middle one."""
    curvature = left - 2 * middle + right
    return (right - left) ** 2 / (8 * curvature) if curvature > 0 else 0.0
