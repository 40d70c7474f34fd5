"""The catalogue: all presets by name."""

from __future__ import annotations

from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue.beyond import BEYOND
from gpt2_jax.placements.catalogue.norm_placement import NORM_PLACEMENT
from gpt2_jax.placements.catalogue.residual_scaling import RESIDUAL_SCALING

PRESETS: dict[str, Placement] = {**NORM_PLACEMENT, **RESIDUAL_SCALING, **BEYOND}
