"""The loss curve of a run, drawn while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.files import disk_errors
from gpt2_jax.track.metrics import Row

_BLUE, _PALE, _ORANGE, _GRAY = "#2f6db3", "#b4cce6", "#d9622b", "#5f6670"
_MANY = 50  # losses, of which the highest 2% are outliers that may be off the scale

# Rows of metrics.jsonl, title, subtitle, target, label smoothing of the training loss.
Picture = tuple[list[Row], str, str, str, float]


class LossCurve:
    """The loss curve of a run, drawn in a separate thread, one picture at a time.

    Args:
      path: the PNG file.
      picture: returns what to draw; called in that thread.
    """

    def __init__(self, path: Path, picture: Callable[[], Picture]) -> None:
        self._path, self._picture = path, picture
        self._thread = ThreadPoolExecutor(1, "loss curve")
        self._drawing: Future[None] | None = None
        self._drawn = -1  # step of the last row in the last picture

    def draw(self, step: int, wait: bool = False) -> None:
        """Starts drawing rows up to a step; skipped if a drawing is in progress, unless `wait`.

        Raises:
          DiskError: if `wait` is set and the picture cannot be written.
        """
        if self._drawing is not None and (wait or self._drawing.done()):
            if self._drawing.exception() is not None:
                self._drawn = -1  # retry; the last attempt reports its error
            self._drawing = None
        if self._drawing is None and step != self._drawn:
            self._drawing, self._drawn = self._thread.submit(self._draw), step
            if wait:
                self._drawing.result()

    def _draw(self) -> None:
        rows, title, subtitle, target, smoothing = self._picture()
        plot_loss(rows, self._path, title, subtitle, target, smoothing)

    def close(self) -> None:
        """Stops the thread once the picture in progress is written."""
        self._thread.shutdown()


class UndrawnCurve(LossCurve):
    """Stands in for the curve in processes that do not draw it."""

    def __init__(self) -> None: ...

    def draw(self, step: int, wait: bool = False) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def plot_loss(
    rows: list[Row],
    path: Path,
    title: str,
    subtitle: str,
    target: str = "token",
    label_smoothing: float = 0.0,
) -> None:
    """Draws the training loss (raw in a pale color, and a running mean) and the validation loss.

    Args:
      rows: rows of metrics.jsonl.
      path: the PNG file, written atomically.
      target: what the loss is the mean over.
      label_smoothing: of the training loss, which the legend says; the validation loss has none.
    """
    load_matplotlib()
    # Not pyplot: its list of figures is not thread-safe.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.8), dpi=160, layout="constrained")
    axes = figure.subplots()
    name = f"training (label smoothing {label_smoothing:g})" if label_smoothing else "training"
    _draw_losses(axes, _series(rows, "train/loss"), _series(rows, "val/loss"), name)
    axes.set_xlabel("step", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"loss (nats per {target})", fontsize=12)
    axes.tick_params(labelsize=11)
    title, subtitle = printable(title), printable(subtitle)
    axes.set_title(title, loc="left", weight="bold", fontsize=13, pad=24)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, color=_GRAY, fontsize=11, va="bottom")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=11)
    temporary = path.with_name(f".{path.name}.tmp.png")
    with disk_errors("the loss curve"):
        figure.savefig(temporary)
        temporary.replace(path)


def _draw_losses(axes: Any, train: np.ndarray, val: np.ndarray, name: str) -> None:
    if len(train):
        smooth = _smooth(train[:, 1])
        label = name
        if not np.allclose(smooth, train[:, 1]):  # otherwise one line would hide the other
            axes.plot(*train.T, color=_PALE, linewidth=1.2, label=name)
            label = f"{name}, running mean"
        marker = "o" if len(train) == 1 else None  # a line needs two points
        style: dict[str, Any] = {"marker": marker, "color": _BLUE, "linewidth": 2, "label": label}
        axes.plot(train[:, 0], smooth, **style)
    if len(train) and len(val) and val[0, 0] == 0:
        val = val[1:]  # the loss before the first step would stretch the axis
    if len(val):
        axes.plot(*val.T, "o-", color=_ORANGE, linewidth=2, markersize=5, label="validation")
        axes.annotate(
            f"{val[-1, 1]:.3f}",
            val[-1],
            xytext=(8, 0),
            textcoords="offset points",
            color=_ORANGE,
            fontsize=12,
            va="center",
            weight="bold",
        )
        axes.margins(x=0.11)
    values = np.concatenate([train[:, 1], val[:, 1]]) if len(train) + len(val) else np.ones(1)
    low, high = np.min(values), np.percentile(values, 98 if len(values) >= _MANY else 100)
    axes.set_ylim(low - 0.06 * (high - low + 1e-3), high + 0.04 * (high - low + 1e-3))


def _series(rows: list[Row], name: str) -> np.ndarray:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return np.array(points, float).reshape(-1, 2)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns a running mean over a window of one twelfth of the values."""
    width = max(1, len(values) // 12)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def load_matplotlib() -> Any:
    """Returns matplotlib, set up to draw to files and to treat `$` in text as a plain character.

    Otherwise the name of a file, run or variant with two dollar signs would be parsed as a formula,
    and an invalid formula raises an error. Logarithmic axes need a custom formatter, because
    matplotlib's own uses formulas.
    """
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False
    # A character that the font lacks is drawn as a box; a warning would add nothing.
    warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
    return matplotlib


def printable(text: str) -> str:
    """Replaces unprintable characters, and bytes of a path that are not text, by `�`."""
    return "".join(c if c.isprintable() else "�" for c in text)
