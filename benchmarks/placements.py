"""Times the train step of every placement relative to pre_ln's, and prints a table.

    python benchmarks/placements.py > docs/placements_speed.md

The size is the quickstart's (4 layers, width 128, 8 x 128 bytes per step), with AdamW. Both steps
run alternately in one process, so that their ratio does not depend on the machine's load.
"""

from __future__ import annotations

import argparse
import platform
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt2_jax.config import Config, freeze, resolve
from gpt2_jax.config.check import check
from gpt2_jax.data.batch import Batch
from gpt2_jax.placements import PRESETS
from gpt2_jax.train.compiled_step import CompiledStep, compile_step
from gpt2_jax.train.distributed.mesh import configure_devices
from gpt2_jax.train.malloc import keep_freed_memory

ROOT = Path(__file__).parent.parent
BASE = "pre_ln"
HEADER = """# Speed of each placement

Written by `python benchmarks/placements.py > docs/placements_speed.md`. Models have the
quickstart's size: 4 layers, width 128, 8 x 128 bytes per step; AdamW, float32. Times are medians of
rounds that alternate with pre_ln in one process. Only the ratios carry over to other machines.

"""


def quickstart(placement: str) -> Config:
    config = runpy.run_path(str(ROOT / "configs/quickstart.py"))["get_config"]()
    config.placement.preset = placement
    config.optimizer.name = "adamw"  # Muon's cost would depend on the placement's matrices
    frozen = freeze(config)
    check(frozen)
    return resolve(frozen, 257)


def batch(config: Config) -> Batch:
    shape = (config.train.batch_size, config.data.seq_len + 1)
    return Batch(np.random.default_rng(0).integers(0, 257, shape, np.int32))


def timed(program: CompiledStep, state: Any, tokens: Any, n: int) -> tuple[Any, float]:
    """Returns the state after n steps, and the milliseconds per step."""
    started = time.perf_counter()
    for _ in range(n):
        state, metrics = program.step(state, tokens)
        metrics["loss"].block_until_ready()  # more than one step in flight can deadlock on a CPU
    return state, (time.perf_counter() - started) / n * 1e3


def compare(
    name: str, base: CompiledStep, rounds: int, n: int
) -> tuple[CompiledStep, float, float]:
    """Returns the program, its milliseconds per step, and the ratio to the base's."""
    config = quickstart(name)
    program = compile_step(config)
    tokens, runs = program.put(batch(config)), {}
    for key, one in (("own", program), ("base", base)):
        runs[key] = timed(one, one.start(batch(config)), tokens, 3)[0]
    own, ratios = [], []
    for _ in range(rounds):
        runs["own"], mine = timed(program, runs["own"], tokens, n)
        runs["base"], theirs = timed(base, runs["base"], tokens, n)
        own.append(mine)
        ratios.append(mine / theirs)
    return program, statistics.median(own), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps of each program per round")
    parser.add_argument("--placements", default=",".join(PRESETS))
    args = parser.parse_args()
    config = quickstart(BASE)
    configure_devices(config.train, config.mesh)
    keep_freed_memory(config.model, config.data, config.train, config.mesh)
    base = compile_step(config)
    devices = base.mesh.devices
    where = f"{devices.size} x {devices.flat[0].device_kind} devices, jax {jax.__version__}"
    print(f"{HEADER}{where}, Python {platform.python_version()}.\n")
    print("| placement | ms per step | compared with pre_ln | parameters | compile, s |")
    print("|---|---|---|---|---|")
    for name in args.placements.split(","):
        program, ms, ratio = compare(name, base, args.rounds, args.steps)
        size = program.model_def.n_params()
        row = f"| `{name}` | {ms:.1f} | {ratio:.2f} | {size:,} | {program.compile_seconds:.1f} |"
        print(row, flush=True)
        print(row, file=sys.stderr)


if __name__ == "__main__":
    main()
