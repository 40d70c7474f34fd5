"""What a program needs to know about the devices that it is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Target:
    """The kind of devices that a program is compiled for; they need not be in this machine.

    Attributes:
      platform: "cpu", "gpu" or "tpu", jax's name.
      runs_triton: whether they run the kernels of `nn.fused`.
    """

    platform: str
    runs_triton: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether the devices are those of a CPU."""
        return self.platform == "cpu"


def target_of(device: jax.Device) -> Target:
    """Returns the kind of a device.

    The kernels are for NVIDIA GPUs, Ampere or later: XLA refuses to compile Triton for earlier
    ones.
    """
    is_nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
    return Target(device.platform, is_nvidia and float(device.compute_capability) >= 8.0)


def local_target() -> Target:
    """Returns the kind of this machine's devices."""
    return target_of(jax.local_devices()[0])
