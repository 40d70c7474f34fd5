"""On which devices the kernels run."""

from __future__ import annotations

import jax


def supported() -> bool:
    """Returns whether the first device runs the kernels: an NVIDIA GPU, Ampere or later.

    XLA refuses to compile Triton for earlier ones. Elsewhere the kernels are interpreted, which is
    slow and only for tests.
    """
    device = jax.local_devices()[0]
    is_nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
    return is_nvidia and float(device.compute_capability) >= 8.0
