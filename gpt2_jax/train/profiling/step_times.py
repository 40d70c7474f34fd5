"""Where a step's time goes: a table from a profile of the devices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2_jax.hlo.kinds import CATEGORIES
from gpt2_jax.train.profiling.op_kinds import ProgramOps

LONGEST = 15  # operations in the table
WIDTH = 60  # characters of an operation's source in the table


@dataclass(frozen=True)
class Event:
    """An operation that ran on a device, from `start` to `stop` in nanoseconds.

    Attributes:
      op: name of the operation; kernel: name of the event, which on a GPU is the kernel's.
    """

    device: str
    op: str
    kernel: str
    start: float
    stop: float


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds per step, averaged over devices.

    Attributes:
      wall: time of a step. idle: time in which a device ran no operation of the step.
      categories: by category, without those that do not occur. ops: the longest operations:
      name, category, source, milliseconds, calls per step.
    """

    n_devices: int
    wall: float
    idle: float
    categories: dict[str, float]
    ops: list[tuple[str, str, str, float, float]]


def step_events(planes: Iterable[Any], module: str) -> Iterator[Event]:
    """Yields the operations of a program in a profile.

    On a GPU and a TPU each device has a plane. On a CPU, one plane has the threads that run the
    devices' operations.

    Args:
      planes: of a `jax.profiler.ProfileData`. module: the program's name.
    """
    for plane in planes:
        on_device = plane.name.startswith("/device:")
        if not on_device and plane.name != "/host:CPU":
            continue
        lines = list(plane.lines)
        whole = [line for line in lines if line.name == "XLA Ops"]  # a TPU's; others repeat them
        for line in whole or lines:
            for event in line.events:
                stats = dict(event.stats)
                op = stats.get("hlo_op")
                if op is None and not whole:
                    continue
                if stats.get("hlo_module", module) != module:
                    continue
                kernel = event.name.partition(" = ")[0].lstrip("%")
                device = plane.name if on_device else str(stats.get("device_ordinal", 0))
                stop = event.start_ns + event.duration_ns
                yield Event(device, str(op or kernel), kernel, event.start_ns, stop)


def step_times(
    events: Iterable[Event], program: ProgramOps, n_steps: int, seconds: float
) -> StepTimes | None:
    """Returns where the time of some steps went; None if no operation is known.

    Args:
      seconds: time that the steps took.
    """
    spent: dict[tuple[str, str, str], float] = defaultdict(float)
    calls = Counter[tuple[str, str, str]]()
    intervals: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        op = program.find(event.op, event.kernel)
        if op.category is None:
            continue
        name = event.op if event.op in program.ops and event.op == event.kernel else event.kernel
        key = (name, op.category, op.source)
        spent[key] += event.stop - event.start
        calls[key] += 1
        intervals[event.device].append((event.start, event.stop))
    if not intervals:
        return None
    per_step = 1 / (n_steps * len(intervals))
    categories = {
        name: per_step * 1e-6 * sum(ns for key, ns in spent.items() if key[1] == name)
        for name in CATEGORIES
    }
    wall = 1e3 * seconds / n_steps
    busy = per_step * 1e-6 * sum(map(covered, intervals.values()))
    ops = [
        (*key, ns * per_step * 1e-6, calls[key] * per_step)
        for key, ns in sorted(spent.items(), key=lambda item: -item[1])[:LONGEST]
    ]
    known = {name: ms for name, ms in categories.items() if ms}
    return StepTimes(len(intervals), wall, max(0.0, wall - busy), known, ops)


def covered(intervals: list[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def render(times: StepTimes, first: int, last: int) -> str:
    """Returns the table of the steps from `first` to `last` as text."""
    share = lambda ms: f"{100 * ms / times.wall:5.1f}%"
    devices = "1 device" if times.n_devices == 1 else f"mean of {times.n_devices} devices"
    lines = [f"time per step, steps {first} to {last}, {devices}", ""]
    rows = sorted(times.categories.items(), key=lambda row: -row[1])
    rows += [("idle", times.idle), ("step", times.wall)]
    lines += [f"{name:<12} {ms:10.3f} ms {share(ms)}" for name, ms in rows]
    if sum(times.categories.values()) + times.idle > 1.02 * times.wall:
        lines += ["", "operations overlap, so that the shares add up to more than 100%"]
    lines += ["", f"{'longest operations':<54} ms  share  calls  category"]
    for name, category, source, ms, calls in times.ops:
        row = f"{name:<44.44} {ms:11.3f} {share(ms)} {calls:6.1f}  {category}"
        lines += [row] + ([f"    {source[-WIDTH:]}"] if source else [])
    return "\n".join(lines) + "\n"
