"""Times runs trained together beside the same runs one after the other.

    python benchmarks/population.py                    updates alone, programs compiled before
    python benchmarks/population.py --whole --runs=4   whole commands, from nothing to the last file

Updates: members of a population, the run of train.py on one device, and that on all of them, in
turn in one process. Whole: a campaign of N seeds beside N times train.py, as processes, each with
an empty cache of compiled programs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.population import AT_ONCE, Lanes, Population
from gpt2_jax.config_check import check
from gpt2_jax.train.memory import keep_freed_memory
from gpt2_jax.train.mesh import cores
from gpt2_jax.train.program import Program, compile_program

SIZES = ((4, 128), (4, 64), (2, 64), (2, 32))  # layers, width
CAMPAIGN = """
import runpy
from gpt2_jax.ablate.campaign import Campaign

def get_config():
    return runpy.run_path("configs/quickstart.py")["get_config"]()

def get_campaign():
    return Campaign([{{}}], {{}}, seeds=tuple(range({runs})))
"""


def sized(n_layer: int, n_embd: int, devices: int | None, seed: int = 0) -> ConfigDict:
    config = configs.default()
    sizes = {"n_head": 4, "n_positions": 128, "n_layer": n_layer, "n_embd": n_embd}
    config.model.update(sizes)
    config.data.seq_len, config.train.batch_size, config.train.accumulation = 128, 8, 2
    config.optimizer.warmup_steps, config.mesh.data, config.seed = 100, devices, seed
    check(config)
    return configs.resolve(config, 257)


def alone(program: Program, tokens: np.ndarray, n: int) -> float:
    """Returns the seconds of an update of one run."""
    state, started = program.init(), time.perf_counter()
    for i in range(n):
        state, metrics = program.step(state, program.put(tokens[i % len(tokens)]))
        metrics["loss"].block_until_ready()
    return (time.perf_counter() - started) / n


def together(population: Population, tokens: np.ndarray, n: int) -> float:
    """Returns the seconds of an update of one member."""
    started = time.perf_counter()
    for _ in range(n // tokens.shape[1]):
        jax.block_until_ready(population.advance(tokens))
    return (time.perf_counter() - started) / n / len(population.configs)


def measure(size: tuple[int, int], rounds: int, members: int) -> tuple[int, list[list[float]]]:
    """Returns the parameters, and for each round the three ways' milliseconds an update."""
    own = [sized(*size, 1, seed) for seed in range(members)]
    population = Population(own, Lanes.fastest(own[0], members))
    one, every = (compile_program(sized(*size, n)) for n in (1, None))
    draw = np.random.default_rng(0).integers
    tokens = draw(0, 257, (members, AT_ONCE, 8, 129), np.int32)
    ways = [
        lambda n: alone(one, tokens[0], n),
        lambda n: alone(every, tokens[0], n),
        lambda n: together(population, tokens, max(n, AT_ONCE)),
    ]
    for way in ways:
        way(3)
    times = [[way(2 * AT_ONCE) * 1e3 for way in ways] for _ in range(rounds)]
    return population.structure.n_params(), times


def updates(rounds: int, members: int) -> None:
    """Prints a table of all sizes."""
    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, {members} members; ms an update, medians")
    print("| parameters | one device | all devices | together | ratio to one | to all |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        n, times = measure(size, rounds, members)
        columns = [statistics.median(column) for column in zip(*times, strict=True)]
        ratios = [statistics.median(row[i] / row[2] for row in times) for i in (0, 1)]
        shown = [f"{value:.1f}" for value in columns] + [f"{value:.2f}" for value in ratios]
        print(f"| {n:,} | {' | '.join(shown)} |", flush=True)


def whole(runs: int, steps: int, rounds: int) -> None:
    """Prints the seconds of a campaign's command and of as many of train.py's."""
    root = Path(__file__).parent.parent
    shared = [f"--config.train.steps={steps}", "--config.train.sample_tokens=0"]

    def timed(commands: list[list[str]], cache: str) -> float:
        kept = {"WANDB_MODE": "disabled", "JAX_COMPILATION_CACHE_DIR": cache}
        env, started = os.environ | kept, time.perf_counter()
        for command in commands:
            words = [sys.executable, *command, *shared]
            subprocess.run(words, cwd=root, env=env, check=True, capture_output=True)
        return time.perf_counter() - started

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seeds.py"
            path.write_text(CAMPAIGN.format(runs=runs))
            one = [
                ["train.py", "--config=configs/quickstart.py", f"--workdir={folder}/{i}",
                 f"--config.seed={i}"]
                for i in range(runs)
            ]  # fmt: skip
            all_ = ["-m", "gpt2_jax.ablate.campaign", f"--config={path}", f"--workdir={folder}/c"]
            a, b = timed(one, f"{folder}/xla1"), timed([all_], f"{folder}/xla2")
            print(f"{runs} x train.py {a:.1f} s, campaign {b:.1f} s: {a / b:.2f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="whole commands")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=None, help="unset: cores, 16 on a GPU")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    if args.whole:
        whole(args.runs, args.steps, args.rounds)
    else:
        keep_freed_memory(sized(4, 128, 1))
        jax.config.update("jax_num_cpu_devices", cores())
        default = cores() if jax.default_backend() == "cpu" else 16
        updates(args.rounds, args.members or default)


if __name__ == "__main__":
    main()
