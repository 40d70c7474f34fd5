"""Trains GPT-2 on one GPU, in this project and in nanoGPT in turn, as whole processes.

    python -m benchmarks.gpu --nanogpt=CHECKOUT --torch_python=PYTHON --size=124m

Prints tokens per second (median over steps, the first left out), MFU and peak memory. Both train
the same shape in bfloat16 on the same GPT-2 tokens with the same number of sequences per step and
biases in all layers; nanoGPT with `torch.compile`, flash attention and fused AdamW. nanoGPT's
checkout and a Python with torch come from outside; without `--nanogpt`, only this project is timed.
Flags of train.py may follow after `--`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import timed
from configs.gpt2 import SIZES
from gpt2_jax.data.sources import Shakespeare
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.track.throughput import mfu

ROOT = Path(__file__).parent.parent
SEQ_LEN = 1024
# Runs nanoGPT's train.py, then prints what its allocator held at most.
PEER = """
import runpy, sys, torch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
print("device", torch.cuda.get_device_name())
print("peak bytes", torch.cuda.max_memory_allocated())
"""


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


def ours(args: argparse.Namespace, workdir: Path) -> tuple[Timing, dict[str, Any]]:
    command = [
        sys.executable,
        "train.py",
        f"--config=configs/gpt2.py:{args.size}",
        f"--workdir={workdir}",
        "--config.data.source=shakespeare",
        "--config.data.val_fraction=0.1",
        f"--config.train.steps={args.steps}",
        f"--config.train.batch_size={args.batch * args.accumulation}",
        f"--config.train.accumulation={args.accumulation}",
        "--config.train.log_every=5",
        "--config.train.eval_tokens=1024",
        "--config.train.sample_tokens=0",
        "--config.track.wandb.mode=disabled",
        *args.flags,
    ]
    seconds, _ = timed(command, ROOT, {"XDG_CACHE_HOME": str(workdir.parent / "cache")})
    facts = json.loads((workdir / "run.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [row["perf/step_ms"] for row in rows if row["step"] > 5]
    loss = rows[-1]["train/loss"]
    return Timing(statistics.median(times), facts["peak_bytes_per_device"], loss, seconds), facts


def nanogpt(args: argparse.Namespace, checkout: Path, out: Path) -> Timing:
    n_layer, n_head, n_embd, peak_lr, *_ = SIZES[args.size]
    flags = {
        "dataset": "bench",
        "out_dir": out,
        "batch_size": args.batch,
        "gradient_accumulation_steps": args.accumulation,
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
    return Timing(statistics.median(times[5:]), peak, loss, seconds)


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


def show(name: str, timing: Timing, args: argparse.Namespace, facts: dict[str, Any]) -> None:
    tokens_per_sec = args.batch * args.accumulation * SEQ_LEN / timing.step_ms * 1000
    share = mfu(tokens_per_sec, facts["flops_per_token"], facts["devices"][0], 1)
    print(
        f"{name:9} {args.size} {timing.step_ms:8.1f} ms  {tokens_per_sec:9,.0f} tokens/s  "
        f"MFU {100 * (share or 0):.1f} %  peak {timing.peak_bytes / 2**30:.1f} GiB  "
        f"loss {timing.loss:.3f}  whole process {timing.seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--size", default="124m", choices=SIZES)
    parser.add_argument("--batch", type=int, default=32, help="sequences per micro-batch")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("flags", nargs="*", help="further flags of train.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        peer = args.nanogpt and copy_nanogpt(args.nanogpt, tmp / "nanogpt")
        for i in range(args.repeats):
            timing, facts = ours(args, tmp / f"ours{i}")
            show("gpt2_jax", timing, args, facts)
            if peer:
                show("nanoGPT", nanogpt(args, peer, tmp / f"theirs{i}"), args, facts)


if __name__ == "__main__":
    main()
