"""Model FLOPs utilization (MFU) relative to a device's dense bf16 peak."""

from __future__ import annotations

# Dense bf16 FLOP/s (V100: fp16) from the vendors' data sheets. TPUs are per jax device, which is a
# core up to v3, a chip from v4 on, and half a chip for v7x.
PEAK_FLOPS: dict[str, float] = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's peak FLOP/s in dense bf16, None if it is unknown."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def mfu(
    tokens_per_sec: float, flops_per_token: int, device_kind: str, n_devices: int
) -> float | None:
    """Returns the model's FLOP/s as a fraction of the devices' peak, None if that is unknown."""
    peak = peak_flops(device_kind)
    return None if peak is None else tokens_per_sec * flops_per_token / (peak * n_devices)
