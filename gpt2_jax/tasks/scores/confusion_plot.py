"""A picture of a confusion matrix, readable from 2 to several hundred classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.files import disk_errors
from gpt2_jax.track.plot import load_matplotlib, printable

MAX_WITH_NUMBERS = 25  # classes up to which cells contain numbers
_CELL_INCHES = 0.15  # smallest cell whose label can be read
_LONGEST_NAME = 28  # characters of a class name


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path, title: str) -> None:
    """Draws a confusion matrix, colored by share of the gold class.

    Args:
      matrix: (C, C) numbers of examples; rows are gold classes.
      names: name of each class.
      path: the PNG file, written atomically.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    n = len(names)
    side = max(5.0, (0.45 if n <= MAX_WITH_NUMBERS else _CELL_INCHES) * n + 2.5)
    figure = Figure(figsize=(side + 0.6, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = _draw_cells(axes, shares)
    size = max(12.0, 0.8 * side)  # of the text outside of the matrix, which may be shown reduced
    _label(axes, [_short(name) for name in names], size)
    if n <= MAX_WITH_NUMBERS:
        _write_numbers(axes, matrix, shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
    bar.set_label("share of gold class", fontsize=size)
    bar.ax.tick_params(labelsize=0.8 * size)
    axes.set_title(printable(title), loc="left", weight="bold", fontsize=1.1 * size, pad=10)
    temporary = path.with_name(f".{path.name}.tmp.png")
    with disk_errors("the confusion matrix"):
        figure.savefig(temporary)
        temporary.replace(path)


def _draw_cells(axes: Any, shares: np.ndarray) -> Any:
    from matplotlib.colors import PowerNorm

    # The square root makes a share of a few percent visible next to a full diagonal.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    edges = np.arange(len(shares) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="#e3e6ea", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    return image


def _label(axes: Any, names: Sequence[str], size: float) -> None:
    small = 10 if len(names) <= MAX_WITH_NUMBERS else 7
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=small)
    axes.set_yticks(ticks, names, fontsize=small)
    axes.set_xlabel("predicted class", fontsize=size)
    axes.set_ylabel("gold class", fontsize=size)


def _write_numbers(axes: Any, matrix: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if shares[row, column] > 0.4 else "#1c2733"
        number = f"{matrix[row, column]}"
        axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
