"""Checks a whole config before anything expensive starts; errors are one line.

The type and bounds of a field are declared in `sections`; the rules here combine fields or depend
on this machine.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from gpt2_jax.config.capacity import check_devices, check_memory
from gpt2_jax.config.sections import Config, ModelConfig, TrainConfig
from gpt2_jax.config.table import FIELDS, flatten, validated
from gpt2_jax.config.task_rules import check_task
from gpt2_jax.config.tune_rules import find_tune_fault
from gpt2_jax.config.wandb_rules import find_wandb_fault
from gpt2_jax.errors import UserError, counted, quoted
from gpt2_jax.fields import INT_MAX
from gpt2_jax.placements import modules
from gpt2_jax.placements.validate import depends_on_steps, find_fault

MAX_LISTED = 12  # divisors in an error
MAX_PROFILED = 100  # steps; the profiler keeps their trace in memory


def check(config: Config) -> None:
    """Refuses a config that cannot be trained on this machine.

    Raises:
      UserError: naming the field, its value and the fix.
    """
    check_values(config)
    if fault := find_wandb_fault(config.track.wandb):  # also depends on environment variables
        raise UserError(fault)
    check_devices(config)
    check_memory(config, training=True)


def check_stored(config: Config, path: Path) -> None:
    """Refuses a config read from a file if it is invalid, or its model does not fit this machine.

    Raises:
      UserError: naming the file, the field, its value and the fix.
    """
    try:
        check_values(config)
        check_memory(config, training=False)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_values(config: Config) -> None:
    """Refuses a config that cannot be trained on any machine.

    Raises:
      UserError: naming the field, its value and the fix.
    """
    for name, value in flatten(config).items():
        validated(name, value)
    if config.placement.module is not None:
        modules.require(config.placement.module, "placement.module")
    _check_architecture(config)
    check_task(config)
    _check_model(config)
    _check_batch(config)
    _check_warmup(config)
    _check_profile(config)
    _check_teacher(config)
    if fault := find_tune_fault(config):
        raise UserError(fault)


def _check_teacher(config: Config) -> None:
    train, default = config.train, TrainConfig()
    for name in ("teacher_weight", "temperature"):
        if train.teacher is None and getattr(train, name) != getattr(default, name):
            raise UserError(f"train.{name} has no effect without train.teacher; leave it unset")


def _check_warmup(config: Config) -> None:
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    if warmup is not None and warmup >= steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup} must be below train.steps={steps}; shorten the "
            "warm-up, or leave it unset and set optimizer.warmup_fraction"
        )


def _check_profile(config: Config) -> None:
    text, steps = config.track.profile, config.train.steps
    if text is None:
        return
    if not re.fullmatch("[0-9]+:[0-9]+", text, re.ASCII):
        raise UserError(f"track.profile={quoted(text)} must be start:stop, such as 20:25")
    start, stop = map(int, text.split(":"))
    if not start < stop <= steps:
        raise UserError(
            f"track.profile={text}: start must be below stop, and stop at most train.steps={steps}"
        )
    if stop - start > MAX_PROFILED:
        raise UserError(
            f"track.profile={text} traces {stop - start} steps; choose at most {MAX_PROFILED}"
        )


def _check_architecture(config: Config) -> None:
    model = config.model
    chosen = f"model.architecture={model.architecture}"
    for name, architecture in (
        ("n_encoder_layer", "encoder_decoder"),
        ("share_embeddings", "encoder_decoder"),
        ("token_types", "encoder"),
        ("document_mask", "decoder"),
    ):
        value, default = getattr(model, name), FIELDS[f"model.{name}"].default
        if value != default and model.architecture != architecture:
            raise UserError(
                f"model.{name}={value} needs model.architecture={architecture}, not {chosen}; "
                f"leave it at {default}"
            )
    if model.attention not in ("auto", "xla") and model.architecture != "decoder":
        raise UserError(
            f"model.attention={model.attention} does not support {chosen}; set model.attention=xla"
        )


def _check_model(config: Config) -> None:
    model, seq_len = config.model, config.data.seq_len
    preset, overrides = config.placement.preset, config.placement.overrides
    if model.n_embd % model.n_head:
        raise UserError(
            f"model.n_head={model.n_head} does not divide model.n_embd={model.n_embd}; "
            f"choose one of {_divisors(model.n_embd, model.n_head)}"
        )
    # Until a study knows how many steps its budget allows, it uses INT_MAX.
    last_step = config.train.steps if config.train.steps < INT_MAX else 0
    if fault := find_fault(model, preset, overrides, last_step):
        raise UserError(f"placement.{fault}")
    placement = config.placement.resolve()
    if seq_len > model.n_positions:
        raise UserError(
            f"data.seq_len={seq_len} is longer than model.n_positions={model.n_positions}; "
            "shorten it, or raise model.n_positions"
        )
    if model.position_offset and placement.positions != "learned":
        raise UserError(
            f"model.position_offset={model.position_offset} has no effect with "
            f"placement.positions={placement.positions}; leave it at 0"
        )
    if placement.parametrization != "standard" and config.optimizer.name != "adamw":
        raise UserError(
            f"optimizer.name={config.optimizer.name} does not support "
            f"placement.parametrization={placement.parametrization}; set optimizer.name=adamw"
        )
    if config.train.init_from is not None and (axis := depends_on_steps(placement, model.n_layer)):
        raise UserError(
            f"placement.{axis} depends on the step t, which train.init_from resets to 0; set it to "
            f"its final value, such as placement.{axis}=1"
        )
    if model.matmul_dtype == "float32" and model.dtype == "bfloat16":
        raise UserError(
            "model.matmul_dtype=float32 needs model.dtype=float32: with model.dtype=bfloat16, "
            "inputs of matrix products are already rounded"
        )
    if model.end_of_text is not None and not model.document_mask:
        raise UserError(
            f"model.end_of_text={model.end_of_text} has no effect without model.document_mask; "
            "set model.document_mask=True, or unset model.end_of_text"
        )
    _check_attention(model)


def _check_attention(model: ModelConfig) -> None:
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        raise UserError("model.attention=cudnn needs model.dtype=bfloat16")
    head_dim = model.n_embd // model.n_head
    if model.attention == "cudnn" and (head_dim % 8 or head_dim > 256):
        raise UserError(
            "model.attention=cudnn needs model.n_embd / model.n_head to be a multiple of 8 and at "
            f"most 256, not {head_dim}; set model.attention=xla"
        )
    if model.attention == "cudnn" and model.document_mask:
        raise UserError(
            "model.attention=cudnn does not support model.document_mask; set model.attention=xla, "
            "or unset model.document_mask"
        )
    if model.attention not in ("auto", "xla") and model.dropout:
        raise UserError(
            f"model.attention={model.attention} does not support dropout on attention weights; "
            "set model.dropout=0 or model.attention=xla"
        )


def _check_batch(config: Config) -> None:
    train, mesh = config.train, config.mesh
    name = " x ".join(f"mesh.{n}={k}" for n in ("data", "fsdp") if (k := getattr(mesh, n)))
    devices = (mesh.data or 1) * (mesh.fsdp or 1)
    micro_batch, rest = divmod(train.batch_size, train.accumulation)
    if rest:
        raise UserError(
            f"train.accumulation={train.accumulation} does not divide "
            f"train.batch_size={train.batch_size}"
        )
    if micro_batch % devices:
        factors = "factors whose product is " if " x " in name else ""
        raise UserError(
            f"{name} does not divide the {counted(micro_batch, 'sequence')} of a micro-batch "
            f"(train.batch_size / train.accumulation); choose {factors}one of "
            f"{_divisors(micro_batch, devices)}"
        )
    if config.model.n_head % mesh.tensor:
        raise UserError(
            f"mesh.tensor={mesh.tensor} does not divide model.n_head={config.model.n_head}; choose "
            f"one of {_divisors(config.model.n_head, mesh.tensor)}"
        )


def _divisors(n: int, near: int) -> str:
    """Returns the divisors of n as text; if there are many, those nearest a number."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    divisors = sorted({*small, *(n // d for d in small)})
    nearest = sorted(divisors, key=lambda d: abs(math.log(d / near)))[:MAX_LISTED]
    return ", ".join(str(d) for d in sorted(nearest))
