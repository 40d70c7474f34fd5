"""Residual connections and norm placements, as data that needs no jax to be read.

`axes` says what a placement is made of, `rules` how its factors are written, `norm_placement`,
`residual_scaling` and their like hold the published variants, `resolve` turns a config into the
placement that it means, and `validity` says what makes no sense.
"""

from gpt2_jax.model.placements.axes import AXES, Placement
from gpt2_jax.model.placements.presets import PRESETS

__all__ = ["AXES", "PRESETS", "Placement"]
