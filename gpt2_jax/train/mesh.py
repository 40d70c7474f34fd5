"""Devices, and how arrays are sharded over them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir
from gpt2_jax.nn.tensor_parallel import TENSOR

# Mesh axes: rows of the batch are split over the first two, parameters over the last two.
DATA, FSDP = "data", "fsdp"
STATE_SHARE = 0.8  # of a device's memory; the rest is for activations


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
        n_row_devices = (mesh.data or 1) * (mesh.fsdp or 1)
        if mesh.data is None:
            rows, limit = _micro_batch(train) // n_row_devices, cores() // mesh.tensor
            n_row_devices *= _largest_divisor(rows, max(1, limit // n_row_devices))
        wanted = n_row_devices * mesh.tensor
        with suppress(RuntimeError):  # jax is already in use, as in a notebook: keep its devices
            settings.update("jax_num_cpu_devices", wanted)
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        settings.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_mesh(
    train: TrainConfig,
    mesh: MeshConfig,
    state_bytes: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
      state_bytes: size of the state and of a gradient.
      devices: what to use; None for all of this machine's.

    Raises:
      UserError: if there are too few devices, or a TPU slice would be used in part.
    """
    devices = find_devices() if devices is None else devices
    shape = mesh_shape(train, mesh, len(devices), state_bytes, _memory(devices[0]))
    grid = device_grid(devices, shape)
    return Mesh(grid, (DATA, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3)


def device_grid(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the devices of a mesh: `tensor` has the fastest connections and `data` the slowest.

    TPU slices are only connected through a data center's network, so that only `data` may span
    several of them.

    Raises:
      UserError: if a slice would be used in part, or `fsdp` or `tensor` would span several slices.
    """
    (data, *others), n = shape, math.prod(shape)
    n_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" or n_slices == 1:
        if n < len(devices):
            return np.array(devices[:n]).reshape(shape)
        return create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if n < len(devices) or data % n_slices:
        raise UserError(
            f"the mesh {_product(shape)} does not divide {len(devices)} TPU devices in {n_slices} "
            f"slices: all must be used, with mesh.data a multiple of {n_slices}; change mesh.data, "
            "mesh.fsdp or train.batch_size"
        )
    within, between = (data // n_slices, *others), (n_slices, 1, 1)
    return create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def mesh_shape(
    train: TrainConfig, mesh: MeshConfig, n_devices: int, state_bytes: int, memory: float | None
) -> tuple[int, int, int]:
    """Returns the sizes of `data`, `fsdp` and `tensor`.

    If neither `mesh.data` nor `mesh.fsdp` is set, all devices that divide the batch are on `data`,
    or on `fsdp` if the state would not fit in the memory of one device and leave some for
    activations.

    Args:
      state_bytes: size of the state and of a gradient. memory: bytes per device, None if unknown.

    Raises:
      UserError: if there are too few devices.
    """
    limit = n_devices // mesh.tensor
    data, fsdp = mesh.data, mesh.fsdp or 1
    if data is None:
        data = _largest_divisor(_micro_batch(train) // fsdp, max(1, limit // fsdp))
        fits = memory is None or state_bytes < STATE_SHARE * memory
        if mesh.fsdp is None and not fits:
            data, fsdp = 1, data
    shape = (data, fsdp, mesh.tensor)
    if (n := math.prod(shape)) > n_devices:
        raise UserError(
            f"the mesh {_product(shape)} needs {n} devices, but there are {n_devices}; lower or "
            "unset mesh.data, mesh.fsdp or mesh.tensor"
        )
    return shape


def _memory(device: jax.Device) -> int | None:
    """Returns a device's memory in bytes, None if unknown."""
    with suppress(jax.errors.JaxRuntimeError):  # raised for devices that are not in this machine
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def _product(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{name}={n}" for name, n in zip((DATA, FSDP, TENSOR), shape, strict=True))


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
    """Returns the sharding of a batch: rows split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(row_axes(mesh)))


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes with more than one device that the batch is split over, or `data`."""
    return tuple(axis for axis in (DATA, FSDP) if mesh.shape[axis] > 1) or (DATA,)


def n_row_devices(mesh: Mesh) -> int:
    """Returns the number of parts that the batch is split into."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def manual_axes(mesh: Mesh) -> frozenset[str]:
    """Returns the axes whose collectives are written out; XLA inserts those of `tensor`."""
    return frozenset({DATA, FSDP} if mesh.shape[TENSOR] > 1 else mesh.axis_names)


def cores() -> int:
    """Returns the number of cores available to this process, as far as the system reports it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _micro_batch(train: TrainConfig) -> int:
    return train.batch_size // train.accumulation


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if n % d == 0)
