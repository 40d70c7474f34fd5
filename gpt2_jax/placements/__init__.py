"""Residual connections and norm placements as data; imports no jax.

`axes` defines the design space and `expressions` the small languages of its values; `catalogue` has
the published variants; `resolve` turns a preset with overrides into a typed `spec`; `registry` says
what each connection supports, and `validate` what is wrong with a placement. `modules` imports
modules outside the package that register more.
"""

from gpt2_jax.placements.axes import AXES, Placement
from gpt2_jax.placements.catalogue import PRESETS

__all__ = ["AXES", "PRESETS", "Placement"]
