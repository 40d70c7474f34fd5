"""The table of all fields by dotted name, and functions of whole configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2_jax.config.renamed import renamed
from gpt2_jax.config.sections import Config
from gpt2_jax.errors import UserError, counted, quoted, suggestion
from gpt2_jax.fields import Field, fields_of
from gpt2_jax.placements.axes import GATED, Placement

# Fields, or prefixes of fields, that may change when a run is resumed.
MAY_CHANGE = (
    "track.",
    "mesh.",
    "train.steps",
    "train.epochs",
    "train.patience",
    "train.best_by",
    "train.sample_tokens",
    "train.keep_checkpoints",
)
# Fields that the data determines if they are unset.
FROM_DATA = ("model.vocab_size", "model.end_of_text", "head.n_labels")


def _table(cls: type, prefix: str = "") -> dict[str, Field]:
    """Returns the fields of a section and its subsections by dotted name."""
    fields = fields_of(cls)
    out: dict[str, Field] = {}
    for f in dataclasses.fields(cls):
        if f.name in fields:
            out[prefix + f.name] = fields[f.name]
        else:
            out |= _table(type(f.default), f"{prefix}{f.name}.")
    return out


FIELDS: dict[str, Field] = _table(Config)


def value_of(config: Config, name: str) -> Any:
    """Returns the value of a field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def flatten(config: Config) -> dict[str, Any]:
    """Returns `{"section.field": value}` in the order of `FIELDS`."""
    return {name: value_of(config, name) for name in FIELDS}


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a config with some fields changed, by dotted name.

    Values are not validated; they may be traced.
    """
    return _replace(config, changes)


def _replace(section: Any, changes: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            values[first] = value
    values |= {name: _replace(getattr(section, name), inner) for name, inner in nested.items()}
    return dataclasses.replace(section, **values)


def words(value: tuple[str, ...]) -> tuple[str, ...]:
    """Splits the strings of a field at commas, which separate them on a command line."""
    return tuple(word.strip() for text in value for word in text.split(",") if word.strip())


def validated(name: str, value: Any, label: str | None = None) -> Any:
    """Validates a value for a field and returns it as the field's type.

    Args:
      name: the dotted name. label: what errors call the value; None for the name.

    Raises:
      UserError: if there is no such field, or the value is invalid.
    """
    if name not in FIELDS:
        hint = renamed(name) or suggestion(name, FIELDS)
        raise UserError(f"{quoted(name)} is not a config field{hint}")
    return FIELDS[name].validated(value, label or name)


def difference(
    old: Config, new: Config, ignored: tuple[str, ...] = ()
) -> dict[str, tuple[Any, Any]]:
    """Returns `{field: (old, new)}` for the fields that differ.

    Args:
      ignored: fields, or prefixes of fields, to leave out.
    """
    before, after = flatten(old), flatten(new)
    return {
        name: (before[name], after[name])
        for name in FIELDS
        if before[name] != after[name] and not name.startswith(ignored)
    }


def fixed_difference(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns `{field: (old, new)}` for differing fields that must not change on resume."""
    changed = {
        name: values
        for name, values in difference(old, new, MAY_CHANGE).items()
        if not name.endswith("_every")
    }
    if new.train.steps < old.train.steps:
        changed["train.steps"] = (old.train.steps, new.train.steps)
    return changed


def listed(changed: dict[str, tuple[Any, Any]]) -> str:
    """Returns changed fields as text for an error."""
    return ", ".join(f"{name} (was {a!r}, now {b!r})" for name, (a, b) in changed.items())


def check_resumable(old: Config, new: Config, workdir: Path) -> None:
    """Refuses a config that cannot resume the run in `workdir`.

    Args:
      new: need not have the fields that the data determines.

    Raises:
      UserError: naming each field that must not change.
    """
    changed = {
        name: values
        for name, values in fixed_difference(old, new).items()
        if name not in FROM_DATA or values[1] is not None
    }
    if not changed:
        return
    on_weights = ""
    if all(name.startswith("data.") and name != "data.tokenizer" for name in changed):
        on_weights = f" (with train.init_from={workdir} to start from its weights)"
    raise UserError(
        f"{workdir} contains a run with a different config: {listed(changed)}; use another "
        f"--workdir{on_weights}, or change these fields back to resume it"
    )


def usual_n_inner(n_embd: int, placement: Placement) -> int:
    """Returns the hidden width of the MLP if `n_inner` is unset."""
    gated = placement.activation in GATED
    return 8 * round(n_embd / 3) if gated else 4 * n_embd


def with_n_inner(config: Config) -> Config:
    """Returns the config with `model.n_inner` filled in."""
    model = config.model
    n_inner = model.n_inner or usual_n_inner(model.n_embd, config.placement.resolve())
    return replace(config, {"model.n_inner": n_inner})


def with_labels(config: Config, labels: Sequence[str]) -> Config:
    """Returns the config with `head.n_labels` filled in.

    Raises:
      UserError: if it is another number, or `eval.out_of_scope` is not one of the labels.
    """
    outside = config.eval.out_of_scope
    if outside is not None and outside not in labels:
        raise UserError(
            f"eval.out_of_scope={outside!r} is not a label of the training data"
            f"{suggestion(outside, labels)}"
        )
    n = config.head.n_labels
    if n is not None and labels and n != len(labels):
        raise UserError(
            f"head.n_labels={n}, but the training data has {counted(len(labels), 'label')}; "
            "leave it unset"
        )
    return replace(config, {"head.n_labels": len(labels) or None})


def resolve(config: Config, tokenizer_size: int, end_of_text: int | None = None) -> Config:
    """Returns the config with `model.n_inner` and `model.vocab_size` filled in.

    Args:
      end_of_text: the tokenizer's, filled in with `model.document_mask`.

    Raises:
      UserError: if `vocab_size` is smaller than the tokenizer, or `end_of_text` not below it.
    """
    config = with_n_inner(config)
    model, tokenizer = config.model, config.data.tokenizer
    vocab_size = model.vocab_size
    if vocab_size is None:
        label = f"the number of ids of data.tokenizer={tokenizer}"
        vocab_size = validated("model.vocab_size", tokenizer_size, label)
    if vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={vocab_size} is smaller than the {tokenizer_size} tokens of "
            f"data.tokenizer={tokenizer}; leave it unset or raise it"
        )
    changes: dict[str, Any] = {"model.vocab_size": vocab_size}
    if model.document_mask:
        end = end_of_text if model.end_of_text is None else model.end_of_text
        if end is not None and end >= vocab_size:
            raise UserError(
                f"model.end_of_text={end} is not below model.vocab_size={vocab_size}; leave it "
                "unset for the tokenizer's"
            )
        changes["model.end_of_text"] = end
    return replace(config, changes)
