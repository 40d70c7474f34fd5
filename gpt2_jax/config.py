"""What a run is: every field with its default and its meaning.

A config is a locked `ml_collections.ConfigDict`. A config file starts from `default()`, changes
fields and returns it from `get_config(arg)`; the command line changes more of them;
`config_check.check` says in one line what cannot work. Nothing here imports jax, so a mistake is
reported at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from gpt2_jax.config_field import INT_MAX, Field, page_of
from gpt2_jax.errors import UserError, shown, suggestion
from gpt2_jax.files import read_errors, read_fields
from gpt2_jax.model import placements
from gpt2_jax.model.placements.axes import GATED
from gpt2_jax.model.placements.resolve import resolve as resolve_placement

KINDS = {"str": str, "int": int, "float": float, "bool": bool}


def _count(default: int | None, meaning: str, maximum: int = INT_MAX) -> Field:
    """Returns a field of steps, sequences, widths and the like: a positive integer."""
    return Field(default, meaning, None if default else int, minimum=1, maximum=maximum)


def _share(default: float, meaning: str) -> Field:
    """Returns a field with a value of at least 0 and below 1."""
    return Field(default, meaning, minimum=0, below=1)


FIELDS: dict[str, Field] = {
    "seed": Field(
        0, "initial weights, dropout and the order of the data", minimum=0, maximum=2**32 - 1
    ),
    # -- model
    "model.placement": Field(
        "pre_ln", "residual connections and norm placement", choices=tuple(placements.PRESETS)
    ),
    "model.n_layer": _count(12, "blocks (attention and MLP)", 10_000),
    "model.n_head": _count(12, "attention heads; must divide `n_embd`", 2**20),
    "model.n_embd": _count(768, "width of the residual stream", 2**20),
    "model.n_positions": _count(1024, "learned positions: the longest sequence", 2**24),
    "model.n_inner": _count(
        None, "width inside the MLP; unset: 4 x `n_embd`, of a gated one 8/3 x `n_embd`", 2**24
    ),
    "model.vocab_size": _count(None, "token ids; unset: the tokenizer's", 2**24),
    "model.vocab_multiple": _count(
        128, "the vocabulary is padded inside to a multiple of this", 2**20
    ),
    "model.scale_attn_weights": Field(True, "attention scores are divided by sqrt(head width)"),
    "model.scale_attn_by_inverse_layer_idx": Field(
        False, "attention scores of block l (from 1) are divided by l as well"
    ),
    "model.tie_head": Field(True, "the output matrix is the token embedding"),
    "model.dropout": _share(0.0, "dropout on embedding, attention weights and each branch"),
    "model.init_std": Field(0.02, "std of initial matrices and embeddings", minimum=0, maximum=100),
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
        f"model.{name}": Field(None, kind=KINDS[str(axis.type)], **axis.metadata)
        for name, axis in placements.AXES.items()
    },
    # -- data
    "data.source": Field(
        "stdlib",
        "`shakespeare`, `stdlib`, a path or glob, a prepared folder, `hf:name[:config]@split`, "
        ".bin glob",
        path=True,
    ),
    "data.val_source": Field(
        None, "validation text of its own; unset: split off the source", str, path=True
    ),
    "data.tokenizer": Field(
        "bytes",
        "`bytes`, `gpt2`, the path of a tokenizer.json, or `ids:N`: N decimal ids",
        path=True,
    ),
    "data.seq_len": _count(1024, "tokens per sequence, at most `model.n_positions`", 2**24),
    "data.val_fraction": _share(0.1, "share of documents held out for validation"),
    "data.document_separator": Field(
        None,
        "split documents at this text, such as `<|endoftext|>`, which is plain text otherwise",
        str,
    ),
    # -- optimizer
    "optimizer.name": Field(
        "adamw",
        "`adamw`, or `muon` for the blocks' matrices with AdamW for the rest",
        choices=("adamw", "muon"),
    ),
    "optimizer.peak_lr": Field(6e-4, "learning rate after warm-up", above=0, maximum=1e30),
    "optimizer.schedule": Field(
        "cosine",
        "after the warm-up; `wsd` is constant, then linear over the last `decay_fraction`",
        choices=("cosine", "wsd", "linear", "inverse_sqrt", "constant"),
    ),
    "optimizer.warmup_steps": Field(
        None,
        "steps of linear warm-up; unset: `warmup_fraction` of them",
        int,
        minimum=0,
        maximum=INT_MAX,
    ),
    "optimizer.warmup_fraction": _share(
        0.0, "linear warm-up as a share of `train.steps`, unless `warmup_steps` is set"
    ),
    "optimizer.final_lr_ratio": Field(
        0.1, "last learning rate over the peak (not inverse_sqrt)", minimum=0, maximum=1
    ),
    "optimizer.decay_fraction": Field(
        0.2, "share of the steps in which `wsd` decays", minimum=0, maximum=1
    ),
    "optimizer.weight_decay": Field(
        0.1, "decoupled; on matrices and embeddings, by role", minimum=0, maximum=1000
    ),
    "optimizer.b1": _share(0.9, "Adam's first moment"),
    "optimizer.b2": _share(0.95, "Adam's second moment"),
    "optimizer.eps": Field(1e-8, "Adam's epsilon", above=0, maximum=1),
    "optimizer.momentum": _share(0.95, "Muon's (Nesterov) momentum"),
    "optimizer.grad_clip": Field(
        1.0, "largest global gradient norm; 0: no clipping", minimum=0, maximum=1e30
    ),
    "optimizer.skip_outliers": Field(
        None,
        "skip steps whose gradient norm is this many std above its running mean, after 50 steps",
        float,
        above=0,
        maximum=1e30,
    ),
    "optimizer.max_skipped": _count(20, "stop after this many skipped steps in a row"),
    "optimizer.frozen": Field(
        (), "patterns of parameters that stay as they are: `wte`, `blocks.0`, `*.bias`"
    ),
    "optimizer.lr_multipliers": Field((), "learning rates of their own: `pattern=factor`"),
    # -- train
    "train.steps": _count(1000, "training steps in total"),
    "train.batch_size": _count(32, "sequences per step, over all devices and micro-batches"),
    "train.accumulation": _count(1, "micro-batches per step"),
    "train.log_every": _count(10, "steps between rows of metrics"),
    "train.eval_every": _count(250, "steps between evaluations (also at 0 and at the end)"),
    "train.eval_tokens": _count(None, "validation tokens used; unset: all of them", 2**48),
    "train.checkpoint_every": _count(250, "steps between checkpoints (also at the end)"),
    "train.keep_checkpoints": _count(2, "latest checkpoints kept, in addition to the best"),
    "train.patience": _count(
        None, "stop after this many evaluations without a lower validation loss"
    ),
    "train.sample_tokens": Field(
        400, "length of the sample at the end; 0: none", minimum=0, maximum=1_000_000
    ),
    "train.init_from": Field(
        None, "first weights: another run's directory, also as DIR@step or DIR@best", str, path=True
    ),
    "train.deterministic": Field(False, "on a GPU: kernels that repeat to the bit, slower"),
    # -- mesh
    "mesh.data": _count(None, "devices that share the batch; unset: as many as divide it", 2**16),
    # -- track
    "track.diagnostics_every": _count(
        None,
        "steps between figures by depth (stream, branches, gradients, attention, what each "
        "block is worth), also at 0 and at the end; unset: none",
    ),
    "track.wandb.mode": Field(
        None,
        "unset: WANDB_MODE, else online if logged in, else offline",
        str,
        choices=("online", "offline", "disabled"),
    ),
    "track.wandb.project": Field(
        None,
        "wandb project; unset: WANDB_PROJECT, else gpt2_jax",
        str,
    ),
    "track.wandb.entity": Field(None, "wandb team or user", str, longest=128),
    "track.wandb.name": Field(
        None, "wandb run name; unset: WANDB_NAME, else the work directory's", str, longest=128
    ),
    "track.wandb.group": Field(None, "wandb group", str, longest=128),
    "track.wandb.tags": Field((), "wandb tags"),
}

LARGEST = 10_000_000  # bytes of a config.json; ours have about 3,000
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
        raise UserError(f"{shown(name)} is not a config field{suggestion(name, FIELDS)}")
    return FIELDS[name].validated(value, label or name)


def set_value(config: ConfigDict, name: str, value: Any, label: str | None = None) -> None:
    """Sets the field of that dotted name to a value that passes `validated`.

    Raises:
      UserError: as `validated`.
    """
    value = validated(name, value, label)
    *sections, leaf = name.split(".")
    for section in sections:
        config = config[section]
    if type(config[leaf]) is not type(value) or config[leaf] != value:
        with config.ignore_type():  # the field's own type has just been checked
            config[leaf] = value


def validate(config: Any, where: str = "") -> None:
    """Refuses what does not have exactly the fields of a config, each with a value that it takes.

    Args:
      where: a prefix for errors about fields that are missing or unknown, such as a file's name.

    Raises:
      UserError: naming the field.
    """
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise UserError(f"{where}{shown(config)} is not a ConfigDict; start from config.default()")
    given = _leaves(config, where)
    if missing := [name for name in FIELDS if name not in given]:
        raise UserError(f"{where}the config has no field {missing[0]}; start from config.default()")
    for name, value in given.items():
        set_value(config, name, value)


def _leaves(config: ConfigDict, where: str, prefix: str = "") -> dict[str, Any]:
    """Returns `{"section.field": value}` of known fields; others are refused."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in FIELDS:
            found[name] = value
        elif isinstance(value, ConfigDict) and any(n.startswith(f"{name}.") for n in FIELDS):
            found |= _leaves(value, where, f"{name}.")
        else:
            raise UserError(f"{where}{shown(name)} is not a config field{suggestion(name, FIELDS)}")
    return found


