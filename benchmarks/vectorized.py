"""Times runs trained together, compared with the same runs one after the other.

    python -m benchmarks.vectorized                    only steps, without compilation
    python -m benchmarks.vectorized --whole --runs=4   whole commands, including compilation

By default, one process alternates between a vectorized trainer, one run on one device and one run
on all devices. --whole compares a study of N seeds with N runs of train.py, as processes that start
with an empty compilation cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.processes import timed
from gpt2_jax.ablation.vectorized import STEPS_PER_DISPATCH, VectorizedPrograms, VectorizedTrainer
from gpt2_jax.config import Config, replace, resolve
from gpt2_jax.config.check import check
from gpt2_jax.data.batch import Batch
from gpt2_jax.train.compiled_step import CompiledStep, compile_step
from gpt2_jax.train.distributed.mesh import cores
from gpt2_jax.train.malloc import keep_freed_memory

SIZES = ((4, 128), (4, 64), (2, 64), (2, 32))  # layers, width
STUDY = """
import runpy
from gpt2_jax.ablation.study import Study

def get_config():
    return runpy.run_path("configs/quickstart.py")["get_config"]()

def get_study():
    return Study([{{}}], {{}}, seeds=tuple(range({runs})))
"""


def sized(n_layer: int, n_embd: int, devices: int | None, seed: int = 0) -> Config:
    config = replace(
        Config(),
        {
            "seed": seed,
            "model.n_layer": n_layer,
            "model.n_head": 4,
            "model.n_embd": n_embd,
            "model.n_positions": 128,
            "data.seq_len": 128,
            "optimizer.warmup_steps": 100,
            "train.batch_size": 8,
            "train.accumulation": 2,
            "mesh.data": devices,
        },
    )
    check(config)
    return resolve(config, 257)


def alone(program: CompiledStep, tokens: np.ndarray, n: int) -> float:
    """Returns the seconds per step of a run trained alone."""
    state, started = program.init(), time.perf_counter()
    for i in range(n):
        state, metrics = program.step(state, program.put(Batch(tokens[i % len(tokens)])))
        metrics["loss"].block_until_ready()
    return (time.perf_counter() - started) / n


def together(trainer: VectorizedTrainer, tokens: np.ndarray, n: int) -> float:
    """Returns the seconds per step and run of runs trained together."""
    started = time.perf_counter()
    for _ in range(n // tokens.shape[1]):
        jax.block_until_ready(trainer.advance(tokens))
    return (time.perf_counter() - started) / n / len(trainer.configs)


def measure(size: tuple[int, int], rounds: int, n_runs: int) -> tuple[int, list[list[float]]]:
    """Returns the parameter count, and each round's milliseconds per step in all three ways."""
    own = [sized(*size, 1, seed) for seed in range(n_runs)]
    trainer = VectorizedTrainer(own, VectorizedPrograms.fastest(own[0], n_runs))
    one, every = (compile_step(sized(*size, n)) for n in (1, None))
    draw = np.random.default_rng(0).integers
    tokens = draw(0, 257, (n_runs, STEPS_PER_DISPATCH, 8, 129), np.int32)
    ways = [
        lambda n: alone(one, tokens[0], n),
        lambda n: alone(every, tokens[0], n),
        lambda n: together(trainer, tokens, max(n, STEPS_PER_DISPATCH)),
    ]
    for way in ways:
        way(3)
    times = [[way(2 * STEPS_PER_DISPATCH) * 1e3 for way in ways] for _ in range(rounds)]
    return trainer.model_def.n_params(), times


def steps(rounds: int, n_runs: int) -> None:
    """Prints a table with one row per model size."""
    devices = jax.devices()
    print(
        f"{len(devices)} x {devices[0].device_kind}, {n_runs} runs together; ms per step, medians"
    )
    print("| parameters | one device | all devices | together | ratio to one | to all |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        n, times = measure(size, rounds, n_runs)
        columns = [statistics.median(column) for column in zip(*times, strict=True)]
        ratios = [statistics.median(row[i] / row[2] for row in times) for i in (0, 1)]
        shown = [f"{value:.1f}" for value in columns] + [f"{value:.2f}" for value in ratios]
        print(f"| {n:,} | {' | '.join(shown)} |", flush=True)


def whole(runs: int, steps: int, rounds: int) -> None:
    """Prints the seconds that a study takes, and the same runs of train.py."""
    root = Path(__file__).parent.parent
    shared = [f"--config.train.steps={steps}", "--config.train.sample_tokens=0"]

    def seconds(commands: list[list[str]], cache: str) -> float:
        env = {"WANDB_MODE": "disabled", "JAX_COMPILATION_CACHE_DIR": cache}
        return sum(timed([sys.executable, *words, *shared], root, env)[0] for words in commands)

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seeds.py"
            path.write_text(STUDY.format(runs=runs))
            one = [
                ["train.py", "--config=configs/quickstart.py", f"--workdir={folder}/{i}",
                 f"--config.seed={i}"]
                for i in range(runs)
            ]  # fmt: skip
            all_ = ["-m", "gpt2_jax", "ablate", f"--config={path}", f"--workdir={folder}/c"]
            a, b = seconds(one, f"{folder}/xla1"), seconds([all_], f"{folder}/xla2")
            print(f"{runs} x train.py {a:.1f} s, study {b:.1f} s: {a / b:.2f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="whole commands")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--together", type=int, default=None, help="runs; default: cores, 16 on a GPU"
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    if args.whole:
        whole(args.runs, args.steps, args.rounds)
    else:
        jax.config.update("jax_num_cpu_devices", cores())
        small = sized(4, 128, 1)
        keep_freed_memory(small.model, small.data, small.train, small.mesh)
        default = cores() if jax.default_backend() == "cpu" else 16
        steps(args.rounds, args.together or default)


if __name__ == "__main__":
    main()
