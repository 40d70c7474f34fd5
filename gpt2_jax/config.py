"""What a run is: every field with its default and its meaning.

A config is a locked `ml_collections.ConfigDict`. A config file starts from `default()`, changes
fields and returns it from `get_config(arg)`; the command line changes more of them;
`config_check.check` says in one line what cannot work. Nothing here imports jax, so a mistake is
reported at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from gpt2_jax.errors import UserError
from gpt2_jax.model import placements
from gpt2_jax.model.placements.axes import GATED
from gpt2_jax.model.placements.resolve import resolve as resolve_placement


@dataclass(frozen=True)
class Field:
    """One config field: its default (None: unset, of type `kind`) and what it means."""

    default: Any
    meaning: str
    kind: type | None = None
    choices: tuple[str, ...] = ()


KINDS = {"str": str, "int": int, "float": float, "bool": bool}

FIELDS: dict[str, Field] = {
    "seed": Field(0, "initial weights, dropout and the order of the data"),
    # -- model
    "model.placement": Field(
        "pre_ln", "residual connections and norm placement", choices=tuple(placements.PRESETS)
    ),
    "model.n_layer": Field(12, "blocks (attention and MLP)"),
    "model.n_head": Field(12, "attention heads; must divide `n_embd`"),
    "model.n_embd": Field(768, "width of the residual stream"),
    "model.n_positions": Field(1024, "learned positions: the longest sequence"),
    "model.n_inner": Field(
        None, "width inside the MLP; unset: 4 x `n_embd`, of a gated one 8/3 x `n_embd`", int
    ),
    "model.vocab_size": Field(None, "token ids; unset: the tokenizer's", int),
    "model.vocab_multiple": Field(128, "the vocabulary is padded inside to a multiple of this"),
    "model.scale_attn_weights": Field(True, "attention scores are divided by sqrt(head width)"),
    "model.scale_attn_by_inverse_layer_idx": Field(
        False, "attention scores of block l (from 1) are divided by l as well"
    ),
    "model.tie_head": Field(True, "the output matrix is the token embedding"),
    "model.dropout": Field(0.0, "dropout on embedding, attention weights and each branch"),
    "model.init_std": Field(0.02, "std of initial matrices and embeddings"),
    "model.attention": Field(
        "auto",
        "kernel: `auto` is cudnn for bfloat16 on a GPU, xla elsewhere; `cudnn` never falls back",
        choices=("auto", "xla", "cudnn"),
    ),
    "model.dtype": Field(
        "float32", "compute dtype; parameters stay float32", choices=("float32", "bfloat16")
    ),
    "model.unroll": Field(True, "unroll the scan over layers: faster steps, slower compile"),
    "model.remat": Field(
        "none",
        "recomputed in the backward pass: `elementwise` all but matmuls, `block` whole blocks",
        choices=("none", "elementwise", "block"),
    ),
    # -- model: the axes of the placement; unset: its own
    **{
        f"model.{name}": Field(
            None, axis.metadata["meaning"], KINDS[str(axis.type)], axis.metadata["choices"]
        )
        for name, axis in placements.AXES.items()
    },
    # -- data
    "data.source": Field(
        "stdlib", "`stdlib`, a path or glob, a prepared folder, `hf:name[:config]@split`, .bin glob"
    ),
    "data.val_source": Field(None, "validation text of its own; unset: split off the source", str),
    "data.tokenizer": Field(
        "bytes", "`bytes`, `gpt2`, the path of a tokenizer.json, or `ids:N`: N decimal ids"
    ),
    "data.seq_len": Field(1024, "tokens per sequence, at most `model.n_positions`"),
    "data.val_fraction": Field(0.1, "share of documents held out for validation"),
    # -- optimizer
    "optimizer.name": Field(
        "adamw",
        "`adamw`, or `muon` for the blocks' matrices with AdamW for the rest",
        choices=("adamw", "muon"),
    ),
    "optimizer.peak_lr": Field(6e-4, "learning rate after warm-up"),
    "optimizer.schedule": Field(
        "cosine",
        "after the warm-up; `wsd` is constant, then linear over the last `decay_fraction`",
        choices=("cosine", "wsd", "linear", "inverse_sqrt", "constant"),
    ),
    "optimizer.warmup_steps": Field(0, "updates of linear warm-up"),
    "optimizer.final_lr_ratio": Field(0.1, "last learning rate over the peak (not inverse_sqrt)"),
    "optimizer.decay_fraction": Field(0.2, "share of the steps in which `wsd` decays"),
    "optimizer.weight_decay": Field(0.1, "decoupled; on matrices and embeddings, by role"),
    "optimizer.b1": Field(0.9, "Adam's first moment"),
    "optimizer.b2": Field(0.95, "Adam's second moment"),
    "optimizer.eps": Field(1e-8, "Adam's epsilon"),
    "optimizer.momentum": Field(0.95, "Muon's (Nesterov) momentum"),
    "optimizer.grad_clip": Field(1.0, "largest global gradient norm; 0: no clipping"),
    "optimizer.skip_outliers": Field(
        None,
        "skip updates whose gradient norm is this many std above its running mean, after 50",
        float,
    ),
    "optimizer.max_skipped": Field(20, "stop after this many skipped updates in a row"),
    "optimizer.frozen": Field(
        (), "patterns of parameters that stay as they are: `wte`, `blocks.0`, `*.bias`"
    ),
    "optimizer.lr_multipliers": Field((), "learning rates of their own: `pattern=factor`"),
    # -- train
    "train.steps": Field(1000, "updates in all"),
    "train.batch_size": Field(32, "sequences per update, over all devices and accumulation"),
    "train.accumulation": Field(1, "micro-batches per update"),
    "train.log_every": Field(10, "updates between rows of metrics"),
    "train.eval_every": Field(250, "updates between evaluations (also at 0 and at the end)"),
    "train.eval_tokens": Field(None, "validation tokens used; unset: all of them", int),
    "train.checkpoint_every": Field(250, "updates between checkpoints (also at the end)"),
    "train.keep_checkpoints": Field(2, "latest checkpoints kept, besides the best"),
    "train.patience": Field(
        None, "stop after this many evaluations without a lower validation loss", int
    ),
    "train.sample_tokens": Field(400, "length of the sample at the end; 0: none"),
    "train.init_from": Field(
        None, "first weights: another run's directory, also as DIR@step or DIR@best", str
    ),
    "train.deterministic": Field(False, "on a GPU: kernels that repeat to the bit, slower"),
    # -- mesh
    "mesh.data": Field(None, "devices that share the batch; unset: as many as divide it", int),
    # -- track
    "track.diagnostics_every": Field(
        None,
        "updates between figures by depth (stream, branches, gradients, attention, what each "
        "block is worth), also at 0 and at the end; unset: none",
        int,
    ),
    "track.wandb.mode": Field(
        None,
        "unset: WANDB_MODE, else online if logged in, else offline",
        str,
        choices=("online", "offline", "disabled"),
    ),
    "track.wandb.project": Field(None, "wandb project; unset: WANDB_PROJECT, else gpt2_jax", str),
    "track.wandb.entity": Field(None, "wandb team or user", str),
    "track.wandb.name": Field(
        None, "wandb run name; unset: WANDB_NAME, else the work directory's", str
    ),
    "track.wandb.group": Field(None, "wandb group", str),
    "track.wandb.tags": Field((), "wandb tags"),
}

MAY_CHANGE = (
    "track.",
    "mesh.",
    "train.steps",
    "train.patience",
    "train.sample_tokens",
    "train.keep_checkpoints",
)


def default() -> ConfigDict:
    """Returns the locked config with every field at its default: GPT-2 124M on `stdlib`."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        *sections, leaf = name.split(".")
        at = config
        for section in sections:
            if section not in at:
                at[section] = ConfigDict()
            at = at[section]
        at[leaf] = config_dict.placeholder(field.kind) if field.kind else field.default
    return config.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns `{"section.field": value}` in the order of `FIELDS`."""
    return {name: value_of(config, name) for name in FIELDS}


def value_of(config: ConfigDict, name: str) -> Any:
    """Returns the field of that dotted name; several values as a tuple."""
    value = config
    for part in name.split("."):
        value = value[part]
    return tuple(value) if isinstance(value, (list, tuple)) else value


def words(value: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the parts of a field of several strings; on a command line commas part them."""
    return tuple(word.strip() for text in value for word in text.split(",") if word.strip())


