"""Publication figures of diagnoses: PDF with embedded fonts, and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2_jax.ablation.diagnosis import WHOLE, Diagnosis
from gpt2_jax.ablation.drawing import (
    Style,
    choose_styles,
    finish,
    legend,
    panels,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (title, quantity, quantity drawn thin, logarithmic)
BLOCK_PANELS = (
    ("stream RMS", "stream_rms", None, True),
    ("output / input (MLP thin)", "attn_ratio", "mlp_ratio", True),
    ("cosine, input and output", "cosine", None, False),
    ("gradient (batch mean thin)", "grad_norm", "mean_grad_norm", True),
    ("first step, Adam (SGD thin)", "adam_change", "sgd_change", True),
    ("loss when skipped (nats)", "skip_cost", None, False),
    ("attention entropy (nats)", "entropy", None, False),
    ("largest attention logit", "largest_score", None, True),
    ("cross-attention output / input", "cross_ratio", None, True),  # only of towers that have it
)
DEPTH_PANELS = (
    ("gradient norm, last block", "grad_norm", None),
    ("stream RMS, last block", "stream_rms", None),
    ("first step, Adam (SGD thin)", "adam_model_change", "sgd_model_change"),
)
THIN: Style = {"linewidth": 0.7, "marker": ""}


def plot_by_block(
    diagnoses: Sequence[Diagnosis],
    path: Path,
    tower: str = "",
    among: Sequence[Diagnosis] | None = None,
) -> None:
    """Draws every quantity against the block index, for models of one depth, one color per model.

    Args:
      tower: name of the tower of each model whose blocks are drawn; empty for the only one.
      path: path without a suffix; `.pdf` and `.png` are added.
      among: all models in any figure, so that each keeps its color; default: `diagnoses`.
    """
    figure, axes = panels(3, 3)
    styles = styles_of(among or diagnoses)
    for panel, (title, main, thin, logarithmic) in zip(axes, BLOCK_PANELS, strict=False):
        for one in diagnoses:
            found, depth = one.by_block[tower], one.depths[tower]
            if main not in found:
                continue
            blocks = np.arange(1, depth + 1)
            style = {**styles[one.name, one.n_layer], "markevery": max(1, depth // 6)}
            panel.plot(blocks, found[main], label=one.name, **style)
            if thin:
                panel.plot(blocks, found[thin], **style | THIN)
        if panel.has_data():
            finish(panel, title, f"{tower} block".strip(), logarithmic)
    legend(figure, axes)
    save(figure, path)


def plot_by_depth(diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Draws quantities against the number of blocks, in a row for each tower.

    Those of the whole model are in the row of the tower with the head.
    """
    towers = list(dict.fromkeys(tower for one in diagnoses for tower in one.by_block))
    figure, axes = panels(len(towers), len(DEPTH_PANELS))
    names = list(dict.fromkeys(one.name for one in diagnoses))
    chosen = choose_styles([(name, None) for name in names])  # depth is the axis here
    styles = dict(zip(names, chosen, strict=True))
    for tower in towers:
        own = [one for one in diagnoses if tower in one.by_block]
        has_head = tower == list(own[0].by_block)[-1]
        for title, *drawn in DEPTH_PANELS:
            panel = axes.pop(0)
            if has_head or drawn[0] not in WHOLE:
                _draw_by_depth(panel, own, tower, drawn, styles)
                _finish_by_depth(panel, own, tower, title)
    legend(figure, figure.axes)
    save(figure, path)


def _draw_by_depth(
    panel: Axes,
    diagnoses: Sequence[Diagnosis],
    tower: str,
    keys: Sequence[str | None],
    styles: dict[str, Style],
) -> None:
    """Draws a line per model, and a thin one for the second of the keys."""
    for name in dict.fromkeys(one.name for one in diagnoses):
        labeled: Style = {"label": name}
        own = sorted((d for d in diagnoses if d.name == name), key=lambda d: d.depths[tower])
        depths = [d.depths[tower] for d in own]
        for key, more in zip(keys, (labeled, THIN), strict=False):
            if key is not None:
                numbers = [_number(d, tower, key) for d in own]
                panel.plot(depths, numbers, **styles[name] | more)


def _number(diagnosis: Diagnosis, tower: str, key: str) -> float:
    """Returns a number of the whole model, or of a tower's last block."""
    if key in WHOLE:
        return diagnosis.whole[key]
    return float(diagnosis.by_block[tower][key][-1])


def _finish_by_depth(panel: Axes, diagnoses: Sequence[Diagnosis], tower: str, title: str) -> None:
    finish(panel, title, f"{tower} blocks".strip(), logarithmic=True)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted({d.depths[tower] for d in diagnoses}))
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.minorticks_off()


def styles_of(diagnoses: Sequence[Diagnosis]) -> dict[tuple[str, int], Style]:
    """Returns each model's style, by its name and depth."""
    keys = [(one.name, one.n_layer) for one in diagnoses]
    # Runs are named `placement (folder)`; the placement is the kind.
    models = [(name.partition(" (")[0], depth) for name, depth in keys]
    distinct = len(set(models)) == len(models)
    return dict(zip(keys, choose_styles(models if distinct else keys), strict=True))
