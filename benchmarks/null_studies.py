"""Simulates studies to measure how often they find a difference where there is none.

    python -m benchmarks.null_studies --studies=2000 > docs/ablations/null_studies.md

Each study has ten variants that are copies of one recipe. As in a real study, `Search.next` chooses
the learning rates, `Search.in_contention` those at which verdicts must hold, and `compare` returns
the verdicts. Only the losses are random numbers instead of results of training. Their curve and
their spread between seeds (0.02 nats) are those of Pre-LN in the first placement study and in the
study of norms on q and k (docs/ablations).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from gpt2_jax.ablation.statistics import LEVEL, Arm, Comparison, compare, detectable, power
from gpt2_jax.ablation.study.search import Search

VARIANTS, SEEDS, SPREAD = 10, 9, 0.02
SEARCH = Search(lowest=2.0**-11, n=6)
# Mean losses of Pre-LN at 2**-11 ... 2**-5 in both studies, minus that at 2**-8.
PRE_LN = (0.256, 0.190, 0.111, 0.0, 0.035, 0.345, 0.544)


def quadratic(best: float, gap: float) -> Callable[[int], float]:
    """Returns a parabola over the index of the learning rate, `gap` nats at a distance of 1."""
    return lambda k: gap * (k - best) ** 2


def pre_ln(k: int) -> float:
    """Returns Pre-LN's excess loss, linearly extrapolated beyond the measured learning rates."""
    inside = min(max(k, 0), len(PRE_LN) - 1)
    return PRE_LN[inside] + 0.1 * abs(k - inside)


CURVES: dict[str, Callable[[int], float]] = {
    "flat": lambda k: 0.0,
    "Pre-LN's": pre_ln,
    "quadratic, 2 sd": quadratic(3, 2 * SPREAD),
    "quadratic, 1 sd": quadratic(3, SPREAD),
    "quadratic, 0.5 sd": quadratic(3, 0.5 * SPREAD),
    "off-grid by 1/4, 2 sd": quadratic(2.75, 2 * SPREAD),
    "off-grid by 1/2, 1 sd": quadratic(2.5, SPREAD),
}

Draw = Callable[[np.random.Generator], float]
# Each with median 0 and a standard deviation of about 1.
NOISES: dict[str, Draw] = {
    "normal": lambda rng: rng.standard_normal(),
    "skewed": lambda rng: rng.standard_exponential() - math.log(2),
    "heavy tails": lambda rng: rng.standard_t(3) / math.sqrt(3),
    "very skewed": lambda rng: (math.exp(rng.standard_normal()) - 1) / 2.16,
    "15 % broken": lambda rng: math.inf if rng.random() < 0.15 else rng.standard_normal(),
}
ALONE = " in one variant alone"  # not in the baseline; the other variants have normal noise


@dataclass
class Tally:
    """The verdicts of the studies in one row of the table."""

    studies: int = 0
    wrong: int = 0  # studies with a wrong verdict
    covered: list[float] = field(default_factory=list)  # proportion of a study's intervals
    favored: int = 0  # the first variant other than the baseline is called better
    found: int = 0  # the same variant is called worse
    runs: list[int] = field(default_factory=list)
    contenders: list[float] = field(default_factory=list)


def simulate(
    curve: Callable[[int], float],
    noises: Sequence[Draw],
    rng: np.random.Generator,
    effects: Sequence[float],
    search: Search = SEARCH,
    seeds: int = SEEDS,
) -> tuple[dict[str, Comparison], int, float]:
    """Returns a study's comparisons, its number of runs, and its contending rates per variant."""
    arms, runs, contenders = [], 0, 0
    for noise, effect in zip(noises, effects, strict=True):
        loss = lambda k, noise=noise, effect=effect: 2 + effect + curve(k) + SPREAD * noise(rng)
        losses: dict[int, list[float]] = {}
        while requested := search.next(losses):
            for k, _ in requested:
                losses.setdefault(k, []).append(loss(k))
        chosen = search.in_contention(losses)
        best, *alternatives = [[loss(k) for _ in range(seeds)] for k in chosen]
        arms.append(Arm(best, alternatives))
        runs += sum(map(len, losses.values())) + seeds * len(chosen)
        contenders += len(chosen)
    pairs = {str(i): (arm, arms[0]) for i, arm in enumerate(arms[1:], 1)}
    return compare(pairs), runs, contenders / len(arms)


