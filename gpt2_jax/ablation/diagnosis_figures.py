"""Publication figures of diagnoses: PDF with embedded fonts, and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2_jax.ablation.diagnosis import Diagnosis
from gpt2_jax.ablation.drawing import (
    Style,
    choose_styles,
    finish,
    legend,
    panels,
    save,
)

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
)
DEPTH_PANELS = (
    ("gradient norm, last block", "grad_norm", None),
    ("stream RMS, last block", "stream_rms", None),
    ("first step, Adam (SGD thin)", "adam_model_change", "sgd_model_change"),
)
THIN: Style = {"linewidth": 0.7, "marker": ""}


def plot_by_block(
    diagnoses: Sequence[Diagnosis], path: Path, among: Sequence[Diagnosis] | None = None
) -> None:
    """Draws every quantity against the block index, for models of one depth, one color per model.

    Args:
      path: path without a suffix; `.pdf` and `.png` are added.
      among: all models in any figure, so that each keeps its color; default: `diagnoses`.
    """
    figure, axes = panels(3, 3)
    styles = styles_of(among or diagnoses)
    for panel, (title, main, thin, logarithmic) in zip(axes, BLOCK_PANELS, strict=False):
        for one in diagnoses:
            blocks = np.arange(1, one.n_layer + 1)
            style = {**styles[one.name, one.n_layer], "markevery": max(1, one.n_layer // 6)}
            panel.plot(blocks, one.by_block[main], label=one.name, **style)
            if thin:
                panel.plot(blocks, one.by_block[thin], **style | THIN)
        finish(panel, title, "block", logarithmic)
    legend(figure, axes)
    save(figure, path)


def plot_by_depth(diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Draws whole-model quantities against the number of blocks."""
    figure, axes = panels(1, 3)
    names = list(dict.fromkeys(one.name for one in diagnoses))
    lines = choose_styles([(name, None) for name in names])  # depth is the axis here
    for panel, (title, *drawn) in zip(axes, DEPTH_PANELS, strict=False):
        for name, style in zip(names, lines, strict=True):
            labeled: Style = {"label": name}
            own = sorted((d for d in diagnoses if d.name == name), key=lambda d: d.n_layer)
            depths = [d.n_layer for d in own]
            for key, more in zip(drawn, (labeled, THIN), strict=False):
                if key is not None:
                    panel.plot(depths, [_number(d, key) for d in own], **style | more)
        finish(panel, title, "blocks", logarithmic=True)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted({d.n_layer for d in diagnoses}))
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
    legend(figure, axes)
    save(figure, path)


def styles_of(diagnoses: Sequence[Diagnosis]) -> dict[tuple[str, int], Style]:
    """Returns each model's style, by its name and depth."""
    keys = [(one.name, one.n_layer) for one in diagnoses]
    # Runs are named `placement (folder)`; the placement is the kind.
    models = [(name.partition(" (")[0], depth) for name, depth in keys]
    distinct = len(set(models)) == len(models)
    return dict(zip(keys, choose_styles(models if distinct else keys), strict=True))


def _number(diagnosis: Diagnosis, key: str) -> float:
    return diagnosis.whole[key] if key in diagnosis.whole else float(diagnosis.by_block[key][-1])
