"""The figures of a study's report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2_jax.ablation.drawing import (
    Look,
    finish,
    legend,
    looks,
    panels,
    plain,
    powers_of_two,
    save,
    whole_numbers,
)
from gpt2_jax.ablation.report.variant import FIGURES, Analysis, Variant, learning_rate_of
from gpt2_jax.ablation.statistics import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#8B8B8B"
SUFFIXES = (".png",)
COLUMNS = 3  # panels per row, at most
DEPTH = "model.n_layer"
TITLES = {
    "stream_rms": ("stream RMS", True),
    "attn_ratio": ("attention output / input", True),
    "mlp_ratio": ("MLP output / input", True),
    "cosine": ("cosine, input and output", False),
    "grad_norm": ("gradient norm", True),
    "skip_cost": ("loss when skipped (nats)", False),
    "entropy": ("attention entropy (nats)", False),
    "largest_score": ("largest attention logit", True),
}


def draw_all(found: Analysis, folder: Path) -> dict[str, str]:
    """Draws all figures for which there is data into a folder; returns `{file: caption}`."""
    drawn: dict[str, str] = {}
    if any(variant.median for variant in found.variants):
        _losses(found, folder / "losses")
        drawn["losses.png"] = (
            "Final validation loss at each variant's learning rate: every seed (points), median "
            "and 95% interval (bars); the dashed line is the median of its baseline."
        )
    if any(variant.search_runs for variant in found.variants):
        _learning_rates(found, folder / "learning_rates")
        drawn["learning_rates.png"] = (
            "Final validation loss against the learning rate: the search's seeds (points; at the "
            "top edge, crosses are broken seeds and triangles are losses off the scale), their "
            "mean (line), and fresh seeds at the chosen learning rate (open circles); the "
            "baseline's mean in grey."
        )
    if any(variant.runs for variant in found.variants):
        _curves(found, folder / "curves")
        drawn["curves.png"] = (
            "Validation loss during training, mean over finished seeds (each variant in the colour "
            "of its title), and the mean paired difference from the baseline with its 95% "
            "interval. Each panel has its own scale."
        )
    for last, name in ((False, "start"), (True, "end")):
        names = [n for n in FIGURES if any(v.by_depth(n, last) is not None for v in found.variants)]
        if names:
            when = "at the end" if last else "before the first step"
            drawn |= _depths(found, names, last, folder / f"depth_{name}", when)
    return drawn


def groups(found: Analysis) -> list[list[Variant]]:
    """Returns the variants grouped by their baselines."""
    bases = dict.fromkeys(variant.baseline for variant in found.variants)
    return [[v for v in found.variants if v.baseline == base] for base in bases]


def looks_of(found: Analysis) -> dict[str, Look]:
    """Returns each variant's style by name: the colour for its kind, the line for its depth."""
    rest = lambda values: repr(sorted((f, v) for f, v in values.items() if f != DEPTH))
    models = [(rest(v.values), v.values.get(DEPTH)) for v in found.variants]
    return dict(zip((v.name for v in found.variants), looks(models), strict=True))


def _losses(found: Analysis, path: Path) -> None:
    whole = sorted(
        (v for v in found.variants if v.median is not None and v.comparable),
        key=lambda v: v.median.estimate if v.median else 0,
    )
    figure, (panel,) = panels(1, 1, height=0.9 + 0.3 * len(whole))
    every = looks_of(found)
    for place, variant in enumerate(reversed(whole)):
        assert variant.median is not None
        losses, look = list(variant.losses.values()), every[variant.name]
        colour = look["color"]
        panel.plot(losses, [place + 0.22] * len(losses), ".", color=colour, markersize=4.5)
        middle, low, high = variant.median
        if np.isfinite(low) and np.isfinite(high):
            panel.plot([low, high], [place] * 2, color=colour, linewidth=2)
        panel.plot(middle, place, look["marker"], color=colour, markersize=6)
        if (base := found.variant(variant.baseline).median) is not None:
            ends = [place - 0.5, place + 0.5]
            panel.plot([base.estimate] * 2, ends, "--", color=GREY, linewidth=0.8, zorder=0)
    panel.set_yticks(range(len(whole)), [variant.name for variant in reversed(whole)])
    plain(panel, "validation loss, each at its own learning rate", "nats per token")
    save(figure, path, SUFFIXES)


