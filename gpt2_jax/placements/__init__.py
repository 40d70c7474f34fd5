"""Residual connections and norm placements as data; imports no jax.

`axes` defines the design space, `expressions` the syntax of its values, and `catalogue` the
published variants. `resolve` turns a preset and its overrides into a typed `spec`. `registry` lists
what each connection supports, and `validate` finds errors in a placement. `modules` imports modules
outside the package that register more.
"""

from gpt2_jax.placements.axes import AXES, Placement
from gpt2_jax.placements.catalogue import PRESETS

__all__ = ["AXES", "PRESETS", "Placement"]
