"""On which devices the kernels run."""

from __future__ import annotations

import jax


def supported() -> bool:
    """Returns whether the first device runs the kernels: an NVIDIA GPU, Ampere or later.

    XLA refuses to compile Triton for earlier ones.
    """
    device = jax.local_devices()[0]
    is_nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
    return is_nvidia and float(device.compute_capability) >= 8.0


def interpreted() -> bool:
    """Returns whether Pallas must interpret a kernel, for lack of a GPU: slow, for tests."""
    return jax.default_backend() != "gpu"
