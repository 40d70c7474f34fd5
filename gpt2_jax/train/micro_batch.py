"""`train.micro_batch=auto`: the fewest micro-batches per step with which it fits in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from jax.sharding import Mesh

from gpt2_jax.config.capacity import host_bytes, size
from gpt2_jax.config.sections import TrainConfig
from gpt2_jax.errors import UserError
from gpt2_jax.track.console import say
from gpt2_jax.train.compiled_step import CompiledStep, TooLittleMemory
from gpt2_jax.train.distributed.mesh import n_row_devices

USABLE = 0.9  # of a device's memory; the rest is for fragmentation and for the evaluation


def largest_micro_batch(
    train: TrainConfig, mesh: Mesh, compiled_with: Callable[[int], CompiledStep]
) -> tuple[int, CompiledStep]:
    """Returns the fewest micro-batches with which a step fits in memory, and the compiled step.

    Args:
      compiled_with: compiles the step for a number of micro-batches.

    Raises:
      UserError: if not even the smallest micro-batch fits, or its memory is unknown.
    """
    fitting: dict[int, CompiledStep] = {}
    peaks: dict[int, float] = {}
    limit = usable_bytes(mesh)

    def peak(n: int) -> float:
        try:
            compiled = compiled_with(n)
        except TooLittleMemory:
            return math.inf
        if compiled.peak_bytes is None:
            raise UserError(
                "train.micro_batch=auto needs the compiler's memory figures, which this platform "
                "does not report; set train.accumulation instead"
            )
        if compiled.peak_bytes <= limit:
            fitting[n] = compiled
        peaks[n] = compiled.peak_bytes
        return compiled.peak_bytes

    possible = choices(train.batch_size, train.accumulation, n_row_devices(mesh))
    n = fewest(possible, limit, peak)
    if n is None:
        least = f"needs {size(peaks[possible[-1]])}" if possible[-1] in peaks else "is too large"
        raise UserError(
            f"train.micro_batch=auto: a step with one sequence per device {least}, and "
            f"{size(limit)} are usable; set model.remat=block, mesh.fsdp or a shorter data.seq_len"
        )
    _report(n, peaks, limit)
    return n, fitting[n]


def _report(n: int, peaks: dict[int, float], limit: float) -> None:
    others = [f"; {k} would need {size(peaks[k])}" for k in sorted(peaks) if k < n]
    say(
        f"train.micro_batch=auto: train.accumulation={n} needs {size(peaks[n])} of the "
        f"{size(limit)} usable per device{''.join(others[-1:])}"
    )


def choices(batch_size: int, first: int, n_devices: int) -> list[int]:
    """Returns the possible numbers of micro-batches, in increasing order.

    Each is a multiple of `first` and leaves every device at least one whole sequence of each
    micro-batch, so that the mesh does not depend on the choice.

    Args:
      first: the lowest. n_devices: devices that share the batch; they divide it.
    """
    rows = batch_size // first // n_devices
    return [first * n for n in range(1, rows + 1) if rows % n == 0]


def usable_bytes(mesh: Mesh) -> float:
    """Returns the memory that a step may use on a device; CPU devices share the machine's."""
    devices = mesh.local_devices
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return USABLE * (host_bytes() / len(devices) if limit is None else limit)


def fewest(choices: list[int], limit: float, peak: Callable[[int], float]) -> int | None:
    """Returns the lowest choice whose peak is within a limit, None if there is none.

    The peak falls with the number n of micro-batches, as about a + b / n. This decides which
    choice to try next, so that few are tried; the result does not depend on it.

    Args:
      peak: returns a choice's peak, infinite if it is too large to be known.
    """
    found: dict[int, float] = {}
    low, high, i = -1, len(choices), 0  # choices[low] is too large, choices[high] fits
    while high - low > 1:
        found[i] = peak(choices[i])
        low, high = (low, i) if found[i] <= limit else (i, high)
        known = {1 / choices[j]: found[j] for j in (low, high) if j in found}
        i = _next(choices, low, high, limit, known)
    return choices[high] if high < len(choices) else None


def _next(choices: list[int], low: int, high: int, limit: float, known: dict[float, float]) -> int:
    """Returns the index of the choice to try next, between `low` and `high`.

    Args:
      known: peaks of choices n by 1 / n.
    """
    finite = sorted((x, y) for x, y in known.items() if math.isfinite(y))
    if not finite:
        return min(2 * low + 1, high - 1)
    (x0, y0), (x1, y1) = finite if len(finite) > 1 else [(0.0, 0.0), *finite]
    slope = (y1 - y0) / (x1 - x0)
    fits = (j for j in range(low + 1, high) if y0 + slope * (1 / choices[j] - x0) <= limit)
    return next(fits, high - 1)
