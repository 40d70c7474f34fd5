"""Configs: every field with its default, range and meaning. Nothing here imports jax.

A config file's `get_config(arg)` starts from `default()`, a locked `ml_collections.ConfigDict`,
changes fields and returns it; the command line can change more. `freeze` converts it to a `Config`,
nested frozen dataclasses that all other code uses. `check.check` refuses invalid configs.
"""

from gpt2_jax.config.convert import default, freeze, from_dict, from_json, to_dict, to_json
from gpt2_jax.config.sections import Config
from gpt2_jax.config.table import (
    FIELDS,
    check_resumable,
    difference,
    fixed_difference,
    flatten,
    listed,
    replace,
    resolve,
    validated,
    value_of,
    with_labels,
    with_n_inner,
    words,
)

__all__ = [
    "FIELDS",
    "Config",
    "check_resumable",
    "default",
    "difference",
    "fixed_difference",
    "flatten",
    "freeze",
    "from_dict",
    "from_json",
    "listed",
    "replace",
    "resolve",
    "to_dict",
    "to_json",
    "validated",
    "value_of",
    "with_labels",
    "with_n_inner",
    "words",
]
