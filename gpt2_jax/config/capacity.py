"""Checks that a config fits this machine, from its sizes alone, without jax or compilation.

The estimate is a lower bound, and the limit is twice the machine's memory, so nothing that could
run is refused. A config that passes may still be too large; the compiler then reports it.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from glob import glob
from pathlib import Path

from gpt2_jax.config.sections import Config, OptimizerConfig
from gpt2_jax.errors import UserError
from gpt2_jax.placements.axes import GATED
from gpt2_jax.placements.registry import SUPPORTS

MARGIN = 2  # for swap, and for planning on a smaller machine than the one that trains
FLOAT = 4  # bytes of a float32
N_MOMENTS = {"adamw": 2, "muon": 1}  # of a matrix
MOMENT_BYTES = {"float32": FLOAT, "bfloat16": 2, "int8": 1}
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
ACCELERATOR_BYTES = 10**12  # more memory than any accelerator has
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
MOST_CPU_DEVICES = 256  # jax makes as many as the mesh has, each with its own threads


def check_memory(config: Config, training: bool) -> None:
    """Refuses a config that needs more memory than this machine has.

    Args:
      training: whether to count optimizer state and the activations of a batch.

    Raises:
      UserError: naming the sizes.
    """
    per_parameter = parameter_bytes(config.optimizer) if training else FLOAT
    needed, available = least_parameters(config) * per_parameter, machine_bytes()
    if needed > MARGIN * available:
        model = config.model
        raise UserError(
            f"model.n_layer={model.n_layer}, model.n_embd={model.n_embd} and "
            f"model.vocab_size={model.vocab_size} mean at least "
            f"{least_parameters(config):.2g} parameters, which need {size(needed)}; this machine "
            f"has {size(available)}: choose a smaller model"
        )
    if training and needed + (batch := batch_bytes(config)) > MARGIN * available:
        train = config.train
        raise UserError(
            f"train.batch_size={train.batch_size} sequences of data.seq_len="
            f"{config.data.seq_len} with train.accumulation={train.accumulation} need at least "
            f"{size(batch)}; this machine has {size(available)}: lower one of the first two, or "
            "raise train.accumulation"
        )


def check_devices(config: Config) -> None:
    """Refuses more devices than jax can simulate on a machine without accelerators.

    Raises:
      UserError: naming the fields of the mesh.
    """
    axes = {name: n for name, n in vars(config.mesh).items() if n not in (None, 1)}
    wanted, most = math.prod(axes.values()), max(MOST_CPU_DEVICES, os.cpu_count() or 1)
    if wanted > most and not _n_accelerators():
        named = " x ".join(f"mesh.{name}={n}" for name, n in axes.items())
        raise UserError(f"{named} is more than the {most} devices that a CPU can simulate")


def parameter_bytes(optimizer: OptimizerConfig) -> int:
    """Returns the bytes of a parameter of a matrix and of its moments."""
    return FLOAT + N_MOMENTS[optimizer.name] * MOMENT_BYTES[optimizer.moments_dtype]


def least_parameters(config: Config) -> int:
    """Returns a lower bound on the model's parameters: embeddings, and matrices of all blocks."""
    model = config.model
    placement = config.placement.resolve()
    d, matrices = model.n_embd, 3 if placement.activation in GATED else 2
    inner = model.n_inner or 4 * d * 2 // matrices
    n_attention = 4 - 2 * placement.identity_values - (placement.value_residual == "first")
    per_mlp, per_attention = matrices * d * inner, n_attention * d * d
    if SUPPORTS[placement.connection].rank:
        per_mlp, per_attention = (n + 2 * d * placement.rank for n in (per_mlp, per_attention))
    in_blocks = sum(
        (placement.share_blocks or tower.n_layer)
        * ((len(tower.sublayers) - 1) * per_attention + per_mlp)
        for tower in model.towers
    )
    n_tables = 1 + (not model.tie_head) + (len(model.towers) > 1 and not model.share_embeddings)
    rows = padded_vocabulary(config) * n_tables
    if placement.positions == "learned":
        rows += len(model.towers) * (model.n_positions + model.position_offset)
    return in_blocks + rows * d


def batch_bytes(config: Config) -> int:
    """Returns a lower bound on the bytes of token ids, block inputs and logits in a step."""
    train, model, seq_len = config.train, config.model, config.data.seq_len
    n_parts = train.batch_size if train.micro_batch else train.accumulation
    tokens = train.batch_size // n_parts * seq_len
    stream = 2 if model.dtype == "bfloat16" else FLOAT
    block_inputs = sum(tower.n_layer for tower in model.towers) * model.n_embd * stream
    logits = padded_vocabulary(config) * stream
    return train.batch_size * seq_len * FLOAT + tokens * (block_inputs + logits)


def padded_vocabulary(config: Config) -> int:
    """Returns the rows of the token embedding; `vocab_multiple` if the size is not known yet."""
    multiple = config.model.vocab_multiple
    return -(-(config.model.vocab_size or 1) // multiple) * multiple


def machine_bytes() -> float:
    """Returns the memory of this machine plus an upper bound for its accelerators.

    Infinite if the system does not report it.
    """
    return host_bytes() + _n_accelerators() * ACCELERATOR_BYTES


def host_bytes() -> float:
    """Returns the memory of this machine, without accelerators; infinite if it is not reported."""
    host = math.inf
    with suppress(ValueError, OSError):  # SC_PHYS_PAGES is not in POSIX
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):
        limit = CGROUP_LIMIT.read_text(encoding="utf-8").strip()
        host = min(host, int(limit)) if limit.isdecimal() else host
    return host


def _n_accelerators() -> int:
    if os.environ.get("JAX_PLATFORMS", "").strip() == "cpu":
        return 0
    return sum(len(glob(pattern)) for pattern in ACCELERATORS)


def size(n_bytes: float) -> str:
    """Returns a number of bytes in GB or MB."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
