"""Accelerators that can be planned for: memory, speed, connections and price."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
GPU_SHARE = 0.92  # of a GPU's memory that gpt2_jax reserves
# On-demand list prices differ between providers and regions; these are only a starting point.
PRICES = "prices are assumed, typical of on-demand lists in November 2026"


@dataclass(frozen=True)
class Efficiency:
    """The share of its peak that each kind of work reaches, measured or assumed.

    Attributes:
      products: matrix products. attention: its kernel. memory: everything else, of bandwidth.
      source: how they are known.
    """

    products: float
    attention: float
    memory: float
    source: str


@dataclass(frozen=True)
class Chip:
    """One device, as jax counts them.

    Attributes:
      kind: jax's name of the device; `track.throughput` has its peak FLOP/s.
      memory: bytes that a program may use. bandwidth: of the memory, bytes per second.
      link: bytes per second that a device sends in a collective within a host, or a TPU slice.
      network: the same between hosts; None if all devices are connected by links.
      price: US dollars per hour. efficiency: of the train step.
      config: fields of XLA's description that differ between GPUs; None for TPUs.
    """

    kind: str
    memory: int
    bandwidth: float
    link: float
    network: float | None
    price: float
    efficiency: Efficiency
    config: dict[str, int | float] | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.config is not None


H100 = Efficiency(0.72, 0.23, 0.77, "fitted to steps measured on an H100")
LIKE_H100 = Efficiency(0.72, 0.23, 0.77, "assumed to be those of an H100")
TPU = Efficiency(0.60, 0.60, 0.75, "assumed, not measured on TPUs")


def _gpu(name: str, config: dict[str, int | float], link: float, price: float) -> Chip:
    memory, bandwidth = config["device_memory_size"], config["memory_bandwidth"]
    efficiency = H100 if "H100" in name else LIKE_H100
    usable = int(GPU_SHARE * memory)
    return Chip(name, usable, bandwidth, link, 50e9, price, efficiency, config)


# Descriptions as the devices report them. Links are one direction of NVLink; between hosts, one
# 400 Gb/s adapter per GPU. TPU links are one axis of the torus, both directions.
_HOPPER = {"core_count": 132, "l2_cache_size": 52428800, "clock_rate_ghz": 1.98, "major": 9}
_BLACKWELL = {"core_count": 148, "l2_cache_size": 132644864, "clock_rate_ghz": 1.965, "major": 10}
CHIPS = {
    "h100": _gpu(
        "NVIDIA H100 80GB HBM3",
        _HOPPER | {"device_memory_size": 84929347584, "memory_bandwidth": 3352320000000},
        450e9,
        3.0,
    ),
    "h200": _gpu(
        "NVIDIA H200",
        _HOPPER | {"device_memory_size": 151397597184, "memory_bandwidth": 4800000000000},
        450e9,
        3.8,
    ),
    "b200": _gpu(
        "NVIDIA B200",
        _BLACKWELL | {"device_memory_size": 191514411008, "memory_bandwidth": 7672320000000},
        900e9,
        5.5,
    ),
    "v5e": Chip("TPU v5 lite", int(15.75 * GIB), 819e9, 90e9, None, 1.2, TPU),
    "v5p": Chip("TPU v5p", int(95.74 * GIB), 2765e9, 180e9, None, 4.2, TPU),
    "v6e": Chip("TPU v6 lite", int(31.25 * GIB), 1640e9, 180e9, None, 2.7, TPU),
}


def gpu_description(chip: Chip) -> str:
    """Returns XLA's description of a GPU, a `GpuTargetConfigProto` in text format."""
    assert chip.config is not None
    values = dict(chip.config)
    major = values.pop("major")
    own = " ".join(f"{name}: {value}" for name, value in values.items())
    return (
        "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 "
        "shared_memory_per_block: 49152 shared_memory_per_core: 233472 "
        "threads_per_core_limit: 2048 fpus_per_core: 128 block_dim_limit_x: 2147483647 "
        f"block_dim_limit_y: 65535 block_dim_limit_z: 65535 {own} "
        "shared_memory_per_block_optin: 232448 "
        f"cuda_compute_capability {{ major: {major} feature_extension: ACCELERATED_FEATURES }} "
        "registers_per_core_limit: 65536 registers_per_block_limit: 65536 } "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
        "runtime_version { major: 13 minor: 0 patch: 0 } "
        f'device_description_str: "{chip.kind}"'
    )
