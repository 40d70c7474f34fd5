"""The loss curve as a picture that can be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.files import disk_errors
from gpt2_jax.track.metrics import Row

_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9622b", "#5f6670"


def plot_loss(rows: list[Row], path: Path, title: str, subtitle: str) -> None:
    """Draws training loss (every row faint, their running mean strong) and validation loss.

    Args:
      rows: of metrics.jsonl.
      path: of the PNG, written whole or not at all.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=160, layout="constrained")
    _draw_losses(axes, _series(rows, "train/loss"), _series(rows, "val/loss"))
    axes.set_xlabel("update")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, loc="left", weight="bold", fontsize=12, pad=22)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, color=_GREY, fontsize=9, va="bottom")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    temporary = path.with_name(f".{path.name}.tmp.png")
    with disk_errors("the loss curve"):
        figure.savefig(temporary)
        temporary.replace(path)
    plt.close(figure)


def _draw_losses(axes: Any, train: np.ndarray, val: np.ndarray) -> None:
    if len(train):
        axes.plot(*train.T, color=_BLUE, alpha=0.25, linewidth=0.9, label="training, each row")
        axes.plot(
            train[:, 0],
            _smooth(train[:, 1]),
            color=_BLUE,
            linewidth=1.8,
            label="training, running mean",
        )
    if len(val) > 1 and val[0, 0] == 0:
        val = val[1:]  # the guess before the first update would stretch the line over everything
    if len(val):
        axes.plot(*val.T, "o-", color=_ORANGE, linewidth=1.8, markersize=4, label="validation")
        axes.annotate(
            f"{val[-1, 1]:.3f}",
            val[-1],
            xytext=(8, 0),
            textcoords="offset points",
            color=_ORANGE,
            va="center",
            weight="bold",
        )
        axes.margins(x=0.09)
    values = np.concatenate([train[:, 1], val[:, 1]]) if len(train) + len(val) else np.ones(1)
    low, high = np.min(values), np.percentile(values, 98)
    axes.set_ylim(low - 0.06 * (high - low + 1e-3), high + 0.04 * (high - low + 1e-3))


def _series(rows: list[Row], name: str) -> np.ndarray:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return np.array(points, float).reshape(-1, 2)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each value and those before it, over up to a twelfth of them."""
    width = max(1, len(values) // 12)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