def to_json(config: ConfigDict) -> str:
    """Returns the config as nested JSON, as `config.json` keeps it."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(path: Path) -> ConfigDict:
    """Reads a config written by `to_json`; nothing in the file is executed.

    Raises:
      UserError: if the file is missing, not JSON, or has a field or value that no config has.
    """
    with read_errors(path):
        exists = path.exists()
    if not exists:
        raise UserError(f"{path} does not exist: is this a run's work directory?")
    return from_dict(read_fields(path, LARGEST), path)


def from_dict(stored: dict[str, Any], path: Path) -> ConfigDict:
    """Returns the config of nested fields that were read from a file; missing ones are defaults.

    Raises:
      UserError: if there are fields or values that no config has.
    """
    config = default()
    _update(config, stored, path, prefix="")
    return config


def _update(config: ConfigDict, stored: Any, path: Path, prefix: str) -> None:
    if not isinstance(stored, dict):
        raise UserError(f"{path}: {prefix[:-1]}={shown(stored)} must be a section of fields")
    for key, value in stored.items():
        name = f"{prefix}{key}"
        if name in FIELDS:
            set_value(config, name, value, f"{path}: {name}")
        elif any(known.startswith(f"{name}.") for known in FIELDS):
            _update(config, value, path, f"{name}.")
        else:
            raise UserError(f"{path} has a field {shown(name)} that this version does not know")


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
        label = f"the number of ids of data.tokenizer={config.data.tokenizer}"
        model.vocab_size = validated("model.vocab_size", tokenizer_size, label)
    if model.vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the {tokenizer_size} tokens of "
            f"data.tokenizer={config.data.tokenizer}; leave it unset or raise it"
        )
    return config


def page() -> str:
    """Returns docs/config.md: every field with its default, range and meaning."""
    return page_of(FIELDS)


if __name__ == "__main__":
    print(page(), end="")
