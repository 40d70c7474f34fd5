"""Time and cost of a run from the figures of its compiled step: a roofline."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.hlo.kinds import ATTENTION, PRODUCTS
from gpt2_jax.scale.chips import CHIPS, Chip
from gpt2_jax.scale.figures import Figures
from gpt2_jax.track.throughput import mfu, peak_flops

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Estimate:
    """The estimated speed and cost of a run.

    Attributes:
      seconds: of a step, by kind of work; they add up, as if nothing overlapped.
      mfu: model FLOPs utilization. days, cost (US dollars): of the whole run.
    """

    seconds: dict[str, float]
    tokens_per_sec: float
    mfu: float
    days: float
    cost: float

    @property
    def step_seconds(self) -> float:
        """Seconds per step."""
        return sum(self.seconds.values())


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip that jax calls `device_kind`, None if its speed is not known."""
    kinds = {chip.kind.removesuffix(" 80GB HBM3"): chip for chip in CHIPS.values()}
    return next((chip for kind, chip in kinds.items() if device_kind.startswith(kind)), None)


def estimate(
    figures: Figures, chip: Chip, n_devices: int, total_tokens: int, price: float
) -> Estimate:
    """Returns the estimated speed and cost of a run.

    Matrix products take FLOPs / (efficiency x peak), attention kernels likewise, and all other work
    bytes / (efficiency x bandwidth). Collectives take the bytes that a device sends / bandwidth of
    the connection.

    Args:
      n_devices: number of devices to pay for. total_tokens: of the run. price: per device and hour.
    """
    peak, share = peak_flops(chip.kind), chip.efficiency
    assert peak is not None
    others = sum(n for kind, n in figures.traffic.items() if kind not in (PRODUCTS, ATTENTION))
    network = chip.network or chip.link
    seconds = {
        "matrix products": figures.product_flops / (share.products * peak),
        "attention kernel": figures.attention_flops / (share.attention * peak),
        "other memory traffic": others / (share.memory * chip.bandwidth),
        "collectives": sum(
            one.sent_bytes / (network if one.between_hosts else chip.link)
            for one in figures.exchanges
        ),
    }
    tokens_per_sec = figures.tokens_per_step / sum(seconds.values())
    utilization = mfu(tokens_per_sec, figures.flops_per_token, chip.kind, n_devices)
    assert utilization is not None
    days = total_tokens / tokens_per_sec / SECONDS_PER_DAY
    return Estimate(seconds, tokens_per_sec, utilization, days, 24 * days * n_devices * price)
