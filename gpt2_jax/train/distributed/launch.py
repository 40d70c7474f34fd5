"""Which processes train together: from flags, or from the scheduler that started them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_jax.errors import UserError, shortened

FLAGS = "--coordinator_address, --num_processes and --process_id"
ADDRESS = re.compile(r".+:[0-9]+")


@dataclass(frozen=True)
class Launch:
    """A process among those that train together.

    Attributes:
      coordinator: address and port of process 0.
      count: number of processes. index: number of this one.
      local_devices: numbers of the GPUs that this process uses; None for all that it sees.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def find_launch(
    coordinator: str | None, count: int | None, index: int | None, env: Mapping[str, str]
) -> Launch | None:
    """Returns the launch of this process; None if it trains alone.

    Flags that are None are detected by jax, which knows SLURM, Kubernetes, Open MPI and Cloud TPU.

    Args:
      coordinator, count, index: the flags. `count=1` means alone, whatever a scheduler says.
      env: the environment variables.

    Raises:
      UserError: if the flags are incomplete or contradict each other.
    """
    if count == 1:
        return None
    if coordinator is None and count is not None:
        coordinator = env.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None and count is not None and index is not None:
        return _checked(Launch(coordinator, count, index))
    found = _detect(env)
    if found is None:
        if (coordinator, count, index) != (None, None, None):
            raise UserError(f"no scheduler was detected that starts processes; pass {FLAGS}")
        _check_alone(env)
        return None
    return _checked(
        Launch(
            coordinator or found.coordinator,
            count or found.count,
            found.index if index is None else index,
            found.local_devices,
        )
    )


def _checked(launch: Launch) -> Launch:
    if not ADDRESS.fullmatch(launch.coordinator):
        raise UserError(
            f"--coordinator_address={launch.coordinator} must be HOST:PORT, the address of process "
            "0 and a free port there"
        )
    if not 0 <= launch.index < launch.count:
        raise UserError(
            f"--process_id={launch.index} must be at least 0 and below "
            f"--num_processes={launch.count}"
        )
    return launch


def _detect(env: Mapping[str, str]) -> Launch | None:
    """Returns the launch that a scheduler's environment describes; None if it is of one process."""
    cluster = _find_cluster(env)
    if cluster is None:
        return None
    # A step of a SLURM job may have fewer tasks than the job.
    count = int(env.get("SLURM_STEP_NUM_TASKS", 0)) if cluster.name == "slurm" else 0
    try:
        count = count or cluster.get_process_count()
        if count == 1:
            return None
        port = env.get("JAX_COORDINATOR_PORT")
        address = env.get("JAX_COORDINATOR_ADDRESS") or cluster.get_coordinator_address(300, port)
        return Launch(address, count, cluster.get_process_id(), _local_devices(cluster, env))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read from {cluster.name} which processes train together: "
            f"{shortened(error).rstrip('.')}; pass {FLAGS}"
        ) from None


def _find_cluster(env: Mapping[str, str]) -> Any:
    """Returns jax's description of the scheduler, None if there is none."""
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        # In other pods jax would ask the API server, or warn that it cannot.
        if cluster.name == "k8s" and "JOB_COMPLETION_INDEX" not in env:
            continue
        if not cluster.opt_in_only_method and cluster.is_env_present():
            return cluster
    return None


def _local_devices(cluster: Any, env: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns the GPU of this process if several processes of a machine see the same GPUs.

    A single process of a machine uses all of its GPUs, unlike jax's default for SLURM.
    """
    local = cluster.get_local_process_id()
    if local is None:
        return None
    sizes = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    is_single = re.fullmatch(r"1(\(x[0-9]+\))?", sizes) is not None
    has_own = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")
    return None if is_single or has_own else (local,)


def _check_alone(env: Mapping[str, str]) -> None:
    """Refuses to train alone in a process that is certainly one of several."""
    index, size = env.get("JOB_COMPLETION_INDEX", "0"), env.get("OMPI_COMM_WORLD_SIZE", "1")
    advice = f"pass {FLAGS} (--num_processes=1 trains alone)"
    if index != "0":
        raise UserError(
            f"this pod is number {index} of an indexed Job, but the other pods are unknown; "
            f"{advice}, or install jax[k8s]"
        )
    if size != "1":
        raise UserError(
            f"this is one of {size} processes of Open MPI, but the address of the first one is "
            f"unknown; {advice}"
        )


def indicates_several(env: Mapping[str, str]) -> bool:
    """Returns whether the environment names several processes; a guess that needs no jax."""
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return any(env.get(name, "1") != "1" for name in sizes) or "," in env.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
