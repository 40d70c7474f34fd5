"""What a run is: every field with its default, range and meaning.

A config file starts from `default()`, a locked `ml_collections.ConfigDict`, changes fields and
returns it from `get_config(arg)`; the command line changes more of them. `freeze` makes it a
`Config`, frozen dataclasses by section, which everything else takes whole or in parts.
`check.check` reports in one line what cannot work. Nothing here imports jax.
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
    "words",
]
