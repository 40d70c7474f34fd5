"""The catalogue: every published variant by its name."""

from __future__ import annotations

from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.placements.beyond import BEYOND
from gpt2_jax.model.placements.norm_placement import NORM_PLACEMENT
from gpt2_jax.model.placements.residual_scaling import RESIDUAL_SCALING

PRESETS: dict[str, Placement] = {**NORM_PLACEMENT, **RESIDUAL_SCALING, **BEYOND}
