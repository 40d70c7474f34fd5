"""GPT-2's sizes on one GPU, in this project and in nanoGPT in turn, as whole processes.

    python -m benchmarks.throughput --suite=gpu --nanogpt=CHECKOUT --torch_python=PYTHON

Prints tokens per second (median over steps, the first ones left out), MFU and peak memory for each
process, and the ratio of the medians for each size. Both train the same shape in bfloat16 on the
same GPT-2 tokens with the same number of sequences per step and biases in all layers; nanoGPT with
`torch.compile`, flash attention and fused AdamW. If nanoGPT runs out of memory, its micro-batch is
halved. nanoGPT's checkout and a Python with torch come from outside; without `--nanogpt`, only this
project is timed. With `--xla_flags`, the first size is also timed with each of `XLA_FLAGS`. Flags
of train.py may follow after `--`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.processes import timed
from configs.gpt2 import SIZES
from gpt2_jax.data.sources import Shakespeare
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.track.throughput import mfu

ROOT = Path(__file__).parent.parent
SEQ_LEN = 1024
WARMUP = 5  # steps that are not timed
# Sequences per micro-batch, and micro-batches per step, that are fastest on an 80 GB GPU.
BATCHES = {"124m": (64, 1), "350m": (32, 1), "774m": (16, 2), "1558m": (16, 2)}
XLA_FLAGS = (
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_autotune_level=5",
)
# Runs nanoGPT's train.py, then prints what its allocator held at most.
PEER = """
import runpy, sys, torch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
print("peak bytes", torch.cuda.max_memory_allocated())
"""


@dataclass(frozen=True)
class Shape:
    """What a process trains.

    Attributes:
      size: a key of `SIZES`. batch: sequences per micro-batch.
      accumulation: micro-batches per step.
    """

    size: str
    batch: int
    accumulation: int

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch * self.accumulation * SEQ_LEN


@dataclass(frozen=True)
class Timing:
    """What a process reported.

    Attributes:
      step_ms: median time per step. peak_bytes: on the device. loss: of the last step.
      seconds: from start to exit.
    """

    step_ms: float
    peak_bytes: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Card:
    """What the share of the peak is computed from: FLOPs per token, and the kind of device."""

    flops_per_token: float
    device: str


def ours(
    shape: Shape, args: argparse.Namespace, workdir: Path, xla_flags: str = ""
) -> tuple[Timing, Card]:
    """Trains a size with this project."""
    command = [
        sys.executable,
        "train.py",
        f"--config=configs/gpt2.py:{shape.size}",
        f"--workdir={workdir}",
        "--config.data.source=shakespeare",
        "--config.data.val_fraction=0.1",
        f"--config.train.steps={args.steps}",
        f"--config.train.batch_size={shape.batch * shape.accumulation}",
        f"--config.train.accumulation={shape.accumulation}",
        "--config.train.log_every=5",
        "--config.train.eval_tokens=1024",
        "--config.train.sample_tokens=0",
        "--config.track.wandb.mode=disabled",
        *args.flags,
    ]
    environment = {"XDG_CACHE_HOME": str(workdir.parent / "cache")}
    seconds, _ = timed(command, ROOT, environment | ({"XLA_FLAGS": xla_flags} if xla_flags else {}))
    facts = json.loads((workdir / "run.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [row["perf/step_ms"] for row in rows if row["step"] > WARMUP]
    loss, peak = rows[-1]["train/loss"], facts["peak_bytes_per_device"]
    shutil.rmtree(workdir)  # a checkpoint of 1558m has 19 GB
    card = Card(facts["flops_per_token"], facts["devices"][0])
    return Timing(statistics.median(times), peak, loss, seconds), card


def nanogpt(shape: Shape, args: argparse.Namespace, checkout: Path, out: Path) -> Timing:
    """Trains a size with nanoGPT."""
    n_layer, n_head, n_embd, peak_lr, *_ = SIZES[shape.size]
    flags = {
        "dataset": "bench",
        "out_dir": out,
        "batch_size": shape.batch,
        "gradient_accumulation_steps": shape.accumulation,
        "block_size": SEQ_LEN,
        "max_iters": args.steps,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "bias": True,
        "learning_rate": peak_lr,
        "eval_interval": 10**6,
        "eval_iters": 1,
        "log_interval": 1,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    seconds, output = timed([args.torch_python, "-c", PEER, *words], checkout, {})
    times = [float(found) for found in re.findall(r"time ([\d.]+)ms", output)]
    loss = float(re.findall(r"loss ([\d.]+), time", output)[-1])
    peak = int(re.findall(r"peak bytes (\d+)", output)[-1])
    return Timing(statistics.median(times[WARMUP:]), peak, loss, seconds)


def fitting_nanogpt(
    shape: Shape, args: argparse.Namespace, checkout: Path, out: Path
) -> tuple[Timing, Shape]:
    """Trains a size with nanoGPT, with the largest micro-batch that fits."""
    while True:
        try:
            return nanogpt(shape, args, checkout, out), shape
        except SystemExit as failure:
            if "OutOfMemoryError" not in str(failure) or shape.batch == 1:
                raise
        shape = Shape(shape.size, shape.batch // 2, shape.accumulation * 2)


def copy_nanogpt(checkout: Path, into: Path) -> Path:
    """Copies nanoGPT, with the text's GPT-2 tokens where it reads them."""
    shutil.copytree(checkout, into, ignore=shutil.ignore_patterns(".git"))
    text = "".join(piece.text for piece in Shakespeare().pieces())
    ids = np.asarray(load_tokenizer("gpt2").encode([text])[0], np.uint16)
    folder = into / "data" / "bench"
    folder.mkdir(parents=True)
    cut = int(0.9 * len(ids))
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    return into


