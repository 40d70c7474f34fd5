"""Fields that had other names in earlier versions."""

from __future__ import annotations

import re

from gpt2_jax.placements.axes import AXES

_AXES = {
    "norm_sites": "norms",
    "norm_type": "norm",
    "layer_overrides": "exceptions",
    "value_residual": "values",
    "cross_layer": "across",
    "data_dependent_init": "profiled",
    "multiplier_target": "multiplied",
}
# Old name to new name, in the order of the fields.
RENAMED = {"model.placement": "placement.preset"} | {
    f"model.{_AXES.get(axis, axis)}": f"placement.{axis}" for axis in AXES
}


def renamed(name: str) -> str:
    """Returns a hint such as `; it is now 'placement.preset'` for an old name, else ''."""
    return f"; it is now '{RENAMED[name]}'" if name in RENAMED else ""


def renamed_key(text: str) -> str:
    """Returns the error message for a key that is an old name, else ''.

    Args:
      text: the one-line error of ml_collections: `KeyError: 'Key "norm" does not exist ...` if the
        key was set, `AttributeError: 'norm'` if it was read.
    """
    found = re.match(r"""(?:Key|Attribute)Error: '(?:Key "(\w+)"|(\w+)'$)""", text)
    name = f"model.{found[1] or found[2]}" if found else ""
    return f"{name} is not a config field{hint}" if (hint := renamed(name)) else ""
