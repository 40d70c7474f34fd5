"""The search for a variant's learning rate: which to try, with which seeds, and which are left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from gpt2_jax.ablate.campaign import inputs

EXTENSION = 2  # learning rates that a search adds at a time
NEAR = 2.0  # standard errors from the best within which a learning rate stays in contention

# Final losses by number of the learning rate, of the search's first seeds in their order; infinite
# for a broken run.
Losses = Mapping[int, Sequence[float]]


class Gap(NamedTuple):
    """Mean and standard deviation of the differences of two learning rates' losses, of n seeds."""

    mean: float
    sd: float
    n: int

    @property
    def error(self) -> float:
        """Standard error; infinite where nothing is known of it."""
        return self.sd / math.sqrt(max(1, self.n))


@dataclass(frozen=True)
class Search:
    """Learning rates `lowest * ratio**k` for k = 0 .. n-1, and beyond them where it may pay.

    Every learning rate is tried with the first seed. Two more are added at an end while the best
    one is that end, or while the losses still fall towards it. The best, its neighbours, and any
    that may be as good get all the seeds; what is then within two standard errors of the best is in
    contention, and is trained with the verdict's seeds as well.

    Attributes:
      seeds: none of them is used for the verdict.
      most: learning rates at most for a variant. contenders: in contention at most, best first.
    """

    lowest: float
    n: int = 5
    ratio: float = 2.0
    seeds: tuple[int, ...] = (0, 101, 102, 103)
    most: int = 15
    contenders: int = 3

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)
        set_("seeds", inputs.seeds_of(self.seeds, "the search's seeds="))
        for name in ("lowest", "n", "ratio", "most", "contenders"):
            set_(name, inputs.plain(getattr(self, name), f"the search's {name}="))

    def rate(self, k: int) -> float:
        """Returns the learning rate number k, which may be negative."""
        return self.lowest * self.ratio**k

    @property
    def usual_runs(self) -> int:
        """Runs where the best learning rate is inside the grid and no others are near it."""
        return self.n + 3 * (len(self.seeds) - 1)

    def next(self, losses: Losses) -> list[tuple[int, int]]:
        """Returns the runs to do next, none where the search is at its end.

        A run is (number of the learning rate, index into `seeds`). The answer depends on the losses
        alone, so that workers agree on it.
        """
        if missing := [(k, 0) for k in range(self.n) if k not in losses]:
            return missing
        wanted = self._beyond(losses)[: max(0, self.most - len(losses))]
        if wanted:
            return sorted((k, 0) for k in wanted)
        return [
            (k, i)
            for k in sorted(self._unsure(losses))
            for i in range(len(losses[k]), len(self.seeds))
        ]

    def best(self, losses: Losses) -> int:
        """Returns the number of the best learning rate; the lowest where all break or are equal."""
        return min(sorted(losses), key=lambda k: score(losses[k]))

    def in_contention(self, losses: Losses) -> list[int]:
        """Returns the numbers of the learning rates that verdicts must hold at.

        The first is that which the variant is judged at: the best of those at which the fewest
        seeds broke, since the rest cannot be told apart.
        """
        near = self._near(losses)[: self.contenders]
        return sorted(near, key=lambda k: sum(map(math.isinf, losses[k])))  # stable

    def unresolved(self, losses: Losses) -> list[str]:
        """Returns what the search left open at its end, in words."""
        out, best = [], self.best(losses)
        if self._beyond(losses):
            out.append(
                f"the search ended at its limit of {self.most} learning rates while losses still "
                "fell at an end of those tried: a better one may lie beyond"
            )
        if math.isinf(score(losses[best])):
            out.append("more than half of the seeds broke at every learning rate tried")
        elif len(self.seeds) < 2:
            out.append(
                "with one search seed, nothing is known of the uncertainty of its learning rate"
            )
        if left := self._near(losses)[self.contenders :]:
            out.append(
                f"{len(left)} of the learning rates within two standard errors of its best "
                f"({self.rate(best):.3g}) had no place among the {self.contenders} that verdicts "
                "are checked at"
            )
        return out

    def _beyond(self, losses: Losses) -> list[int]:
        """Returns the numbers of learning rates to add, however many there are already."""
        low, high, best = min(losses), max(losses), self.best(losses)
        out: list[int] = []
        if best == low or _falls(losses, low + 1, low):
            out += [low - i for i in range(1, 1 + EXTENSION)]
        if (best == high and best != low) or _falls(losses, high - 1, high):
            out += [high + i for i in range(1, 1 + EXTENSION)]
        return out

    def _unsure(self, losses: Losses) -> list[int]:
        """Returns the numbers of learning rates that more seeds may make the best."""
        best, n = self.best(losses), len(self.seeds)
        error = _noise(losses, best)
        wanted = {best - 1, best, best + 1}
        for k in losses:
            gap = _gap(losses, k, best)
            if error is not None and gap.mean <= NEAR * error / math.sqrt(max(1, gap.n)):
                wanted.add(k)
        return [k for k in wanted if k in losses and len(losses[k]) < n]

    def _near(self, losses: Losses) -> list[int]:
        """Returns the best and all within two standard errors of it, in order of their losses.

        With one seed, nothing is known of that error, and they are its neighbours; with several of
        which a learning rate shares too few unbroken ones with the best, that is near as well.
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
    """Returns the mean of the seeds that did not break; infinite where more than half did."""
    whole = [loss for loss in losses if math.isfinite(loss)]
    return fmean(whole) if 2 * len(whole) >= len(losses) else math.inf


def _gap(losses: Losses, k: int, other: int) -> Gap:
    """Returns how much worse the learning rate k is than another, over the seeds of both."""
    both = zip(losses[k], losses[other], strict=False)  # the seeds that both have
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


def _noise(losses: Losses, best: int) -> float | None:
    """Returns the std of differences from the best, pooled over learning rates with many seeds."""
    gaps = [_gap(losses, k, best) for k in losses if k != best]
    known = [gap.sd**2 for gap in gaps if math.isfinite(gap.sd)]
    return math.sqrt(fmean(known)) if known else None


def between(left: float, middle: float, right: float) -> float:
    """Returns how far below the middle the parabola through three evenly spaced losses falls."""
    curvature = left - 2 * middle + right
    return (right - left) ** 2 / (8 * curvature) if curvature > 0 else 0.0
