"""Converts configs from and to ConfigDicts (config files, command line) and JSON (runs)."""

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

MAX_BYTES = 10_000_000  # of a config.json; a valid one has about 3,000


def default() -> ConfigDict:
    """Returns a locked config with every field at its default, for config files to start from."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        *sections, leaf = name.split(".")
        node = config
        for section in sections:
            if section not in node:
                node[section] = ConfigDict()
            node = node[section]
        node[leaf] = config_dict.placeholder(field.kind) if field.optional else field.default
    return config.lock()


def freeze(config: object, where: str = "") -> Config:
    """Converts a ConfigDict to a `Config`, and validates each value.

    Imports the module named by `placement.module`.

    Args:
      where: prefix of errors about missing or unknown fields, such as a file's name.

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


def _leaves(given: Any, where: str, advice: str = "", prefix: str = "") -> dict[str, Any]:
    """Returns nested fields as `{"section.field": value}`; refuses unknown fields.

    Args:
      advice: what to do about a field of an earlier version.
    """
    if not isinstance(given, dict | ConfigDict):
        raise UserError(f"{where}{prefix[:-1]}={quoted(given)} must be a section of fields")
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if name in FIELDS:
            found[name] = value
        elif _is_section(name):
            found |= _leaves(value, where, advice, f"{name}.")
        elif hint := renamed(name):
            raise UserError(f"{where}{quoted(name)} is not a config field{hint}{advice}")
        else:
            near = suggestion(name[:LONGEST_NAME], FIELDS)
            raise UserError(f"{where}{quoted(name)} is not a config field{near}")
    return found


def _is_section(name: str) -> bool:
    return any(field.startswith(f"{name}.") for field in FIELDS)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as nested dicts."""
    return dataclasses.asdict(config)


def to_json(config: Config) -> str:
    """Returns the config as JSON, the content of `config.json`."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(path: Path) -> Config:
    """Reads a config written by `to_json`; nothing in the file is executed.

    Raises:
      UserError: if the file is missing, not JSON, or has an unknown field or invalid value.
    """
    with read_errors(path):
        exists = path.exists()
    if not exists:
        raise UserError(f"{path} does not exist: is this a run's work directory?")
    return from_dict(read_fields(path, MAX_BYTES), path)


def from_dict(stored: dict[str, Any], path: Path) -> Config:
    """Returns the config of nested dicts read from a file; missing fields get their defaults.

    Raises:
      UserError: if there is an unknown field or invalid value, or the placement's module is
        neither loaded nor installed.
    """
    given = _leaves(stored, f"{path}: ", "; use the version that wrote the file, or train again")
    if (module := given.get("placement.module")) is not None:
        modules.require(
            validated("placement.module", module, f"{path}: placement.module"), str(path)
        )
    values = {name: validated(name, value, f"{path}: {name}") for name, value in given.items()}
    return replace(Config(), values)
