"""Draws the figures of a study's report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2_jax.ablation.drawing import (
    Style,
    choose_styles,
    finish,
    legend,
    panels,
    plain,
    powers_of_two,
    save,
)
from gpt2_jax.ablation.report.variant import Analysis, Variant, learning_rate_of
from gpt2_jax.ablation.statistics import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRAY = "#8B8B8B"
SUFFIXES = (".png",)
COLUMNS = 3  # maximum number of panels per row
DEPTH = "model.n_layer"
# By diagnostic: title, and whether the axis is logarithmic.
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


def draw_all(analysis: Analysis, folder: Path) -> dict[str, str]:
    """Draws all figures that have data into a folder; returns `{file: caption}`."""
    drawn: dict[str, str] = {}
    if any(variant.median for variant in analysis.variants):
        _losses(analysis, folder / "losses")
        drawn["losses.png"] = (
            "Final validation loss at each variant's learning rate: every seed (points), median "
            "and 95% interval (bars); the dashed line is the median of its baseline."
        )
    if any(variant.search_runs for variant in analysis.variants):
        _learning_rates(analysis, folder / "learning_rates")
        drawn["learning_rates.png"] = (
            "Final validation loss against the learning rate: search seeds (points; at the top "
            "edge, crosses are broken seeds and triangles are losses off the scale), their mean "
            "(line), and fresh seeds at the chosen learning rate (open circles); the baseline's "
            "mean is gray."
        )
    if any(variant.runs for variant in analysis.variants):
        _curves(analysis, folder / "curves")
        drawn["curves.png"] = (
            "Validation loss during training, mean over finished seeds (each variant in the color "
            "of its title), and the mean paired difference from the baseline with its 95% "
            "interval. Each panel has its own scale."
        )
    for last, name in ((False, "start"), (True, "end")):
        names = [
            n for n in TITLES if any(v.by_depth(n, last) is not None for v in analysis.variants)
        ]
        if names:
            when = "at the end" if last else "before the first step"
            drawn |= _depths(analysis, names, last, folder / f"depth_{name}", when)
    return drawn


def groups(analysis: Analysis) -> list[list[Variant]]:
    """Returns the variants grouped by their baselines."""
    bases = dict.fromkeys(variant.baseline for variant in analysis.variants)
    return [[v for v in analysis.variants if v.baseline == base] for base in bases]


def styles_of(analysis: Analysis) -> dict[str, Style]:
    """Returns each variant's style by name: the color for its kind, the line for its depth."""
    rest = lambda values: repr(sorted((f, v) for f, v in values.items() if f != DEPTH))
    models = [(rest(v.values), v.values.get(DEPTH)) for v in analysis.variants]
    return dict(zip((v.name for v in analysis.variants), choose_styles(models), strict=True))


def _losses(analysis: Analysis, path: Path) -> None:
    whole = sorted(
        (v for v in analysis.variants if v.median is not None and v.comparable),
        key=lambda v: v.loss or 0.0,
    )
    figure, (panel,) = panels(1, 1, height=0.9 + 0.3 * len(whole))
    styles = styles_of(analysis)
    for place, variant in enumerate(reversed(whole)):
        assert variant.median is not None
        losses, style = list(variant.losses.values()), styles[variant.name]
        color = style["color"]
        panel.plot(losses, [place + 0.22] * len(losses), ".", color=color, markersize=4.5)
        middle, low, high = variant.median
        if np.isfinite(low) and np.isfinite(high):
            panel.plot([low, high], [place] * 2, color=color, linewidth=2)
        panel.plot(middle, place, style["marker"], color=color, markersize=6)
        if (base := analysis.variant(variant.baseline).median) is not None:
            ends = [place - 0.5, place + 0.5]
            panel.plot([base.estimate] * 2, ends, "--", color=GRAY, linewidth=0.8, zorder=0)
    panel.set_yticks(range(len(whole)), [variant.name for variant in reversed(whole)])
    plain(panel, "validation loss, each at its own learning rate", "nats per token")
    save(figure, path, SUFFIXES)


