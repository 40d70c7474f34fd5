"""Devices, and how arrays are sharded over them."""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir
from gpt2_jax.nn.tensor_parallel import TENSOR
from gpt2_jax.train.distributed.processes import ALONE, Processes

# Mesh axes: rows of the batch are split over the first two, parameters over the last two.
DATA, FSDP = "data", "fsdp"
STATE_SHARE = 0.8  # of a device's memory; the rest is for activations


def configure_devices(train: TrainConfig, mesh: MeshConfig, processes: Processes = ALONE) -> None:
    """Configures devices, their memory, determinism and the compile cache; call before using jax.

    On a CPU, every core becomes a device if the batch can be split that far: one program on many
    cores leaves them idle between its small operations. All processes have the same number.

    Raises:
      UserError: if the processes cannot divide the batch among them.
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
        wanted = _n_cpu_devices(train, mesh, processes)
        with suppress(RuntimeError):  # jax is already in use, as in a notebook: keep its devices
            settings.update("jax_num_cpu_devices", wanted)
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        settings.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _n_cpu_devices(train: TrainConfig, mesh: MeshConfig, processes: Processes) -> int:
    """Returns how many devices each process simulates on its cores."""
    if processes.count == 1:
        n_row_devices = (mesh.data or 1) * (mesh.fsdp or 1)
        if mesh.data is None:
            rows, limit = _micro_batch(train) // n_row_devices, cores() // mesh.tensor
            n_row_devices *= _largest_divisor(rows, max(1, limit // n_row_devices))
        return n_row_devices * mesh.tensor
    least = math.prod((mesh.data or 1, mesh.fsdp or 1, mesh.tensor)) / processes.count
    most = math.ceil(least) if mesh.data else max(math.ceil(least), _own_cores(processes))
    for n in range(most, 0, -1):
        if _shape(train, mesh, n * processes.count) is not None:
            return n
    raise _indivisible(train, mesh, processes.count, "")


def _own_cores(processes: Processes) -> int:
    """Returns the cores of each process, if those that run on the same cores share them."""
    host = socket.gethostname()
    found = processes.gather("cores", [[host, core] for core in _core_numbers()])
    n_sharing = Counter(tuple(core) for one in found for core in one)
    return int(min(sum(1 / n_sharing[tuple(core)] for core in one) for one in found) + 1e-6)


def _shape(train: TrainConfig, mesh: MeshConfig, n_devices: int) -> tuple[int, int, int] | None:
    """Returns the mesh's shape if it is to use exactly this many devices; None if it cannot."""
    fsdp, tensor = mesh.fsdp or 1, mesh.tensor
    data = mesh.data or max(1, n_devices // (fsdp * tensor))
    is_exact = data * fsdp * tensor == n_devices and _micro_batch(train) % (data * fsdp) == 0
    return (data, fsdp, tensor) if is_exact else None


def _indivisible(
    train: TrainConfig, mesh: MeshConfig, n_processes: int, n_devices: int | str
) -> UserError:
    names = ", ".join(f"mesh.{name}={n}" for name, n in vars(mesh).items() if n not in (None, 1))
    devices = f"{n_devices} devices of the " if n_devices else ""
    return UserError(
        f"the {devices}{n_processes} processes cannot divide the {_micro_batch(train)} sequences "
        f"of a micro-batch (train.batch_size / train.accumulation){names and ' with '}{names}; "
        "change train.batch_size, the mesh or the number of processes"
    )


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
      UserError: if there are too few devices, or a process or a TPU slice would be used in part.
    """
    devices = find_devices() if devices is None else devices
    _check_processes(train, mesh, devices)
    shape = mesh_shape(train, mesh, len(devices), state_bytes, _memory(devices))
    grid = device_grid(devices, shape)
    return Mesh(grid, (DATA, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3)


def _check_processes(train: TrainConfig, mesh: MeshConfig, devices: Sequence[jax.Device]) -> None:
    """Refuses several processes unless all of their devices can take part."""
    counts = Counter(device.process_index for device in devices)
    if len(counts) == 1:
        return
    if len(set(counts.values())) > 1:
        listed = ", ".join(str(n) for _, n in sorted(counts.items()))
        raise UserError(
            f"the processes have different numbers of devices ({listed}); give all of them the same"
        )
    if _shape(train, mesh, len(devices)) is None:
        raise _indivisible(train, mesh, len(counts), len(devices))


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


def _memory(devices: Sequence[jax.Device]) -> int | None:
    """Returns the memory of each device in bytes, None if unknown."""
    own = (device for device in devices if device.process_index == jax.process_index())
    with suppress(jax.errors.JaxRuntimeError):  # raised for devices that are not in this machine
        return (next(own).memory_stats() or {}).get("bytes_limit")
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


def own_rows(mesh: Mesh, n_rows: int) -> np.ndarray:
    """Returns the rows of a batch that the devices of this process hold, in ascending order."""
    parts = by_rows(mesh).addressable_devices_indices_map((n_rows,)).values()
    return np.unique(np.concatenate([np.arange(n_rows)[part] for part in parts]))


def put_rows(batch: Any, mesh: Mesh, n_rows: int) -> Any:
    """Puts this process's rows of a batch, `own_rows`, on its devices.

    Args:
      batch: a pytree of arrays. n_rows: rows of the whole batch.
    """
    sharding = by_rows(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    rows = own_rows(mesh, n_rows)

    def put(x: np.ndarray) -> jax.Array:
        part = lambda index: x[np.searchsorted(rows, np.arange(n_rows)[index[0]])]
        return jax.make_array_from_callback((n_rows, *x.shape[1:]), sharding, part)

    with jax.transfer_guard("allow"):  # the training loop disallows implicit transfers
        return jax.tree.map(put, batch)


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
    return len(_core_numbers())


def _core_numbers() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def to_mesh(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array on the devices of all processes, each of which has all of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    with jax.transfer_guard("allow"):  # the training loop disallows implicit transfers
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def to_host(arrays: list[jax.Array]) -> list[np.ndarray]:
    """Returns the values of arrays, gathered from the devices of all processes."""
    if all(x.is_fully_addressable for x in arrays):
        return jax.device_get(arrays)
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(arrays, tiled=True)


def _micro_batch(train: TrainConfig) -> int:
    return train.batch_size // train.accumulation


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if n % d == 0)