def to_json(config: ConfigDict) -> str:
    """Returns the config as nested JSON, as `config.json` keeps it."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(path: Path) -> ConfigDict:
    """Reads a config written by `to_json`; nothing in the file is executed.

    Raises:
      UserError: if the file is missing, not JSON, or has fields that no config has.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: is this a run's work directory?")
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise ValueError("it holds no fields")
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a config: {error}") from None
    return from_dict(stored, path)


def from_dict(stored: dict[str, Any], path: Path) -> ConfigDict:
    """Returns the config of nested fields that were read from a file.

    Raises:
      UserError: if there are fields that no config has.
    """
    config = default()
    _update(config, stored, path, prefix="")
    return config


def _update(config: ConfigDict, stored: dict[str, Any], path: Path, prefix: str) -> None:
    for key, value in stored.items():
        if key not in config:
            raise UserError(f"{path} has a field '{prefix}{key}' that this version does not know")
        if isinstance(config[key], ConfigDict) and isinstance(value, dict):
            _update(config[key], value, path, f"{prefix}{key}.")
        elif value is not None:
            try:
                config[key] = tuple(value) if isinstance(value, list) else value
            except (TypeError, ValueError, AttributeError):
                raise UserError(f"{path}: '{prefix}{key}' cannot be {value!r}") from None


