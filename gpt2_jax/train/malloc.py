"""glibc tuning: keep freed pages between CPU steps."""

from __future__ import annotations

import ctypes
import math
import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import jax

from gpt2_jax.config.capacity import FLOAT
from gpt2_jax.config.model_sections import ModelConfig
from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.config.task_sections import DataConfig
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.data.trained_tokenizer import is_trained, parse_trained

# mallopt parameters, and the largest block that they let a thread's heap have (glibc's malloc.h).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8
LARGEST_BLOCK = 32 << 20
# Of the estimated scratch memory. A thread's heap has 64 MiB, and estimates are up to 30% too low.
LARGEST_SCRATCH = 45 << 20


def keep_freed_memory(
    model: ModelConfig, data: DataConfig, train: TrainConfig, mesh: MeshConfig
) -> None:
    """Makes glibc keep freed memory if the train step runs on a CPU.

    Call after the number of devices is configured, and before any thread starts: glibc gives the
    heap of a thread that has ended to the next one, whatever is set in the meantime.

    XLA allocates a CPU program's scratch memory with malloc at every call and frees it afterwards.
    By default glibc returns it to the kernel, so each step page-faults on all of it: 48 MB, and 29
    instead of 17 ms per step, for a model of 0.8M parameters (only in some processes); 380 MB, and
    325 instead of 237 ms, for one of 11M (always). The process uses up to 1.5 GB more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not _cpu_only():
        return
    mallopt(TRIM_THRESHOLD, 1 << 30)
    if _scratch_bytes(model, data, train, mesh) < LARGEST_SCRATCH:
        mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(TOP_PAD, 2 * LARGEST_BLOCK)  # otherwise an empty heap is unmapped
    else:
        # A thread's heap is too small for that. A heap shared by all threads is not, but its lock
        # costs 6 % at 0.8M parameters, so small models keep one heap per thread.
        mallopt(MMAP_MAX, 0)
        mallopt(ARENA_MAX, 1)


def _scratch_bytes(
    model: ModelConfig, data: DataConfig, train: TrainConfig, mesh: MeshConfig
) -> int:
    """Approximates a device's scratch memory in a step: gradients, activations and logits.

    It is 38 MB where XLA reports 41 (the quickstart), and 53 where it reports 73 (the study of
    translation), each on one device.
    """
    rows = math.ceil(train.batch_size / train.accumulation / _row_devices(mesh))
    vocab_size = model.vocab_size or _largest_vocabulary(data.tokenizer)
    inner = model.n_inner or 4 * model.n_embd
    gradients, per_row = vocab_size * model.n_embd, 2 * data.seq_len * vocab_size
    lengths = (data.source_len or data.seq_len, data.seq_len)[-len(model.towers) :]
    for tower, n in zip(model.towers, lengths, strict=True):
        n_attention = len(tower.sublayers) - 1
        matrices = 4 * n_attention * model.n_embd**2 + 2 * model.n_embd * inner
        attention = n_attention * (8 * model.n_embd + 2 * model.n_head * n)
        gradients += tower.n_layer * matrices
        per_row += tower.n_layer * n * (attention + 4 * model.n_embd + 3 * inner)
    return FLOAT * (gradients + rows * per_row)


def _largest_vocabulary(tokenizer: str) -> int:
    """Returns the size of a tokenizer's vocabulary; at most, if it is yet to be trained."""
    is_known = not is_trained(tokenizer)
    return load_tokenizer(tokenizer).size if is_known else parse_trained(tokenizer)[1]


def _row_devices(mesh: MeshConfig) -> int:
    """Returns how many devices of a CPU divide the rows of a micro-batch."""
    settings: Any = jax.config
    return mesh.data or max(1, settings.jax_num_cpu_devices)


def _cpu_only() -> bool:
    """Returns whether a CPU is all that jax can find; does not start jax."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    return not entry_points(group="jax_plugins") and find_spec("libtpu") is None