def _learning_rates(analysis: Analysis, path: Path) -> None:
    columns = min(COLUMNS, len(analysis.variants))
    rows = -(-len(analysis.variants) // columns)
    figure, axes = panels(rows, columns, height=2.0, sharex=True, sharey=True)
    styles = styles_of(analysis)
    known = [run.outcome.score for v in analysis.variants for run in v.search_runs]
    finite = [loss for loss in known if np.isfinite(loss)]
    if not finite:
        finite = [0.0, 1.0]
    fresh = [loss for variant in analysis.variants for loss in variant.losses.values()]
    low, high = min(finite + fresh), max(float(np.quantile(finite, 0.9)), *fresh, 0.0)
    top = high + 0.25 * (high - low + 1e-3)
    for panel, variant in zip(axes, analysis.variants, strict=False):
        base = analysis.variant(variant.baseline)
        if base is not variant:
            panel.plot(*_means(base, top), color=GRAY, linewidth=0.8, zorder=0)
        _of_variant(panel, variant, styles[variant.name], top)
        panel.set_xscale("log", base=2)
        powers_of_two(panel.xaxis)
        plain(panel, wrapped(variant.name), "learning rate")
        panel.set_ylim(low - 0.08 * (top - low), top + 0.04 * (top - low))
    for panel in axes[len(analysis.variants) :]:
        panel.axis("off")
    for panel in axes[max(0, len(analysis.variants) - columns) : len(analysis.variants)]:
        panel.tick_params(labelbottom=True)  # also above an empty panel
    for panel in axes[: max(0, len(analysis.variants) - columns)]:
        panel.set_xlabel("")
    for panel in axes[::columns]:
        panel.set_ylabel("nats per token")
    save(figure, path, SUFFIXES)


def _of_variant(panel: Axes, variant: Variant, style: Style, top: float) -> None:
    color = style["color"]
    panel.plot(*_means(variant, top), color=color, linestyle=style["linestyle"], linewidth=1.4)
    for run in variant.search_runs:
        score = run.outcome.score
        mark = "." if score <= top else "^" if np.isfinite(score) else "x"
        panel.plot(learning_rate_of(run.trial), min(score, top), mark, color=color, markersize=5)
    for loss in variant.losses.values():
        style = {"markerfacecolor": "none", "markersize": 5, "markeredgewidth": 0.8}
        if variant.learning_rate is not None:
            panel.plot(variant.learning_rate, loss, "o", color=color, **style)


def _means(variant: Variant, top: float) -> tuple[list[float], list[float]]:
    by_k = {run.trial.k: learning_rate_of(run.trial) for run in variant.search_runs}
    scores = sorted(variant.search.scores.items())
    return [by_k[k] for k, _ in scores], [min(score, top) for _, score in scores]


def wrapped(name: str) -> str:
    """Returns a variant's name, wrapped to fit a small panel."""
    lines = textwrap.wrap(name.replace(",", ", "), 24, break_on_hyphens=False)
    return "\n".join(lines).replace(", ", ",")


def _curves(analysis: Analysis, path: Path) -> None:
    """Draws, for each baseline, the losses of its variants and their differences from it."""
    together = [g for g in groups(analysis) if any(v.runs for v in g)]
    rows: list[list[tuple[list[Variant], Variant | None]]] = [
        [(group, None), *((group, v) for v in group if _differences(analysis, v))]
        for group in together
    ]
    height = lambda columns: sum(-(-len(row) // columns) for row in rows)
    columns = next(c for c in (1, 2, COLUMNS) if height(c) == height(COLUMNS))
    drawn: list[tuple[list[Variant], Variant | None] | None] = []
    for row in rows:
        drawn += [*row, *[None] * (-len(row) % columns)]  # the next baseline starts a new row
    figure, axes = panels(height(columns), columns, height=2.0)
    styles = styles_of(analysis)
    for panel, one in zip(axes, drawn, strict=False):
        if one is None:
            panel.axis("off")
        elif one[1] is None:
            _curves_of(one[0], styles, panel)
            plain(panel, wrapped(f"nats per token (thick: {one[0][0].baseline})"), "step")
        else:
            _band(panel, styles[one[1].name], _by_step(_differences(analysis, one[1])))
            panel.axhline(0, color=GRAY, linewidth=1)
            style = styles[one[1].name]
            plain(panel, wrapped(one[1].name), "step")
            panel.set_title(wrapped(one[1].name), loc="left", color=style["color"])
            panel.set_ylabel("difference (nats)")
    save(figure, path, SUFFIXES)


def _curves_of(group: Sequence[Variant], styles: dict[str, Style], panel: Axes) -> None:
    """Draws the mean curve of each variant; the baseline's is thick and on top of the others."""
    middles = []
    for variant in group:
        curves = [run.curve for run in variant.runs if run.is_finished]
        if not curves:
            continue
        means = {step: np.mean(losses) for step, losses in _by_step(curves).items()}
        thick = {"linewidth": 2.6, "zorder": 3} if variant.is_baseline else {}
        style: Style = styles[variant.name] | thick
        if len(means) > 1:  # a line needs two points
            style |= {"marker": ""}
        panel.plot(list(means), list(means.values()), **style)
        middles += [list(curve.values())[len(curve) // 2] for curve in curves]
    ends = [loss for variant in group for loss in variant.losses.values()]
    if middles:
        low, high = min(ends + middles), max(middles)
        span = high - low + 1e-3
        panel.set_ylim(low - 0.1 * span, high + 0.3 * span)


def _differences(analysis: Analysis, variant: Variant) -> list[dict[int, float]]:
    """Returns, for each seed, the loss minus the baseline's at each step."""
    if variant.is_baseline or not variant.comparable:
        return []
    base = {r.trial.seed: r.curve for r in analysis.variant(variant.baseline).runs}
    curves = {run.trial.seed: run.curve for run in variant.runs if run.is_finished}
    return [
        {step: loss - base[seed][step] for step, loss in curve.items() if step in base[seed]}
        for seed, curve in curves.items()
        if seed in base
    ]


def _by_step(curves: Sequence[dict[int, float]]) -> dict[int, list[float]]:
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: [curve[step] for curve in curves] for step in steps if step > 0}


def _band(panel: Axes, style: Style, values: dict[int, list[float]]) -> None:
    intervals = [t_interval(losses) for losses in values.values()]
    steps, means = list(values), [interval.estimate for interval in intervals]
    panel.plot(steps, means, **style)
    lows, highs = [x.low for x in intervals], [x.high for x in intervals]
    edge = 0 if len(steps) > 1 else 4  # the band of one step has no area
    panel.fill_between(steps, lows, highs, color=style["color"], alpha=0.2, linewidth=edge)


def _depths(
    analysis: Analysis, names: Sequence[str], last: bool, path: Path, when: str
) -> dict[str, str]:
    """Draws one figure per baseline; returns `{file: caption}`."""
    drawn = {}
    together = groups(analysis)
    for i, group in enumerate(together, 1):
        if all(v.by_depth(name, last) is None for v in group for name in names):
            continue
        one = len(together) == 1
        of = path if one else path.with_name(f"{path.name}_{i}")
        _depth(analysis, group, names, last, of)
        which = "" if one else f", for {group[0].baseline} and the variants compared with it"
        drawn[f"{of.name}.png"] = f"By block, {when}{which}: means over finished seeds."
    return drawn


def _depth(
    analysis: Analysis, group: Sequence[Variant], names: Sequence[str], last: bool, path: Path
) -> None:
    columns = min(COLUMNS, len(names))
    figure, axes = panels(-(-len(names) // columns), columns, height=2.0)
    styles = styles_of(analysis)
    for panel, name in zip(axes, names, strict=False):
        for variant in group:
            values = variant.by_depth(name, last)
            if values is not None:
                style = styles[variant.name] | {"markevery": max(1, len(values) // 6)}
                panel.plot(np.arange(1, len(values) + 1), values, label=variant.name, **style)
        title, logarithmic = TITLES[name]
        finish(panel, title, "block", logarithmic)
    legend(figure, axes)
    save(figure, path, SUFFIXES)
