"""Times whole training processes, ours and nanoGPT's, alternating on the same machine and text.

    python -m benchmarks.nanogpt --nanogpt=CHECKOUT --torch_python=PYTHON --text=input.txt

Both train 4 layers, 4 heads, width 128, block 64, batch 12 for 2,000 steps on Tiny Shakespeare.
Times are from start to exit, including imports, compilation, evaluation and checkpoints. You
provide a checkout of nanoGPT and a Python with torch; nanoGPT runs in a temporary copy.
"""

from __future__ import annotations

import argparse
import pickle
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.processes import timed

ROOT = Path(__file__).parent.parent
NANOGPT_FLAGS = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--eval_interval=1000",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]


def copy_nanogpt(checkout: Path, text: Path, into: Path) -> Path:
    shutil.copytree(checkout, into, ignore=shutil.ignore_patterns(".git"))
    content = text.read_text(encoding="utf-8")
    ids = {ch: i for i, ch in enumerate(sorted(set(content)))}
    tokens = np.array([ids[ch] for ch in content], np.uint16)
    data = into / "data" / "shakespeare_char"
    cut = int(0.9 * len(tokens))
    tokens[:cut].tofile(data / "train.bin")
    tokens[cut:].tofile(data / "val.bin")
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": {i: ch for ch, i in ids.items()}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    return into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        peer = copy_nanogpt(args.nanogpt, args.text, tmp / "nanogpt")
        for i in range(args.pairs):
            # A new cache each time, so that our time includes compilation.
            seconds, out = timed(
                [
                    sys.executable,
                    "train.py",
                    "--config=configs/shakespeare.py",
                    f"--config.data.source={args.text.absolute()}",
                    f"--workdir={tmp}/run{i}",
                    "--config.track.wandb.mode=disabled",
                ],
                ROOT,
                {"XDG_CACHE_HOME": f"{tmp}/cache{i}"},
            )
            ours.append(seconds)
            loss = re.findall(r"validation loss ([\d.]+) nats", out)[-1]
            print(f"gpt2_jax {seconds:6.1f} s  validation loss {loss}", flush=True)
            command = [args.torch_python, "train.py", *NANOGPT_FLAGS, f"--out_dir={tmp}/out{i}"]
            seconds, out = timed(command, peer, {})
            theirs.append(seconds)
            loss = re.findall(r"val loss ([\d.]+)", out)[-1]
            print(f"nanoGPT  {seconds:6.1f} s  validation loss {loss} (20 batches)", flush=True)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    a, b = statistics.median(ours), statistics.median(theirs)
    pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"medians: gpt2_jax {a:.1f} s, nanoGPT {b:.1f} s; ratios of the pairs: {pairs}")


if __name__ == "__main__":
    main()
