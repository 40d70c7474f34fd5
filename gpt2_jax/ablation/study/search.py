"""The search for a variant's learning rate: which to try, with which seeds, and which remain.

The search does not claim to know the best learning rate. It returns every one that its seeds cannot
distinguish from the best; `statistics.compare` then requires a verdict to hold at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from gpt2_jax.ablation.study import inputs
from gpt2_jax.errors import UserError

EXTENSION = 2  # number of learning rates that a search adds at a time
NEAR = 2.0  # standard errors from the best within which a learning rate stays in contention

# Final losses by index of the learning rate, for the search's first seeds in order; infinite for a
# broken run.
Losses = Mapping[int, Sequence[float]]


class Gap(NamedTuple):
    """Mean and standard deviation, over n seeds, of the loss difference of two learning rates."""

    mean: float
    sd: float
    n: int

    @property
    def error(self) -> float:
        """The standard error of the mean; infinite if unknown."""
        return self.sd / math.sqrt(max(1, self.n))


@dataclass(frozen=True)
class Search:
    """Learning rates `lowest * ratio**k` for k = 0 .. n-1, extended at either end if necessary.

    Every learning rate is tried with the first seed. Two more are added at an end as long as the
    best one is at that end, or the losses still fall toward it. The best, its neighbors, and any
    that may be as good are then run with all seeds. Those within two standard errors of the best
    are in contention, and are trained with the verdict's seeds as well.

    Attributes:
      seeds: seeds of the search; none of them is used for the verdict.
      max_n: maximum number of learning rates to try per variant.
      max_contenders: maximum number of learning rates in contention; the best are kept.
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
        """Checks that the search can be run and shares no seeds with the verdict.

        Raises:
          UserError: naming the field that is wrong.
        """
        if self.n > self.max_n:
            raise UserError(
                f"the study's search has n={self.n}; it must be from 3 to max_n={self.max_n}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"the search's seeds={self.seeds} must be distinct, and at least one")
        if both := sorted(set(self.seeds) & set(verdict_seeds)):
            raise UserError(
                f"the search uses seeds of the verdict ({both}), which would bias it; set other "
                "search seeds"
            )
        inputs.check_learning_rates(self.lowest, self.ratio, self.max_n)

    def learning_rate(self, k: int) -> float:
        """Returns learning rate k, which may be negative."""
        return self.lowest * self.ratio**k

    @property
    def typical_runs(self) -> int:
        """The number of runs if one learning rate inside the grid is clearly the best."""
        return self.n + 3 * (len(self.seeds) - 1)

    def next(self, losses: Losses) -> list[tuple[int, int]]:
        """Returns the runs to do next; empty if the search has ended.

        A run is (index of the learning rate, index into `seeds`). The result depends only on the
        losses, so all workers agree on it.
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

        The variant is judged at the first: the best of those at which the fewest seeds broke, since
        the losses do not distinguish them.
        """
        near = self._near(losses)[: self.max_contenders]
        return sorted(near, key=lambda k: sum(map(math.isinf, losses[k])))  # stable

    def unresolved(self, losses: Losses) -> list[str]:
        """Returns sentences on what the search left open."""
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
                f"({self.learning_rate(best):.3g}) are left out, since verdicts are checked at no "
                f"more than {self.max_contenders}"
            )
        return out

    def _beyond(self, losses: Losses) -> list[int]:
        """Returns the indices of learning rates to add, ignoring `max_n`."""
        low, high, best = min(losses), max(losses), self.best(losses)
        out: list[int] = []
        if best == low or _falls(losses, low + 1, low):
            out += [low - i for i in range(1, 1 + EXTENSION)]
        if (best == high and best != low) or _falls(losses, high - 1, high):
            out += [high + i for i in range(1, 1 + EXTENSION)]
        return out

    def _uncertain(self, losses: Losses) -> list[int]:
        """Returns the indices of learning rates that could still turn out to be the best."""
        best, n = self.best(losses), len(self.seeds)
        sd = _pooled_sd(losses, best)
        wanted = {best - 1, best, best + 1}
        for k in losses:
            gap = _gap(losses, k, best)
            if sd is not None and gap.mean <= NEAR * sd / math.sqrt(max(1, gap.n)):
                wanted.add(k)
        return [k for k in wanted if k in losses and len(losses[k]) < n]

    def _near(self, losses: Losses) -> list[int]:
        """Returns the best and all within two standard errors of it, ordered by their losses.

        With one search seed, the standard error is unknown and the best's neighbors are returned.
        With several, a learning rate that shares too few unbroken seeds with the best is included.
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
    """Returns the mean loss of unbroken seeds; infinite if more than half of the seeds broke."""
    unbroken = [loss for loss in losses if math.isfinite(loss)]
    return fmean(unbroken) if 2 * len(unbroken) >= len(losses) else math.inf


def _gap(losses: Losses, k: int, other: int) -> Gap:
    """Returns how much worse learning rate k is than another, over the seeds that both have."""
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
    """Returns the sd of differences from the best, pooled over rates with several seeds."""
    gaps = [_gap(losses, k, best) for k in losses if k != best]
    known = [gap.sd**2 for gap in gaps if math.isfinite(gap.sd)]
    return math.sqrt(fmean(known)) if known else None


def parabola_gain(left: float, middle: float, right: float) -> float:
    """Returns how far the parabola through three evenly spaced losses dips below the middle one."""
    curvature = left - 2 * middle + right
    return (right - left) ** 2 / (8 * curvature) if curvature > 0 else 0.0
