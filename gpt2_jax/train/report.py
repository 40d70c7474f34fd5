"""What is said before the first update and after the last one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.data.shards import Corpus
from gpt2_jax.model.placements import AXES, PRESETS
from gpt2_jax.model.placements.resolve import differences, resolve
from gpt2_jax.model.structure import Structure
from gpt2_jax.track.metrics import Row, read_rows
from gpt2_jax.track.throughput import peak_flops
from gpt2_jax.track.wandb_log import WandbOptions
from gpt2_jax.train.program import Program
from gpt2_jax.train.rundir import RunDirectory


def facts(config: ConfigDict, program: Program) -> dict[str, Any]:
    """Returns the counts and the machine, as `run.json` keeps them."""
    return counts(config, program.structure, program.devices, program.attention, program.peak_bytes)


def counts(
    config: ConfigDict,
    structure: Structure,
    devices: list[str],
    attention: str,
    peak_bytes: int | None,
) -> dict[str, Any]:
    """Returns `facts` of a run whose program is another."""
    return {
        "parameters": structure.n_params(),
        "placement": {name: getattr(structure.placement, name) for name in AXES},
        "flops_per_token": structure.flops_per_token(config.data.seq_len),
        "flops": structure.flops_per_token(config.data.seq_len) * total_tokens(config),
        "devices": devices,
        "platform": jax.default_backend(),
        "attention": attention,
        "peak_bytes_per_device": peak_bytes,
    }


def tokens_per_step(config: ConfigDict) -> int:
    """Returns the tokens predicted in one update."""
    return config.train.batch_size * config.data.seq_len


def total_tokens(config: ConfigDict) -> int:
    """Returns the tokens predicted in the whole run."""
    return tokens_per_step(config) * config.train.steps


def start_report(
    config: ConfigDict,
    program: Program,
    corpus: Corpus,
    first_step: int,
    step_seconds: float | None,
) -> str:
    """Returns the lines printed before the first update.

    Args:
      step_seconds: time of an update as tried out here; None where that would not pay.
    """
    model, train = config.model, config.train
    known, devices = facts(config, program), program.mesh.devices.size
    batch, tokens = tokens_per_step(config), total_tokens(config)
    n_train = len(corpus.train or ())
    peak = peak_flops(known["devices"][0])
    lines = {
        "model": f"{model.placement}{_overrides(model)}, {model.n_layer} layers, "
        f"{model.n_head} heads, width {model.n_embd}: {known['parameters']:,} parameters, "
        f"computing in {model.dtype}",
        "data": f"{config.data.source} as {config.data.tokenizer}: {n_train:,} tokens to train, "
        f"{len(corpus.val):,} to validate",
        "batch": f"{train.batch_size} sequences x {config.data.seq_len} = {batch:,} tokens an "
        f"update: {devices} device(s) x {train.accumulation} accumulated x "
        f"{train.batch_size // devices // train.accumulation}",
        "length": f"{train.steps:,} updates = {tokens:,} tokens = {tokens / n_train:.2f} epochs",
        "compute": f"{_si(known['flops_per_token'])}FLOP a token, {_si(known['flops'])}FLOP in all",
        "devices": f"{devices} x {known['devices'][0]} ({known['platform']}), "
        + (f"peak {_si(peak)}FLOP/s each" if peak else "peak unknown, so no MFU"),
        "attention": f"{program.attention} (found in the compiled step)",
        "memory": f"{_si(program.peak_bytes)}B a device at the step's peak"
        if program.peak_bytes
        else "not told by the compiler on this platform",
        "expected": _expected(train.steps - first_step, step_seconds)
        + f"; compiled in {program.compile_seconds:.1f} s",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _overrides(model: ConfigDict) -> str:
    """Returns the axes that differ from those of the placement's name."""
    now = resolve(model)
    changed = differences(now, PRESETS[model.placement])
    listed = ", ".join(f"{name}={getattr(now, name)}" for name in changed)
    return f" ({listed})" if listed else ""


def _expected(updates: int, seconds: float | None) -> str:
    if seconds is None:
        return f"{updates} updates"
    whole = timedelta(seconds=round(updates * seconds))
    return f"{whole} of training at {seconds * 1e3:.1f} ms an update"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} Z"


def print_end(directory: RunDirectory) -> None:
    """Prints the sample, the last score and what lies in the directory."""
    rows = read_rows(directory.metrics_path)
    score = next((row for row in reversed(rows) if row.get("val/loss") is not None), None)
    if directory.sample_path.exists():
        text = directory.sample_path.read_text(encoding="utf-8").rstrip()
        print(f"\n--- a sample ---\n{text}\n---")
    if score:
        print(_result(score))
    names = sorted(p.name + "/" * p.is_dir() for p in directory.path.iterdir())
    print(f"left in {directory.path}: {' '.join(n for n in names if n[0] != '.')}")


def _result(row: Row) -> str:
    line = f"validation loss {row['val/loss']:.4f} nats per token"
    if "val/bits_per_byte" in row:
        line += f"; {row['val/bits_per_byte']:.4f} bits per byte of text"
    return f"{line} (update {row['step']})"


def wandb_options(config: ConfigDict, directory: RunDirectory) -> WandbOptions:
    """Returns what the tracker needs of the config and the run directory."""
    given = config.track.wandb
    return WandbOptions(
        run_id=directory.wandb_id(),
        workdir=directory.path,
        mode=given.mode,
        project=given.project,
        entity=given.entity,
        name=given.name,
        group=given.group,
        tags=configs.words(given.tags),
    )
