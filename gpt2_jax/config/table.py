"""Configs by dotted field name: the table of all fields, and what is done with a whole config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_jax.config.renamed import renamed
from gpt2_jax.config.sections import Config
from gpt2_jax.errors import UserError, quoted, suggestion
from gpt2_jax.fields import Field, fields_of
from gpt2_jax.placements.axes import GATED, Placement

# Fields that may differ when a run continues, or how they start.
MAY_CHANGE = (
    "track.",
    "mesh.",
    "train.steps",
    "train.patience",
    "train.sample_tokens",
    "train.keep_checkpoints",
)


def _table(cls: type, prefix: str = "") -> dict[str, Field]:
    """Returns the fields of a section and of those inside it, by dotted name."""
    own = fields_of(cls)
    out: dict[str, Field] = {}
    for f in dataclasses.fields(cls):
        if f.name in own:
            out[prefix + f.name] = own[f.name]
        else:
            out |= _table(type(f.default), f"{prefix}{f.name}.")
    return out


FIELDS: dict[str, Field] = _table(Config)


def value_of(config: Config, name: str) -> Any:
    """Returns the field of that dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def flatten(config: Config) -> dict[str, Any]:
    """Returns `{"section.field": value}` in the order of `FIELDS`."""
    return {name: value_of(config, name) for name in FIELDS}


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a config with other values in the fields of these dotted names.

    Values are not validated: they may be traced.
    """
    return _replace(config, changes)


def _replace(section: Any, changes: Mapping[str, Any]) -> Any:
    here: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            inside.setdefault(first, {})[rest] = value
        else:
            here[first] = value
    here |= {name: _replace(getattr(section, name), own) for name, own in inside.items()}
    return dataclasses.replace(section, **here)


def words(value: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the parts of a field of several strings; on a command line commas separate them."""
    return tuple(word.strip() for text in value for word in text.split(",") if word.strip())


def validated(name: str, value: Any, label: str | None = None) -> Any:
    """Returns a value for the field of that dotted name, as the field's type and within its bounds.

    Args:
      label: what errors call it; unset: the field's name.

    Raises:
      UserError: if there is no such field, or it cannot have this value.
    """
    if name not in FIELDS:
        hint = renamed(name) or suggestion(name, FIELDS)
        raise UserError(f"{quoted(name)} is not a config field{hint}")
    return FIELDS[name].validated(value, label or name)


def difference(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns `{field: (old, new)}` for the fields that differ."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in FIELDS if before[name] != after[name]}


def fixed_difference(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns `{field: (old, new)}` for the fields that differ and may not when a run continues."""
    changed = {
        name: values
        for name, values in difference(old, new).items()
        if not name.startswith(MAY_CHANGE) and not name.endswith("_every")
    }
    if new.train.steps < old.train.steps:
        changed["train.steps"] = (old.train.steps, new.train.steps)
    return changed


def listed(changed: dict[str, tuple[Any, Any]]) -> str:
    """Returns changed fields as an error lists them."""
    return ", ".join(f"{name} (was {a!r}, now {b!r})" for name, (a, b) in changed.items())


def check_resumable(old: Config, new: Config, workdir: Path) -> None:
    """Refuses a config that would not continue the run that `workdir` holds.

    Raises:
      UserError: naming each field that differs and may not.
    """
    if changed := fixed_difference(old, new):
        raise UserError(
            f"{workdir} belongs to a run with another config: {listed(changed)}; "
            "use another --workdir, or set these fields back to continue it"
        )


def usual_n_inner(n_embd: int, placement: Placement) -> int:
    """Returns the width inside the MLP where `n_inner` is unset."""
    gated = placement.activation in GATED
    return 8 * round(n_embd / 3) if gated else 4 * n_embd


def resolve(config: Config, tokenizer_size: int) -> Config:
    """Returns the config with its optional sizes filled in: `n_inner` and `vocab_size`.

    Raises:
      UserError: if the vocabulary is smaller than the data's tokens.
    """
    model, tokenizer = config.model, config.data.tokenizer
    n_inner = model.n_inner or usual_n_inner(model.n_embd, config.placement.resolve())
    vocab_size = model.vocab_size
    if vocab_size is None:
        label = f"the number of ids of data.tokenizer={tokenizer}"
        vocab_size = validated("model.vocab_size", tokenizer_size, label)
    if vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={vocab_size} is smaller than the {tokenizer_size} tokens of "
            f"data.tokenizer={tokenizer}; leave it unset or raise it"
        )
    return replace(config, {"model.n_inner": n_inner, "model.vocab_size": vocab_size})
