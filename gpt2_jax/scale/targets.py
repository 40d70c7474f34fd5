"""The machines that `--target` can name, and their devices for the compiler."""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2_jax.errors import UserError, shortened
from gpt2_jax.scale.chips import CHIPS, Chip, gpu_description

if TYPE_CHECKING:
    import jax

LOCAL = "local"
HOST_GPUS = 8  # largest number of GPUs that NVLink connects in a host
EXAMPLES = "v5e:4x4, v5p:2x2x4, h100:8, h100:4x8 (hosts x GPUs) or local"
# Extra: the modules that it installs.
EXTRAS = {
    "plan-tpu": ("libtpu",),
    "plan-gpu": ("jax_plugins.xla_cuda13", "nvidia.cudnn"),
}


@dataclass(frozen=True)
class Machine:
    """Devices to plan for.

    Attributes:
      name: the value of `--target`. chip: None for this machine.
      shape: hosts and GPUs per host, or the sides of a TPU slice; empty for this machine.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def n_devices(self) -> int:
        """The number of devices; not for this machine."""
        return math.prod(self.shape)

    @property
    def per_host(self) -> int | None:
        """The number of GPUs per host; None if a network between hosts plays no role."""
        return self.shape[1] if self.chip and self.chip.is_gpu else None


def parse_target(text: str) -> Machine:
    """Returns the machine that a value of `--target` names.

    Raises:
      UserError: if the machine is unknown, or its shape is impossible.
    """
    if text == LOCAL:
        return Machine(text, None, ())
    name, colon, size = text.partition(":")
    if name not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--target={text}: {name!r} is not one of {known}, local; try {EXAMPLES}")
    if not (colon and re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", size)):
        raise UserError(f"--target={text} needs a size after the name, such as {EXAMPLES}")
    shape, chip = tuple(map(int, size.split("x"))), CHIPS[name]
    if not chip.is_gpu:
        return Machine(text, chip, shape)
    shape = (1, *shape) if len(shape) == 1 else shape
    if len(shape) != 2 or shape[1] > HOST_GPUS:
        raise UserError(
            f"--target={text}: GPUs are {name}:N for one host of at most {HOST_GPUS}, or "
            f"{name}:HOSTSxN, such as {name}:2x8"
        )
    return Machine(text, chip, shape)


def require_compiler(machine: Machine) -> None:
    """Refuses a machine whose compiler is not installed.

    Raises:
      UserError: naming the extra to install.
    """
    if machine.chip is None:
        return
    extra = "plan-gpu" if machine.chip.is_gpu else "plan-tpu"
    if missing := [name for name in EXTRAS[extra] if not _is_installed(name)]:
        raise UserError(
            f"--target={machine.name} needs a compiler for it ({missing[0]} is not installed): run "
            f'pip install "gpt2_jax[{extra}]", or make install EXTRA={extra}'
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def absent_devices(machine: Machine) -> list[jax.Device]:
    """Returns the devices of a machine that is not there, which only a compiler can use.

    Raises:
      UserError: if the compiler does not know a slice of this shape.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    assert machine.chip is not None
    try:
        if machine.chip.is_gpu:
            hosts, gpus = machine.shape
            return topologies.get_topology_desc(
                platform="cuda",
                target_config=gpu_description(machine.chip),
                topology=f"1x{hosts}x{gpus}",
            ).devices
        topology = topologies.get_topology_desc(platform="tpu", topology_name=machine.name)
        return topology.devices
    except (JaxRuntimeError, ValueError) as error:
        raise UserError(
            f"--target={machine.name}: the compiler refuses this shape ({shortened(error, 160)}); "
            f"try {EXAMPLES}"
        ) from None
