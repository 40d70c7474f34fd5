"""Devices, and how arrays are sharded over them."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir

DATA = "data"


def configure_devices(train: TrainConfig, mesh: MeshConfig) -> None:
    """Configures devices, their memory, determinism and the compile cache; call before using jax.

    On a CPU, every core becomes a device if the batch can be split that far: one program on many
    cores leaves them idle between its small operations.
    """
    settings: Any = jax.config
    flags = os.environ.get("XLA_FLAGS", "")
    if train.deterministic:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    # By default, jax may use only 75% of a GPU's memory. jaxlib refuses both names at once.
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")
    # Keep settings made by the user or by an earlier call.
    if settings.jax_num_cpu_devices <= 0 and "host_platform_device_count" not in flags:
        wanted = mesh.data or _largest_divisor(_micro_batch(train), cores())
        with suppress(RuntimeError):  # jax is already in use, as in a notebook: keep its devices
            settings.update("jax_num_cpu_devices", wanted)
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        settings.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_mesh(train: TrainConfig, mesh: MeshConfig) -> Mesh:
    """Returns a mesh with a `data` axis over `mesh.data` devices, or as many as divide the batch.

    Raises:
      UserError: if there are fewer devices than `mesh.data`.
    """
    devices = find_devices()
    n = mesh.data or _largest_divisor(_micro_batch(train), len(devices))
    if n > len(devices):
        raise UserError(f"mesh.data={n}, but there are {len(devices)} devices; lower or unset it")
    return Mesh(devices[:n], (DATA,), axis_types=(AxisType.Auto,))


def find_devices() -> list[jax.Device]:
    """Returns jax's devices.

    Raises:
      UserError: if it has none, for example because JAX_PLATFORMS names a missing platform.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: platform without devices
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split()) or "there is no such device"
        raise UserError(
            f"jax cannot start (JAX_PLATFORMS={asked}): {reason}; unset JAX_PLATFORMS, or install "
            "the jax plugin for the device"
        ) from None


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds in full, such as the train state."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows split over the `data` axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def cores() -> int:
    """Returns the number of cores available to this process, as far as the system reports it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _micro_batch(train: TrainConfig) -> int:
    return train.batch_size // train.accumulation


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if n % d == 0)
