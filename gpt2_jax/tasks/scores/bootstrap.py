"""Percentile bootstrap intervals of scores that are functions of sums over examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gpt2_jax.intervals import Interval

Sums = dict[str, np.ndarray]
Statistic = Callable[[Sums], Mapping[str, np.ndarray]]
_CHUNK = 1 << 22  # weights held at once, in floats


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed.

    Examples are resampled with replacement; the interval is between percentiles of the score of the
    resamples (Efron 1979). It covers the choice of test examples, not that of training seeds.

    Attributes:
      resamples: number of resamples; 0 for no intervals, whose ends are then nan.
      seed: seed of the resamples.
      level: confidence level.
    """

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def intervals(
        self,
        counts: Mapping[str, np.ndarray],
        statistic: Statistic,
        repeats_N: np.ndarray | None = None,
    ) -> dict[str, Interval]:
        """Returns the interval of each value of a statistic.

        Args:
          counts: sufficient statistics of each example, arrays (N, ...).
          statistic: returns values (R) by name, from the sums (R, ...) of `counts` over examples.
            A value may be nan where it is undefined; such resamples are left out.
          repeats_N: how many identical examples each row represents; None for one.
        """
        n_rows = len(next(iter(counts.values())))
        repeats_N = np.ones(n_rows, np.int64) if repeats_N is None else repeats_N
        whole = statistic(_sums(counts, repeats_N[None].astype(float)))
        drawn: dict[str, list[np.ndarray]] = {name: [] for name in whole}
        if repeats_N.sum():
            for weights_RN in self._weights(repeats_N):
                for name, values in statistic(_sums(counts, weights_RN)).items():
                    drawn[name].append(values)
        return {name: self._interval(whole[name][0], drawn[name]) for name in whole}

    def _weights(self, repeats_N: np.ndarray) -> Iterator[np.ndarray]:
        """Yields weights (R, N) of the rows in resamples, in chunks of bounded size."""
        rng = np.random.default_rng(self.seed)
        n = int(repeats_N.sum())
        at_once = max(1, _CHUNK // len(repeats_N))
        for start in range(0, self.resamples, at_once):
            size = min(at_once, self.resamples - start)
            yield rng.multinomial(n, repeats_N / n, size=size).astype(float)

    def _interval(self, estimate: float, chunks: list[np.ndarray]) -> Interval:
        values = np.concatenate(chunks) if chunks else np.empty(0)
        values = values[~np.isnan(values)]
        if not len(values):
            return Interval(float(estimate), np.nan, np.nan)
        tail = (1 - self.level) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(float(estimate), float(low), float(high))


DEFAULT = Bootstrap()


def _sums(counts: Mapping[str, np.ndarray], weights_RN: np.ndarray) -> Sums:
    """Returns weighted sums over examples (R, ...) of counts (N, ...)."""
    return {name: np.tensordot(weights_RN, x.astype(float), 1) for name, x in counts.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient, 0 where the denominator is 0."""
    zero = denominator == 0
    return np.where(zero, 0.0, numerator / np.where(zero, 1.0, denominator))