def tally(
    curve: str, noise: str, studies: int, seed: int, effect: float = 0.0, **settings: Any
) -> Tally:
    """Returns the verdicts of studies in which at most one variant differs, by `effect` nats."""
    rng, out = np.random.default_rng([seed, *map(ord, curve + noise)]), Tally()
    name, alone, _ = noise.partition(ALONE)
    draws = [NOISES["normal"] if alone else NOISES[name]] * VARIANTS
    draws[1] = NOISES[name]
    center = _center(name) * SPREAD if alone else 0.0
    effects = [0.0, effect - center, *[0.0] * (VARIANTS - 2)]
    for _ in range(studies):
        found, runs, contenders = simulate(CURVES[curve], draws, rng, effects, **settings)
        verdicts = [c.verdict for c in found.values()]
        stable = {c.broken_verdict for c in found.values()} <= {None, "not distinguishable"}
        null = verdicts[1:] if effect else verdicts
        ends = [c.difference for name, c in found.items() if name != "1" or not effect]
        out.studies += 1
        out.wrong += not stable or any(v in ("better", "worse") for v in null)
        out.covered.append(np.mean([e.low <= 0 <= e.high for e in ends]))
        out.favored += verdicts[0] == "better"
        out.found += verdicts[0] == "worse"
        out.runs.append(runs)
        out.contenders.append(contenders)
    return out


@cache
def _center(noise: str) -> float:
    """Returns the median of this noise minus normal noise, in units of the spread."""
    rng = np.random.default_rng(0)
    draws = [NOISES[noise](rng) - rng.standard_normal() for _ in range(200_000)]
    return float(np.median(draws))


def null_table(studies: int, seed: int) -> list[str]:
    """Returns the table of studies without any difference."""
    lines = [
        "| learning rate curve | noise | studies with a wrong verdict | interval coverage | "
        "skewed variant called better | learning rates in contention | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = [*NOISES, "skewed" + ALONE, "very skewed" + ALONE]
    for curve in CURVES:
        for noise in kinds:
            t = tally(curve, noise, studies, seed)
            favored = f"{t.favored / studies:.1%}" if ALONE in noise else "-"
            lines.append(
                f"| {curve} | {noise} | {t.wrong / studies:.1%} | {np.mean(t.covered):.1%} | "
                f"{favored} | {np.mean(t.contenders):.2f} | {np.mean(t.runs):.0f} |"
            )
    return lines


def power_table(studies: int, seed: int) -> list[str]:
    """Returns the table of studies in which one variant is worse by the detectable difference.

    Reports state the power for the variant with the most learning rates in contention.
    """
    lines = [
        "| learning rate curve | seeds | effect, nats | stated power, one to three learning rates "
        "in contention | detected |",
        "|---|---|---|---|---|",
    ]
    n = VARIANTS - 1
    for curve in ("Pre-LN's", "quadratic, 2 sd", "off-grid by 1/2, 1 sd"):
        for seeds in (9, 13, 16):
            effect = detectable(seeds, n)
            assert effect is not None
            nats = effect * SPREAD * math.sqrt(2)
            t = tally(curve, "normal", studies, seed, nats, seeds=seeds)
            stated = f"{power(effect, seeds, n):.0%} to {power(effect, seeds, n, 3):.0%}"
            lines.append(f"| {curve} | {seeds} | {nats:.3f} | {stated} | {t.found / studies:.1%} |")
    return lines


def choices_table(studies: int, seed: int) -> list[str]:
    """Returns the table of other designs, with fewer search seeds or fewer contenders."""
    designs = {
        "one search seed, its choice trusted": replace(SEARCH, seeds=(0,), max_contenders=1),
        "four search seeds, their choice trusted": replace(SEARCH, max_contenders=1),
        "four search seeds, the runner-up in contention": replace(SEARCH, max_contenders=2),
        "one search seed, neighbors in contention": replace(SEARCH, seeds=(0,)),
        "the default": SEARCH,
    }
    lines = [
        "| design | learning rate curve | noise | studies with a wrong verdict | interval "
        "coverage | runs |",
        "|---|---|---|---|---|---|",
    ]
    for name, search in designs.items():
        for curve, noise in (("Pre-LN's", "normal"), ("quadratic, 1 sd", "very skewed")):
            t = tally(curve, noise, studies, seed, search=search)
            lines.append(
                f"| {name} | {curve} | {noise} | {t.wrong / studies:.1%} | "
                f"{np.mean(t.covered):.1%} | {np.mean(t.runs):.0f} |"
            )
    return lines


def main() -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{args.studies} studies per row, level {LEVEL:.0%}.\n")
    for table in (null_table, power_table, choices_table):
        print(*table(args.studies, args.seed), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
