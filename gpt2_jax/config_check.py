"""What makes no sense in a config, said in one line before anything expensive."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from gpt2_jax.config import FIELDS, flatten, value_of
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.model.placements.resolve import resolve
from gpt2_jax.model.placements.validity import depends_on_updates, find_fault
from gpt2_jax.track.wandb_rules import find_wandb_fault


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything expensive.

    Raises:
      UserError: naming the field, its value and the fix.
    """
    for name, value in flatten(config).items():
        field = FIELDS[name]
        unset = value is None and field.kind is not None
        if field.choices and value not in field.choices and not unset:
            raise UserError(f"{name}={value!r} is unknown{suggestion(str(value), field.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value} is not a finite number")
    _check_ranges(config)
    _check_model(config)
    _check_batch(config)
    if fault := find_wandb_fault(config.track.wandb):
        raise UserError(fault)
    opt, train = config.optimizer, config.train
    if opt.warmup_steps >= train.steps:
        raise UserError(
            f"optimizer.warmup_steps={opt.warmup_steps} leaves nothing of "
            f"train.steps={train.steps}; shorten the warm-up"
        )


def _check_model(config: ConfigDict) -> None:
    model, seq_len = config.model, config.data.seq_len
    if fault := find_fault(model):
        raise UserError(f"model.{fault}")
    if model.n_embd % model.n_head:
        raise UserError(
            f"model.n_head={model.n_head} does not divide model.n_embd={model.n_embd}; "
            f"choose one of {_divisors(model.n_embd)}"
        )
    if seq_len > model.n_positions:
        raise UserError(
            f"data.seq_len={seq_len} is longer than model.n_positions={model.n_positions}; "
            "shorten it, or raise model.n_positions"
        )
    if resolve(model).parametrization != "standard" and config.optimizer.name != "adamw":
        raise UserError(
            f"optimizer.name={config.optimizer.name} has no rule for learning rates under "
            "model.parametrization; set optimizer.name=adamw"
        )
    if config.train.init_from is not None and (axis := depends_on_updates(model)):
        raise UserError(
            f"model.{axis} changes with the updates t, which train.init_from begins again at 0; "
            f"set it to what it had come to, such as model.{axis}=1"
        )
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        raise UserError("model.attention=cudnn needs model.dtype=bfloat16")
    if model.attention == "cudnn" and model.dropout:
        raise UserError(
            "model.attention=cudnn has no dropout on the attention weights; "
            "set model.dropout=0 or model.attention=xla"
        )


def _check_batch(config: ConfigDict) -> None:
    train, devices = config.train, config.mesh.data
    micro_batch, rest = divmod(train.batch_size, train.accumulation)
    if rest:
        raise UserError(
            f"train.accumulation={train.accumulation} does not divide "
            f"train.batch_size={train.batch_size}"
        )
    if devices is not None and micro_batch % devices:
        raise UserError(
            f"mesh.data={devices} does not divide the {micro_batch} sequences of a micro-batch "
            f"(train.batch_size / train.accumulation); choose one of {_divisors(micro_batch)}"
        )


_AT_LEAST_ONE = [
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.n_positions",
    "model.n_inner",
    "model.vocab_size",
    "model.vocab_multiple",
    "data.seq_len",
    "optimizer.max_skipped",
    "train.steps",
    "train.batch_size",
    "train.accumulation",
    "train.log_every",
    "train.eval_every",
    "train.eval_tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.patience",
    "mesh.data",
    "track.diagnostics_every",
]
_POSITIVE = [
    "model.norm_eps",
    "optimizer.peak_lr",
    "optimizer.eps",
]
_NOT_NEGATIVE = [
    "seed",
    "model.init_std",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.grad_clip",
    "train.sample_tokens",
]
_BELOW_ONE = [
    "model.dropout",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.momentum",
    "data.val_fraction",
]
_SHARES = [
    "optimizer.final_lr_ratio",
    "optimizer.decay_fraction",
]


def _check_ranges(config: ConfigDict) -> None:
    for names, holds, words in (
        (_AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (_POSITIVE, lambda v: v > 0, "above 0"),
        (_NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (_BELOW_ONE, lambda v: 0 <= v < 1, "at least 0 and below 1"),
        (["optimizer.skip_outliers"], lambda v: v > 0, "above 0"),
        (["seed"], lambda v: v < 2**32, "below 2**32"),
        (_SHARES, lambda v: 0 <= v <= 1, "between 0 and 1"),
    ):
        for name in names:
            value = value_of(config, name)
            if value is not None and not holds(value):
                raise UserError(f"{name}={value} must be {words}")
    if config.data.val_fraction <= 0 and config.data.val_source is None:
        raise UserError("data.val_fraction=0 needs a data.val_source to validate on")


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
