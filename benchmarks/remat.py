"""Compares the policies of `model.remat` for the local device, and prints a table.

    python -m benchmarks.remat --config=quickstart
    python -m benchmarks.remat --config=gpt2:124m --batch=64 --scan

Each policy's step is compiled; its peak memory is the compiler's figure. Then all are timed in
turn, on random tokens, so that their ratios do not depend on the machine's load.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gpt2_jax.config import FIELDS, Config, freeze, replace, resolve
from gpt2_jax.config.check import check
from gpt2_jax.data.batch import Batch
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.train.compiled_step import CompiledStep, compile_step
from gpt2_jax.train.distributed.mesh import configure_devices
from gpt2_jax.train.malloc import keep_freed_memory

CONFIGS = Path(__file__).parent.parent / "configs"
POLICIES = tuple(FIELDS["model.remat"].choices)


@dataclass(frozen=True)
class Policy:
    """A compiled step, and a batch to time it on."""

    name: str
    program: CompiledStep
    batch: Batch

    def milliseconds(self, n_steps: int) -> float:
        """Returns the time per step, on a new state that is then freed."""
        state, metrics = self.program.step(self.program.init(), self.batch)
        jax.block_until_ready(state)
        started = time.perf_counter()
        for _ in range(n_steps):
            state, metrics = self.program.step(state, self.batch)
            metrics["loss"].block_until_ready()  # several steps in flight can deadlock on a CPU
        return (time.perf_counter() - started) / n_steps * 1e3


def compiled(config: Config) -> list[Policy]:
    """Returns the compiled step of each policy."""
    shape = (config.train.batch_size, config.data.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size or 1, shape, np.int32)
    policies = []
    for name in POLICIES:
        program = compile_step(replace(config, {"model.remat": name}))
        policies.append(Policy(name, program, program.put(Batch(tokens))))
    return policies


def load(argument: str, batch: int | None, accumulation: int | None, scan: bool) -> Config:
    """Returns a shipped config, `NAME` or `NAME:arg`, resolved; with `scan`, blocks are scanned."""
    name, has_arg, arg = argument.partition(":")
    made = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*([arg] if has_arg else []))
    made.train.batch_size = batch or made.train.batch_size
    made.train.accumulation = accumulation or (1 if batch else made.train.accumulation)
    made.model.unroll = made.model.unroll and not scan
    config = freeze(made)
    check(config)
    return resolve(config, load_tokenizer(config.data.tokenizer).size)


def time_all(policies: list[Policy], rounds: int, n_steps: int) -> dict[str, list[float]]:
    """Returns each policy's milliseconds per step in each round."""
    times: dict[str, list[float]] = {policy.name: [] for policy in policies}
    for _ in range(rounds):
        for policy in policies:
            times[policy.name].append(policy.milliseconds(n_steps))
    return times


def table(policies: list[Policy], times: dict[str, list[float]]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| `model.remat` | peak memory per device | ms per step | compared with `none` | compile |",
        "|---|---|---|---|---|",
    ]
    for policy in policies:
        program, own = policy.program, times[policy.name]
        ratio = statistics.median(a / b for a, b in zip(own, times["none"], strict=True))
        peak = f"{program.peak_bytes / 2**20:,.0f} MiB" if program.peak_bytes else "not reported"
        lines.append(
            f"| `{policy.name}` | {peak} | {statistics.median(own):.1f} | {ratio:.2f} | "
            f"{program.compile_seconds:.1f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="quickstart", help="name in configs/, or NAME:arg")
    parser.add_argument("--batch", type=int, help="sequences per step; default: the config's")
    parser.add_argument("--accumulation", type=int, help="default: 1 with --batch")
    parser.add_argument("--scan", action="store_true", help="scan the blocks, not unrolled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of each policy per round")
    args = parser.parse_args()
    config = load(args.config, args.batch, args.accumulation, args.scan)
    configure_devices(config.train, config.mesh)
    keep_freed_memory(config.model, config.data, config.train, config.mesh)
    policies, train = compiled(config), config.train
    devices = policies[0].program.devices
    print(
        f"`{args.config}`, {train.batch_size} x {config.data.seq_len} tokens per step in "
        f"{train.accumulation} micro-batch(es), blocks "
        f"{'unrolled' if config.model.unroll else 'scanned'}, {len(devices)} x {devices[0]}, jax "
        f"{jax.__version__}\n"
    )
    print(table(policies, time_all(policies, args.rounds, args.steps)))


if __name__ == "__main__":
    main()
