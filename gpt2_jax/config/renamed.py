"""Fields that earlier versions had under other names."""

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
# By the name that a field had, in the order in which the fields are listed.
RENAMED = {"model.placement": "placement.preset"} | {
    f"model.{_AXES.get(axis, axis)}": f"placement.{axis}" for axis in AXES
}


def renamed(name: str) -> str:
    """Returns the hint for a field's old name, `; it is 'placement.preset' now`, or nothing."""
    return f"; it is '{RENAMED[name]}' now" if name in RENAMED else ""


def renamed_key(text: str) -> str:
    """Returns what to say of an error about a key that a config had earlier, or nothing.

    Args:
      text: the error in one line, as ml_collections writes it: `KeyError: 'Key "norm" does not
        exist ...` if it was set, `AttributeError: 'norm'` if it was read.
    """
    found = re.match(r"""(?:Key|Attribute)Error: '(?:Key "(\w+)"|(\w+)'$)""", text)
    name = f"model.{found[1] or found[2]}" if found else ""
    return f"{name} is not a config field{hint}" if (hint := renamed(name)) else ""
