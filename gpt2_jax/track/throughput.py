"""Model FLOPs utilisation against a device's dense bf16 peak."""

from __future__ import annotations

# FLOP/s, dense, bf16 (V100: fp16), from the vendors' data sheets; a TPU's are of what jax calls a
# device: a core up to v3, a chip from v4 on, half a chip for v7x.
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
    """Returns a device's dense bf16 FLOP/s, or None if it is not known."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def utilisation(
    tokens_per_sec: float, flops_per_token: int, device_kind: str, n_devices: int
) -> float | None:
    """Returns the share of the devices' peak that the model's FLOPs take, None if unknown."""
    peak = peak_flops(device_kind)
    return None if peak is None else tokens_per_sec * flops_per_token / (peak * n_devices)
