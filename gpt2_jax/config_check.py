"""Checks of a whole config, in one line and before anything expensive.

A field's own type and bounds are declared with it (`config.FIELDS`); here is what fields mean to
each other, and to the memory of this machine.
"""

from __future__ import annotations

import math
from pathlib import Path

from ml_collections import ConfigDict

from gpt2_jax.capacity import check_devices, check_memory
from gpt2_jax.config import validate, validated
from gpt2_jax.config_field import INT_MAX
from gpt2_jax.errors import UserError
from gpt2_jax.model.placements.resolve import resolve
from gpt2_jax.model.placements.validity import depends_on_updates, find_fault
from gpt2_jax.track.wandb_rules import find_wandb_fault

LEAST_VAL_FRACTION = 1e-6  # 20 / fraction documents are looked at before the split is decided
LISTED = 12  # divisors that an error lists at most


def check(config: ConfigDict) -> None:
    """Refuses what cannot be trained on this machine.

    Raises:
      UserError: naming the field, its value and the fix.
    """
    check_sense(config)
    if fault := find_wandb_fault(config.track.wandb):  # depends on WANDB_*, too
        raise UserError(fault)
    check_devices(config)
    check_memory(config, training=True)


def check_stored(config: ConfigDict, path: Path) -> None:
    """Refuses a config read from a file that no run can have, or whose model does not fit here.

    Raises:
      UserError: naming the file, the field, its value and the fix.
    """
    try:
        check_sense(config)
        check_memory(config, training=False)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_sense(config: ConfigDict) -> None:
    """Refuses what cannot be trained on any machine.

    Raises:
      UserError: naming the field, its value and the fix.
    """
    validate(config)
    _check_model(config)
    _check_batch(config)
    _check_warmup(config)


def check_split(fraction: float, val_source: str | None, label: str, val_label: str) -> None:
    """Refuses a share of the documents that cannot be held out for validation.

    Args:
      label, val_label: what the two values are called in errors.

    Raises:
      UserError: naming them.
    """
    validated("data.val_fraction", fraction, label)
    if val_source is None and fraction < LEAST_VAL_FRACTION:
        raise UserError(
            f"{label}={fraction:g} is below {LEAST_VAL_FRACTION:g} and needs a {val_label} to "
            "validate on"
        )


def _check_warmup(config: ConfigDict) -> None:
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    if warmup is not None and warmup >= steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup} leaves nothing of train.steps={steps}; shorten the "
            "warm-up, or leave it unset and set optimizer.warmup_fraction"
        )


def _check_model(config: ConfigDict) -> None:
    model, seq_len = config.model, config.data.seq_len
    if model.n_embd % model.n_head:
        raise UserError(
            f"model.n_head={model.n_head} does not divide model.n_embd={model.n_embd}; "
            f"choose one of {_divisors(model.n_embd, model.n_head)}"
        )
    # A study asks with the most steps there are while it does not know how many its budget gives.
    last_step = config.train.steps if config.train.steps < INT_MAX else 0
    if fault := find_fault(model, last_step):
        raise UserError(f"model.{fault}")
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
            f"(train.batch_size / train.accumulation); choose one of "
            f"{_divisors(micro_batch, devices)}"
        )


def _divisors(n: int, near: int) -> str:
    """Returns the divisors of n in words, of many those around a number."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    divisors = sorted({*small, *(n // d for d in small)})
    nearest = sorted(divisors, key=lambda d: abs(math.log(d / near)))[:LISTED]
    return ", ".join(str(d) for d in sorted(nearest))