def show(name: str, timing: Timing, shape: Shape, card: Card) -> None:
    """Prints a line about a process."""
    tokens_per_sec = shape.tokens / timing.step_ms * 1000
    share = mfu(tokens_per_sec, card.flops_per_token, card.device, 1)
    print(
        f"{name:9} {shape.size:6}{shape.batch:4} sequences x {shape.accumulation:<3}"
        f"{timing.step_ms:8.1f} ms  {tokens_per_sec:9,.0f} tokens/s  "
        f"MFU {100 * (share or 0):.1f} %  peak {timing.peak_bytes / 2**30:.1f} GiB  "
        f"loss {timing.loss:.3f}  whole process {timing.seconds:.0f} s",
        flush=True,
    )


def compare(shape: Shape, args: argparse.Namespace, peer: Path | None, tmp: Path) -> None:
    """Times a size in both projects, alternating, and prints the ratio of the medians."""
    here, there, peer_shape = [], [], shape
    for i in range(args.repeats):
        timing, card = ours(shape, args, tmp / f"ours-{shape.size}-{i}")
        here.append(timing.step_ms)
        show("gpt2_jax", timing, shape, card)
        if peer is not None:
            out = tmp / f"theirs-{shape.size}-{i}"
            timing, peer_shape = fitting_nanogpt(peer_shape, args, peer, out)
            there.append(timing.step_ms)
            show("nanoGPT", timing, peer_shape, card)
    if there:
        ratio = statistics.median(there) / statistics.median(here)
        print(f"{shape.size}: {ratio:.3f} times nanoGPT's tokens per second", flush=True)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--batch", type=int, help="sequences per micro-batch; unset: by size")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--xla_flags", action="store_true", help="also try flags of XLA")
    parser.add_argument("flags", nargs="*", help="further flags of train.py")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        peer = args.nanogpt and copy_nanogpt(args.nanogpt, tmp / "nanogpt")
        shapes = [
            Shape(size, *((args.batch, 1) if args.batch else BATCHES[size])) for size in args.sizes
        ]
        for shape in shapes:
            compare(shape, args, peer, tmp)
        for flags in XLA_FLAGS if args.xla_flags else ():
            timing, card = ours(shapes[0], args, tmp / "flags", flags)
            print(flags)
            show("gpt2_jax", timing, shapes[0], card)