def difference(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns `{field: (old, new)}` for the fields that differ."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in FIELDS if before[name] != after[name]}


def fixed_difference(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
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


def check_resumable(old: ConfigDict, new: ConfigDict, workdir: Path) -> None:
    """Refuses a config that would not continue the run that `workdir` holds.

    Raises:
      UserError: naming each field that differs and may not.
    """
    if changed := fixed_difference(old, new):
        raise UserError(
            f"{workdir} belongs to a run with another config: {listed(changed)}; "
            "take another --workdir, or set these fields back to continue it"
        )


def resolve(config: ConfigDict, tokenizer_size: int) -> ConfigDict:
    """Returns a copy whose optional sizes are filled in: `n_inner` and `vocab_size`.

    Raises:
      UserError: if the vocabulary is smaller than the data's tokens.
    """
    config = config.copy_and_resolve_references()
    model = config.model
    if model.n_inner is None:
        gated = resolve_placement(model).activation in GATED
        model.n_inner = 8 * round(model.n_embd / 3) if gated else 4 * model.n_embd
    if model.vocab_size is None:
        model.vocab_size = tokenizer_size
    if model.vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the {tokenizer_size} tokens of "
            f"data.tokenizer={config.data.tokenizer}; leave it unset or raise it"
        )
    return config


def page() -> str:
    """Returns docs/config.md: every field with its default and meaning."""
    rows = [
        "# Every config field",
        "",
        "Written by `python -m gpt2_jax.config > docs/config.md`. A field is set in a config file",
        "(`config.model.n_layer = 4`) or on the command line (`--config.model.n_layer=4`).",
    ]
    section = None
    for name, field in FIELDS.items():
        if (here := name.rpartition(".")[0]) != section:
            section = here
            rows += ["", f"## {section or 'run'}", "", "| field | default | meaning |"]
            rows += ["|---|---|---|"]
        shown = "unset" if field.kind else f"`{field.default!r}`"
        choices = f" ({', '.join(field.choices)})" if field.choices else ""
        meaning = field.meaning.replace("|", "\\|")
        rows.append(f"| `{name}` | {shown} | {meaning}{choices} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
