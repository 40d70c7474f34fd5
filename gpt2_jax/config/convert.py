"""Configs at the door: ConfigDicts of config files and command lines, and JSON of stored runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from gpt2_jax.config.renamed import renamed
from gpt2_jax.config.sections import Config
from gpt2_jax.config.table import FIELDS, replace, validated
from gpt2_jax.errors import UserError, quoted, suggestion
from gpt2_jax.fields import LONGEST_NAME
from gpt2_jax.files import read_errors, read_fields
from gpt2_jax.placements import modules

LARGEST = 10_000_000  # bytes of a config.json; ours have about 3,000


def default() -> ConfigDict:
    """Returns the locked config that a config file starts from: every field at its default."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        *sections, leaf = name.split(".")
        at = config
        for section in sections:
            if section not in at:
                at[section] = ConfigDict()
            at = at[section]
        at[leaf] = config_dict.placeholder(field.kind) if field.optional else field.default
    return config.lock()


def freeze(config: object, where: str = "") -> Config:
    """Returns the config that a config file and a command line describe, each value validated.

    The module that `placement.module` names is imported.

    Args:
      where: a prefix for errors about fields that are missing or unknown, such as a file's name.

    Raises:
      UserError: naming the field.
    """
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise UserError(f"{where}{quoted(config)} is not a ConfigDict; start from config.default()")
    given = _leaves(config, where)
    if missing := [name for name in FIELDS if name not in given]:
        raise UserError(f"{where}the config has no field {missing[0]}; start from config.default()")
    module = validated("placement.module", given["placement.module"])
    if module is not None:
        modules.load(module, "placement.module")
    return replace(Config(), {name: validated(name, value) for name, value in given.items()})


def _leaves(given: Any, where: str, way_out: str = "", prefix: str = "") -> dict[str, Any]:
    """Returns `{"section.field": value}` of nested fields; unknown ones are refused.

    Args:
      way_out: what to do about a field of an earlier version.
    """
    if not isinstance(given, dict | ConfigDict):
        raise UserError(f"{where}{prefix[:-1]}={quoted(given)} must be a section of fields")
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if name in FIELDS:
            found[name] = value
        elif _is_section(name):
            found |= _leaves(value, where, way_out, f"{name}.")
        elif hint := renamed(name):
            raise UserError(f"{where}{quoted(name)} is not a config field{hint}{way_out}")
        else:
            near = suggestion(name[:LONGEST_NAME], FIELDS)
            raise UserError(f"{where}{quoted(name)} is not a config field{near}")
    return found


def _is_section(name: str) -> bool:
    return any(field.startswith(f"{name}.") for field in FIELDS)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as nested fields, as JSON holds them."""
    return dataclasses.asdict(config)


def to_json(config: Config) -> str:
    """Returns the config as nested JSON, as `config.json` keeps it."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(path: Path) -> Config:
    """Reads a config written by `to_json`; nothing in the file is executed.

    Raises:
      UserError: if the file is missing, not JSON, or has a field or value that no config has.
    """
    with read_errors(path):
        exists = path.exists()
    if not exists:
        raise UserError(f"{path} does not exist: is this a run's work directory?")
    return from_dict(read_fields(path, LARGEST), path)


def from_dict(stored: dict[str, Any], path: Path) -> Config:
    """Returns the config of nested fields that were read from a file; missing ones are defaults.

    Raises:
      UserError: if there are fields or values that no config has, or the placement's module is
        neither loaded nor installed.
    """
    given = _leaves(stored, f"{path}: ", "; use the version that wrote the file, or train again")
    if (module := given.get("placement.module")) is not None:
        modules.require(
            validated("placement.module", module, f"{path}: placement.module"), str(path)
        )
    values = {name: validated(name, value, f"{path}: {name}") for name, value in given.items()}
    return replace(Config(), values)
