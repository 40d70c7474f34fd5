"""Where the bytes of a GPU's train step go, read from the program compiled for it: a table.

    python -m benchmarks.traffic --config=gpt2:124m --batch=64
    python -m benchmarks.traffic --config=gpt2:1558m --batch=16 --remat=elementwise

Needs no GPU, only the extra `plan-gpu`. What counts as a moved byte is defined in
`gpt2_jax.hlo.traffic`. The lowest time of an instruction is that of its bytes at the memory's
bandwidth, or of its FLOPs at 80% of the peak, whichever is longer.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from dataclasses import dataclass

import jax

from benchmarks.remat import load
from gpt2_jax.config import FIELDS, Config, replace
from gpt2_jax.hlo.kinds import ATTENTION, category_of
from gpt2_jax.hlo.text import Instruction, Program, array_shape, parse
from gpt2_jax.hlo.traffic import instruction_bytes
from gpt2_jax.scale.chips import Chip
from gpt2_jax.scale.flops import executed_flops
from gpt2_jax.scale.targets import absent_devices, parse_target, require_compiler
from gpt2_jax.track.throughput import peak_flops
from gpt2_jax.train.compiled_step import CompiledStep, compile_step

REACHABLE = 0.8  # of the peak FLOP/s, in the largest matrix products


@dataclass
class Work:
    """What the instructions of a category do in one step: bytes moved, and the lowest seconds."""

    moved: float = 0.0
    seconds: float = 0.0


def work_by_category(
    program: Program, attention_flops: float, bandwidth: float, flops: float
) -> dict[str, Work]:
    """Returns the work of each category of a profile.

    Args:
      attention_flops: of the attention kernels, which the program does not show.
      bandwidth: bytes per second. flops: FLOP/s of matrix products and of attention.
    """
    found: dict[str, Work] = defaultdict(Work)
    for computation, name, times in program.walk():
        body = program.computations[computation]
        if not (moved := instruction_bytes(program, body, body[name])):
            continue
        category = category_of(program, body[name])
        assert category is not None  # control flow moves nothing itself
        one = found[category]
        one.moved += times * moved
        one.seconds += times * max(moved / bandwidth, product_flops(program, body[name]) / flops)
    if attention_flops:
        one = found[ATTENTION]
        one.seconds = max(one.seconds, attention_flops / flops)
    return dict(found)


def product_flops(program: Program, instruction: Instruction) -> int:
    """Returns the FLOPs of the matrix products that an instruction is or contains."""
    total = 0
    for body, dot in _dots(program, instruction):
        lhs = array_shape(body[dot.operands[0]].type)
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
        contracted = [lhs[int(axis)] for axis in axes[1].split(",")] if axes and axes[1] else []
        total += 2 * math.prod(array_shape(dot.type)) * math.prod(contracted)
    return total


def _dots(
    program: Program, instruction: Instruction
) -> list[tuple[dict[str, Instruction], Instruction]]:
    if not instruction.is_fusion:
        return []
    bodies = [program.computations[name] for name in instruction.called]
    inner = [(body, one) for body in bodies for one in body.values()]
    nested = [found for _, one in inner for found in _dots(program, one)]
    return nested + [(body, one) for body, one in inner if one.op == "dot"]


def table(step: CompiledStep, chip: Chip) -> str:
    """Returns the table of a compiled step as Markdown."""
    peak = peak_flops(chip.kind)
    assert peak is not None
    attention = executed_flops(step.jaxpr.jaxpr).attention if step.attention != "xla" else 0
    program = parse(step.hlo())
    found = work_by_category(program, attention, chip.bandwidth, REACHABLE * peak)
    rows = sorted(found.items(), key=lambda row: -row[1].moved)
    total = Work(sum(one.moved for _, one in rows), sum(one.seconds for _, one in rows))
    lines = ["| category | GB | lowest ms |", "|---|---|---|"]
    lines += [f"| {name} | {one.moved / 1e9:.1f} | {1e3 * one.seconds:.1f} |" for name, one in rows]
    lines += [f"| **all** | **{total.moved / 1e9:.0f}** | **{1e3 * total.seconds:.1f}** |"]
    return "\n".join(lines)


def title(config: Config, step: CompiledStep, chip: Chip) -> str:
    """Returns what was compiled, as a line."""
    model, train = config.model, config.train
    blocks = "unrolled" if model.unroll else "scanned"
    assert step.peak_bytes is not None
    return (
        f"{model.n_layer} x {model.n_embd}, {train.batch_size} x {config.data.seq_len} tokens, "
        f"{model.dtype}, blocks {blocks}, `model.remat={model.remat}`, {chip.kind}, "
        f"jax {jax.__version__}, peak {step.peak_bytes / 2**30:.1f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="gpt2:124m", help="a file in configs/")
    parser.add_argument("--batch", type=int, required=True, help="sequences, in one micro-batch")
    parser.add_argument("--target", default="h100:1", help="as of `gpt2-jax plan`")
    parser.add_argument("--remat", default="none", choices=FIELDS["model.remat"].choices)
    parser.add_argument("--scan", action="store_true", help="scan the blocks, not unrolled")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    machine = parse_target(args.target)
    require_compiler(machine)
    if machine.chip is None or machine.n_devices != 1:
        parser.error("--target must be one GPU, such as h100:1")
    config = load(args.config, args.batch, None, args.scan)
    config = replace(config, {"model.remat": args.remat})
    step = compile_step(config, absent_devices(machine))
    print(f"{title(config, step, machine.chip)}\n\n{table(step, machine.chip)}")


if __name__ == "__main__":
    main()
