"""Which meshes a model and a batch allow on a number of devices."""

from __future__ import annotations

from gpt2_jax.config.sections import MeshConfig, ModelConfig, TrainConfig
from gpt2_jax.errors import UserError, counted
from gpt2_jax.train.distributed.mesh import mesh_shape

Shape = tuple[int, int, int]  # data, fsdp, tensor
MAX_LISTED = 8  # meshes in an error


def divisors(n: int) -> list[int]:
    """Returns the divisors of n, in order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def possible_meshes(n_devices: int, micro_batch: int, n_head: int) -> list[Shape]:
    """Returns the meshes of all devices that divide a micro-batch and the heads."""
    return [
        (n_devices // tensor // fsdp, fsdp, tensor)
        for tensor in divisors(n_devices)
        if n_head % tensor == 0 and micro_batch % (n_devices // tensor) == 0
        for fsdp in divisors(n_devices // tensor)
    ]


def choose_mesh(
    model: ModelConfig,
    train: TrainConfig,
    mesh: MeshConfig,
    n_devices: int,
    state_bytes: int,
    memory: int,
) -> Shape:
    """Returns the mesh that training would use on devices with this memory.

    Raises:
      UserError: if it cannot work, with those that can.
    """
    micro_batch = train.batch_size // train.accumulation
    rows = (mesh.data or 1) * (mesh.fsdp or 1)
    too_many = rows * mesh.tensor > n_devices
    if too_many or micro_batch % rows or model.n_head % mesh.tensor:
        given = " x ".join(f"{n}={k}" for n, k in vars(mesh).items() if k is not None)
        possible = possible_meshes(n_devices, micro_batch, model.n_head)
        raise UserError(
            f"the mesh {given} cannot be used: {counted(n_devices, 'device')}, "
            f"{counted(micro_batch, 'sequence')} per micro-batch (train.batch_size / "
            f"train.accumulation) and {counted(model.n_head, 'head')} {_listed(possible)}"
        )
    return mesh_shape(train, mesh, n_devices, state_bytes, memory)


def _listed(possible: list[Shape]) -> str:
    if not possible:
        return "allow no mesh that uses all devices; change train.accumulation"
    shown = ", ".join("x".join(map(str, shape)) for shape in possible[:MAX_LISTED])
    return f"allow data x fsdp x tensor = {shown}{', ...' * (len(possible) > MAX_LISTED)}"


def mesh_fields(shape: Shape) -> dict[str, int]:
    """Returns the config fields of a mesh, by dotted name."""
    return dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape, strict=True))