def _learning_rates(found: Analysis, path: Path) -> None:
    columns = min(COLUMNS, len(found.variants))
    rows = -(-len(found.variants) // columns)
    figure, axes = panels(rows, columns, height=2.0, sharex=True, sharey=True)
    every = looks_of(found)
    known = [run.outcome.score for v in found.variants for run in v.search_runs]
    finite = [loss for loss in known if np.isfinite(loss)]
    if not finite:
        finite = [0.0, 1.0]
    fresh = [loss for variant in found.variants for loss in variant.losses.values()]
    low, high = min(finite + fresh), max(float(np.quantile(finite, 0.9)), *fresh, 0.0)
    top = high + 0.25 * (high - low + 1e-3)
    for panel, variant in zip(axes, found.variants, strict=False):
        base = found.variant(variant.baseline)
        if base is not variant:
            panel.plot(*_means(base, top), color=GREY, linewidth=0.8, zorder=0)
        _of_variant(panel, variant, every[variant.name], top)
        panel.set_xscale("log", base=2)
        powers_of_two(panel.xaxis)
        plain(panel, wrapped(variant.name), "learning rate")
        panel.set_ylim(low - 0.08 * (top - low), top + 0.04 * (top - low))
    for panel in axes[len(found.variants) :]:
        panel.axis("off")
    for panel in axes[max(0, len(found.variants) - columns) : len(found.variants)]:
        panel.tick_params(labelbottom=True)  # also above an empty place
    for panel in axes[: max(0, len(found.variants) - columns)]:
        panel.set_xlabel("")
    for panel in axes[::columns]:
        panel.set_ylabel("nats per token")
    save(figure, path, SUFFIXES)


def _of_variant(panel: Axes, variant: Variant, look: Look, top: float) -> None:
    colour = look["color"]
    panel.plot(*_means(variant, top), color=colour, linestyle=look["linestyle"], linewidth=1.4)
    for run in variant.search_runs:
        score = run.outcome.score
        mark = "." if score <= top else "^" if np.isfinite(score) else "x"
        panel.plot(learning_rate_of(run.trial), min(score, top), mark, color=colour, markersize=5)
    for loss in variant.losses.values():
        look = {"markerfacecolor": "none", "markersize": 5, "markeredgewidth": 0.8}
        if variant.learning_rate is not None:
            panel.plot(variant.learning_rate, loss, "o", color=colour, **look)


def _means(variant: Variant, top: float) -> tuple[list[float], list[float]]:
    by_k = {run.trial.k: learning_rate_of(run.trial) for run in variant.search_runs}
    scores = sorted(variant.search.scores.items())
    return [by_k[k] for k, _ in scores], [min(score, top) for _, score in scores]


def wrapped(name: str) -> str:
    """Returns a variant's name, wrapped to fit a small panel."""
    lines = textwrap.wrap(name.replace(",", ", "), 24, break_on_hyphens=False)
    return "\n".join(lines).replace(", ", ",")


def _curves(found: Analysis, path: Path) -> None:
    """Draws, per baseline, the losses of all variants, and each one's difference from it."""
    together = [g for g in groups(found) if any(v.runs for v in g)]
    rows: list[list[tuple[list[Variant], Variant | None]]] = [
        [(group, None), *((group, v) for v in group if _differences(found, v))]
        for group in together
    ]
    height = lambda columns: sum(-(-len(row) // columns) for row in rows)
    columns = next(c for c in (1, 2, COLUMNS) if height(c) == height(COLUMNS))
    drawn: list[tuple[list[Variant], Variant | None] | None] = []
    for row in rows:
        drawn += [*row, *[None] * (-len(row) % columns)]  # the next baseline starts a new row
    figure, axes = panels(height(columns), columns, height=2.0)
    every = looks_of(found)
    for panel, one in zip(axes, drawn, strict=False):
        if one is None:
            panel.axis("off")
        elif one[1] is None:
            _curves_of(one[0], every, panel)
            plain(panel, wrapped(f"nats per token (thick: {one[0][0].baseline})"), "step")
        else:
            _band(panel, every[one[1].name], _by_step(_differences(found, one[1])))
            panel.axhline(0, color=GREY, linewidth=1)
            look = every[one[1].name]
            plain(panel, wrapped(one[1].name), "step")
            panel.set_title(wrapped(one[1].name), loc="left", color=look["color"])
            panel.set_ylabel("difference (nats)")
    save(figure, path, SUFFIXES)


def _curves_of(group: Sequence[Variant], every: dict[str, Look], panel: Axes) -> None:
    """Draws the mean curve of each variant; the baseline's is thick and on top of the others."""
    middles = []
    for variant in group:
        curves = [run.curve for run in variant.runs if run.is_finished]
        if not curves:
            continue
        means = {step: np.mean(losses) for step, losses in _by_step(curves).items()}
        thick = {"linewidth": 2.6, "zorder": 3} if variant.is_baseline else {}
        panel.plot(
            list(means), list(means.values()), **every[variant.name] | {"marker": ""} | thick
        )
        middles += [list(curve.values())[len(curve) // 2] for curve in curves]
    ends = [loss for variant in group for loss in variant.losses.values()]
    if middles:
        low, high = min(ends + middles), max(middles)
        span = high - low + 1e-3
        panel.set_ylim(low - 0.1 * span, high + 0.3 * span)


def _differences(found: Analysis, variant: Variant) -> list[dict[int, float]]:
    """Returns the loss minus the baseline's at each step, for each seed."""
    if variant.is_baseline or not variant.comparable:
        return []
    base = {r.trial.seed: r.curve for r in found.variant(variant.baseline).runs}
    curves = {run.trial.seed: run.curve for run in variant.runs if run.is_finished}
    return [
        {step: loss - base[seed][step] for step, loss in curve.items() if step in base[seed]}
        for seed, curve in curves.items()
        if seed in base
    ]


def _by_step(curves: Sequence[dict[int, float]]) -> dict[int, list[float]]:
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: [curve[step] for curve in curves] for step in steps if step > 0}


def _band(panel: Axes, look: Look, values: dict[int, list[float]]) -> None:
    intervals = [t_interval(losses) for losses in values.values()]
    steps, means = list(values), [interval.estimate for interval in intervals]
    panel.plot(steps, means, **look)
    lows, highs = [x.low for x in intervals], [x.high for x in intervals]
    panel.fill_between(steps, lows, highs, color=look["color"], alpha=0.2, linewidth=0)


def _depths(
    found: Analysis, names: Sequence[str], last: bool, path: Path, when: str
) -> dict[str, str]:
    """Draws one figure per baseline; returns `{file: caption}`."""
    drawn = {}
    together = groups(found)
    for i, group in enumerate(together, 1):
        if all(v.by_depth(name, last) is None for v in group for name in names):
            continue
        one = len(together) == 1
        of = path if one else path.with_name(f"{path.name}_{i}")
        _depth(found, group, names, last, of)
        which = "" if one else f", for {group[0].baseline} and the variants compared with it"
        drawn[f"{of.name}.png"] = f"By block, {when}{which}: means over finished seeds."
    return drawn


def _depth(
    found: Analysis, group: Sequence[Variant], names: Sequence[str], last: bool, path: Path
) -> None:
    columns = min(COLUMNS, len(names))
    figure, axes = panels(-(-len(names) // columns), columns, height=2.0)
    every = looks_of(found)
    for panel, name in zip(axes, names, strict=False):
        for variant in group:
            values = variant.by_depth(name, last)
            if values is not None:
                look = every[variant.name] | {"markevery": max(1, len(values) // 6)}
                panel.plot(np.arange(1, len(values) + 1), values, label=variant.name, **look)
        title, logarithmic = TITLES[name]
        finish(panel, title, "block", logarithmic)
        whole_numbers(panel.xaxis)
    legend(figure, axes)
    save(figure, path, SUFFIXES)
