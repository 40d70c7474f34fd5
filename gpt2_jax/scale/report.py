"""The plan as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_jax.config.sections import ModelConfig, TrainConfig
from gpt2_jax.errors import counted
from gpt2_jax.files import to_json
from gpt2_jax.scale.chips import GIB, PRICES, Chip
from gpt2_jax.scale.compiler import TooLarge
from gpt2_jax.scale.estimate import Estimate
from gpt2_jax.scale.figures import Figures


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes:
      target: the value of `--target`. n_devices: to pay for.
      figures: of the compiled step. estimate: None if the device's speed is not known.
      chip, price (US dollars per device and hour): None if unknown.
    """

    target: str
    n_devices: int
    figures: Figures
    estimate: Estimate | None
    chip: Chip | None
    price: float | None


def as_text(plan: Plan, model: ModelConfig, train: TrainConfig, total_tokens: int) -> str:
    """Returns a plan as lines for a terminal."""
    figures, found = plan.figures, plan.estimate
    blocks = [summary_lines(plan, model, train), memory_lines(figures)]
    blocks += [exchange_lines(figures), work_lines(figures)]
    if found is None:
        blocks.append([f"no estimate of the time: the speed of {figures.device_kind} is not known"])
    else:
        blocks += [time_lines(found), cost_lines(plan, total_tokens), assumption_lines(plan)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def as_json(plan: Plan | TooLarge, changes: Mapping[str, Any] | None = None) -> str:
    """Returns a plan as one JSON object on one line, with the config fields that it changes."""
    fits = plan.figures.fits if isinstance(plan, Plan) else False
    chosen = {"changes": dict(changes)} if changes else {}
    return to_json({"fits": fits} | dataclasses.asdict(plan) | chosen)


def summary_lines(plan: Plan, model: ModelConfig, train: TrainConfig) -> list[str]:
    """Returns the model, the mesh and the batch."""
    figures = plan.figures
    mesh = " x ".join(f"{name}={n}" for name, n in figures.mesh.items())
    parts = f"{train.accumulation} micro-batches of " if train.accumulation > 1 else ""
    lines = [
        f"{figures.n_params:,} parameters on {plan.n_devices} x {figures.device_kind} "
        f"({plan.target}), mesh {mesh}",
        f"{figures.tokens_per_step:,} tokens per step: {parts}"
        f"{counted(figures.rows, 'sequence')} per device",
        f"model.remat={model.remat}, attention kernel {figures.attention}; compiled in "
        f"{figures.compile_seconds:.0f} s",
    ]
    if (idle := plan.n_devices - figures.n_devices) > 0:
        lines.append(
            f"{counted(idle, 'device')} {'is' if idle == 1 else 'are'} idle, because a "
            "micro-batch has too few sequences: lower train.accumulation"
        )
    if figures.whole:
        lines.append(f"not split by the mesh: {', '.join(figures.whole)}")
    return lines


def memory_lines(figures: Figures) -> list[str]:
    """Returns the memory of a device, and whether the step fits."""
    parts = {
        "parameters": figures.parameters,
        "optimizer state": figures.optimizer,
        "gradients": figures.gradients,
    }
    if figures.peak is not None:
        parts["activations and the rest"] = max(0, figures.peak - sum(parts.values()))
        parts["peak"] = figures.peak
    rows = [[name, gib(n), ""] for name, n in parts.items()]
    if figures.memory is not None:
        verdict = {True: "fits", False: "DOES NOT FIT", None: ""}[figures.fits]
        rows.append(["available", gib(figures.memory), verdict])
    return ["memory per device", *columns(rows)]


def exchange_lines(figures: Figures) -> list[str]:
    """Returns the collectives by kind; empty if there are none."""
    rows = []
    for one in figures.exchanges:
        among = f"{one.devices} devices{' of several hosts' * one.between_hosts}"
        rows.append([one.kind, f"{one.count:,}", si(one.bytes, "B"), f"among {among}"])
    return ["collectives per step: number, size of the arrays", *columns(rows)] if rows else []


def work_lines(figures: Figures) -> list[str]:
    """Returns the FLOPs and the bytes of a step."""
    model = figures.flops_per_token * figures.tokens_per_step / figures.n_devices
    executed = figures.product_flops + figures.attention_flops
    rows = [
        ["of the model", si(model, "FLOP"), "6 N + 12 L D T per token"],
        ["executed", si(executed, "FLOP"), "with what is computed again"],
        ["memory traffic", si(sum(figures.traffic.values()), "B"), ""],
    ]
    return ["work per device and step", *columns(rows)]


def time_lines(found: Estimate) -> list[str]:
    """Returns the estimated time per step."""
    rows = [[name, f"{1000 * s:,.1f} ms", ""] for name, s in found.seconds.items() if s]
    rows.append(["step", f"{1000 * found.step_seconds:,.1f} ms", ""])
    return ["time per step, estimated", *columns(rows)]


def cost_lines(plan: Plan, total_tokens: int) -> list[str]:
    """Returns the estimated speed, time and cost of the run."""
    found = plan.estimate
    assert found is not None and plan.price is not None
    return [
        f"{found.tokens_per_sec:,.0f} tokens/s, MFU {100 * found.mfu:.1f} %",
        f"{total_tokens:,} tokens: {duration(found.days)}, ${found.cost:,.0f} at "
        f"${plan.price:.2f} per device and hour",
    ]


def assumption_lines(plan: Plan) -> list[str]:
    """Returns what the estimate assumes."""
    assert plan.chip is not None
    share = plan.chip.efficiency
    shares = [f"{share.products:.0%} of peak FLOP/s in matrix products"]
    if plan.figures.attention_flops:
        shares.append(f"{share.attention:.0%} in the attention kernel")
    return [
        "assumptions",
        f"  {', '.join(shares)},",
        f"  and {share.memory:.0%} of memory bandwidth for the rest ({share.source})",
        "  collectives use one axis of the network at full bandwidth, and nothing overlaps them",
        "  no time for data, evaluation and checkpoints",
        f"  {PRICES}; --price sets another",
    ]


def search_text(found: Sequence[tuple[Sequence[str], Plan]], total_tokens: int) -> str:
    """Returns the plans of a search as a table, with the assumptions of the first.

    Args:
      found: for each, the cells that describe it, and its plan.
    """
    head = ["data x fsdp x tensor", "rows", "micro-batches", "remat"]
    rows = [["", *head, "peak", "step", "tokens/s", "MFU", "days", "cost"]]
    for number, (cells, plan) in enumerate(found, 1):
        made, peak = plan.estimate, plan.figures.peak
        assert made is not None and peak is not None
        rows.append(
            [
                *(str(number), *cells, gib(peak), f"{1000 * made.step_seconds:,.0f} ms"),
                *(f"{made.tokens_per_sec:,.0f}", f"{100 * made.mfu:.1f} %", f"{made.days:,.2f}"),
                f"${made.cost:,.0f}",
            ]
        )
    first = found[0][1]
    return "\n".join(
        [
            f"{first.figures.n_params:,} parameters on {first.n_devices} x "
            f"{first.figures.device_kind} ({first.target}), {total_tokens:,} tokens; rows are "
            "sequences per device and micro-batch",
            "",
            *columns(rows),
            "",
            *assumption_lines(first),
        ]
    )


def too_large_text(target: str, found: TooLarge, memory: int | None) -> str:
    """Returns why a step does not fit, for a compiler that refuses it."""
    needed = f"at least {gib(found.needed)}" if found.needed else "more"
    available = f"; {gib(memory)} are available" if memory else ""
    return (
        f"DOES NOT FIT on {target}: a device needs {needed}{available}\n"
        "raise train.accumulation, set model.remat, or split the state with mesh.fsdp"
    )


def gib(n_bytes: float) -> str:
    """Returns a number of bytes in GiB, or MiB if it is small."""
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:,.1f} MiB"


def si(value: float, unit: str) -> str:
    """Returns a number with three digits and a decimal prefix."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # which is rounded to three digits
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def duration(days: float) -> str:
    """Returns a number of days, or hours if it is small."""
    return f"{days:,.1f} days" if days >= 2 else f"{24 * days:,.1f} hours"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as indented columns; those between the first and the last align right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        inner = [cell.rjust(n) for cell, n in zip(row[1:-1], widths[1:-1], strict=True)]
        return "  ".join(["", row[0].ljust(widths[0]), *inner, row[-1]]).rstrip()

    return [line(row) for row in rows]
