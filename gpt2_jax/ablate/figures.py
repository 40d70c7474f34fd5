"""Diagnoses as figures for a paper: PDF with its fonts, and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2_jax.ablate.diagnosis import Diagnosis
from gpt2_jax.ablate.drawing import finish, legend, panels, save, style

# (title, figure drawn solid, figure drawn dashed, logarithmic)
BLOCK_PANELS = (
    ("stream RMS", "stream_rms", None, True),
    ("branch / stream (MLP dashed)", "attn_ratio", "mlp_ratio", True),
    ("cosine, before and after", "cosine", None, False),
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


def plot_by_block(diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Draws every figure against the block's number; models of one depth, a colour each.

    Args:
      path: without a suffix; `.pdf` and `.png` are added.
    """
    figure, axes = panels(3, 3)
    for panel, (title, solid, dashed, logarithmic) in zip(axes, BLOCK_PANELS, strict=False):
        for i, one in enumerate(diagnoses):
            blocks = np.arange(1, one.n_layer + 1)
            look = {**style(i), "markevery": max(1, one.n_layer // 6)}
            panel.plot(blocks, one.by_block[solid], label=one.name, **look)
            if dashed:
                panel.plot(blocks, one.by_block[dashed], **look | {"linestyle": "--"})
        finish(panel, title, "block", logarithmic)
    legend(figure, axes)
    save(figure, path)


def plot_by_depth(diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Draws what the whole model does against its number of blocks."""
    figure, axes = panels(1, 3)
    names = list(dict.fromkeys(one.name for one in diagnoses))
    for panel, (title, *drawn) in zip(axes, DEPTH_PANELS, strict=False):
        for i, name in enumerate(names):
            own = sorted((d for d in diagnoses if d.name == name), key=lambda d: d.n_layer)
            depths = [d.n_layer for d in own]
            for key, line in zip(drawn, ("-", "--"), strict=False):
                if key is not None:
                    values = [_number(d, key) for d in own]
                    label = name if line == "-" else None
                    panel.plot(depths, values, **style(i) | {"linestyle": line}, label=label)
        finish(panel, title, "blocks", logarithmic=True)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted({d.n_layer for d in diagnoses}))
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
    legend(figure, axes)
    save(figure, path)


def _number(diagnosis: Diagnosis, key: str) -> float:
    return diagnosis.whole[key] if key in diagnosis.whole else float(diagnosis.by_block[key][-1])
