"""Diagnoses as figures for a paper: PDF with its fonts, and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.ablate.diagnosis import Diagnosis

WIDTH = 7.0  # inches: the text of a page
# (title, figure drawn solid, figure drawn dashed, logarithmic)
BLOCK_PANELS = (
    ("stream RMS", "stream_rms", None, True),
    ("branch / stream (MLP dashed)", "attn_ratio", "mlp_ratio", True),
    ("cosine before and behind", "cosine", None, False),
    ("gradient (of many batches dashed)", "grad_norm", "mean_grad_norm", True),
    ("first update, Adam (SGD dashed)", "adam_change", "sgd_change", True),
    ("loss when skipped (nats)", "skip_cost", None, False),
    ("attention entropy (nats)", "entropy", None, False),
    ("largest attention logit", "largest_score", None, False),
)
DEPTH_PANELS = (
    ("gradient norm, last block", "grad_norm", None),
    ("stream RMS, last block", "stream_rms", None),
    ("first update, Adam (SGD dashed)", "adam_model_change", "sgd_model_change"),
)
# Okabe and Ito's, told apart by the colour-blind; grey and two more where they run out.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8B8B"),
    *("#7A4B9D", "#7F6000"),
)
MARKERS = "os^Dv<>Pp*X"


def plot_by_block(diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Draws every figure against the block's number; models of one depth, a colour each.

    Args:
      path: without a suffix; `.pdf` and `.png` are added.
    """
    figure, axes = _panels(3, 3)
    for panel, (title, solid, dashed, logarithmic) in zip(axes, BLOCK_PANELS, strict=False):
        for i, one in enumerate(diagnoses):
            blocks = np.arange(1, one.n_layer + 1)
            style = {**_style(i), "markevery": max(1, one.n_layer // 6)}
            panel.plot(blocks, one.by_block[solid], label=one.name, **style)
            if dashed:
                panel.plot(blocks, one.by_block[dashed], **style, linestyle="--")
        _finish(panel, title, "block", logarithmic)
    _legend(axes[len(BLOCK_PANELS) :], axes[0])
    _save(figure, path)


def plot_by_depth(diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Draws what the whole model does against its number of blocks."""
    figure, axes = _panels(2, 2)
    names = list(dict.fromkeys(one.name for one in diagnoses))
    for panel, (title, *drawn) in zip(axes, DEPTH_PANELS, strict=False):
        for i, name in enumerate(names):
            own = sorted((d for d in diagnoses if d.name == name), key=lambda d: d.n_layer)
            depths = [d.n_layer for d in own]
            for key, line in zip(drawn, ("-", "--"), strict=False):
                if key is not None:
                    values = [_number(d, key) for d in own]
                    label = name if line == "-" else None
                    panel.plot(depths, values, **_style(i), linestyle=line, label=label)
        _finish(panel, title, "blocks", logarithmic=True)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted({d.n_layer for d in diagnoses}))
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
    _legend(axes[len(DEPTH_PANELS) :], axes[0])
    _save(figure, path)


def _number(diagnosis: Diagnosis, key: str) -> float:
    return diagnosis.whole[key] if key in diagnosis.whole else float(diagnosis.by_block[key][-1])


def _style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 3,
        "linewidth": 1.1,
    }


def _panels(rows: int, columns: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"pdf.fonttype": 42, "font.size": 7.5, "axes.titlesize": 8})
    import matplotlib.pyplot as plt

    size = (WIDTH, 2.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=200, layout="constrained")
    return figure, list(axes.flat)


def _finish(panel: Any, title: str, label: str, logarithmic: bool) -> None:
    panel.set_title(title, loc="left")
    panel.set_xlabel(label)
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.get_major_locator().set_params(integer=True)
    values = np.concatenate([line.get_ydata() for line in panel.get_lines()])
    positive = values[np.isfinite(values) & (values > 0)]
    if logarithmic and len(positive):
        _logarithmic(panel, float(np.log10(positive.max() / positive.min())))


def _logarithmic(panel: Any, decades: float) -> None:
    """Sets a logarithmic axis with plain numbers at it, closer together where it is short."""
    from matplotlib.ticker import LogLocator

    panel.set_yscale("log")
    subs = (1, 2, 5) if decades < 2 else (1,)
    panel.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")


def _legend(free: list[Any], of: Any) -> None:
    """Puts the legend where a panel is left empty."""
    for panel in free:
        panel.axis("off")
    free[0].legend(*of.get_legend_handles_labels(), loc="center", frameon=False)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    for suffix in (".pdf", ".png"):
        figure.savefig(path.with_suffix(suffix))
    plt.close(figure)
