"""Drawing helpers for diagnoses and reports: styles, panels, axes with plain numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2_jax.files import write_atomic
from gpt2_jax.track.plot import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FLAT = 1e-4  # values within this relative range are drawn as equal
WIDTH = 7.0  # text width of a page, inches
# Okabe and Ito's colors for color-blind readers, then gray and two more.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8B8B"),
    *("#7A4B9D", "#7F6000"),
)
MARKERS = "os^Dv<>Pp*X"
LINES = ("-", "--", ":", "-.")
FONT = 9.0  # points; about 14 pixels in a figure shown 800 pixels wide

Style = dict[str, Any]  # color, marker and line, as arguments of `plot`


def choose_styles(models: Sequence[tuple[str, int | None]]) -> list[Style]:
    """Returns the style of each model (kind, depth), the same in every figure.

    Colors distinguish kinds; lines and markers distinguish depths. If all models have one depth,
    markers distinguish kinds as well. If all are of one kind, colors distinguish depths.
    """
    kinds = list(dict.fromkeys(kind for kind, _ in models))
    depths = sorted({depth for _, depth in models}, key=lambda d: (d is not None, d))
    out = []
    for kind, depth in models:
        i, j = kinds.index(kind), depths.index(depth)
        color = i if len(kinds) > 1 else j
        mark = j if len(depths) > 1 else i
        line = j if len(depths) > 1 else i // len(COLORS)
        out.append(
            {
                "color": COLORS[color % len(COLORS)],
                "marker": MARKERS[mark % len(MARKERS)],
                "markersize": 4,
                "linewidth": 1.4,
                "linestyle": LINES[line % len(LINES)],
            }
        )
    return out


def panels(
    rows: int, columns: int, height: float = 2.1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Returns a figure as wide as a page, and its axes row by row.

    Args:
      height: height of a row, inches.
      options: passed to `plt.subplots`.
    """
    matplotlib = load_matplotlib()
    matplotlib.rcParams.update({"pdf.fonttype": 42, "font.size": FONT, "axes.titlesize": FONT})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, height * rows),
        dpi=200,
        layout="constrained",
        squeeze=False,
        **options,
    )
    return figure, list(axes.flat)


def plain(panel: Axes, title: str, label: str) -> None:
    """Sets a panel's title, x label and faint grid."""
    panel.set_title(title, loc="left")
    panel.set_xlabel(label)
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def finish(panel: Axes, title: str, label: str, logarithmic: bool) -> None:
    """Finishes a panel whose x axis counts blocks."""
    plain(panel, title, label)
    integer_ticks(panel.xaxis)
    drawn = [np.asarray(line.get_ydata()) for line in panel.get_lines()]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    middle = float(np.mean(values)) if len(values) else 0.0
    if len(values) and np.ptp(values) < FLAT * abs(middle):  # equal within rounding
        panel.set_ylim(*sorted((0.9 * middle, 1.1 * middle)))
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if logarithmic and len(positive) and not np.any(finite < 0):
        _logarithmic(panel, float(np.log10(np.max(positive) / np.min(positive))))


def _logarithmic(panel: Axes, decades: float) -> None:
    """Sets a logarithmic axis labeled with plain numbers, denser over a short range."""
    from matplotlib.ticker import LogLocator

    panel.set_yscale("log")
    subs = (1, 2, 5) if decades < 2 else (1,)
    panel.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")


def integer_ticks(axis: Axis) -> None:
    """Restricts the ticks of a linear axis to whole numbers."""
    locator: Any = axis.get_major_locator()  # a linear axis's takes `integer`
    locator.set_params(integer=True)


def powers_of_two(axis: Axis) -> None:
    """Labels a logarithmic axis of base 2 with powers, such as 2⁻⁹."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axis.set_major_formatter(lambda x, _: f"2{str(round(np.log2(x))).translate(raised)}")


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Adds a legend below the panels, and hides empty panels."""
    known: dict[str, Any] = {}
    for panel in axes:
        if not panel.has_data():
            panel.axis("off")
        handles, names = panel.get_legend_handles_labels()
        known |= dict(zip(names, handles, strict=True))
    if not known:
        return
    longest = max(map(len, known))
    columns = max(1, min(len(known), int(WIDTH / (0.5 + 0.0077 * FONT * longest))))
    rows = -(-len(known) // columns)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.018 * FONT * rows)
    figure.legend(
        known.values(),
        known,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def save(figure: Figure, path: Path, suffixes: Sequence[str] = (".pdf", ".png")) -> None:
    """Writes a figure in each format, and closes it."""
    import matplotlib.pyplot as plt

    for suffix in suffixes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:])
        write_atomic(path.with_suffix(suffix), buffer.getvalue())
    plt.close(figure)
