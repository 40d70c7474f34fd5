"""Times tasks on a CPU, ours and PyTorch's, in turn on the same machine, tokens and padding.

    python -m benchmarks.tasks --torch_python=PYTHON --bert=FOLDER --tags=FILE

- `tag`: train steps of a BERT with a head for tags, ours and transformers' in a plain loop with
  AdamW. `--bert` is a folder in Hugging Face's format, `--tags` a file of tagged words.
- `translate`: train steps at the size of configs/translate.py, ours and torch.nn.Transformer's with
  sinusoids, a shared and tied embedding, label smoothing and AdamW, on made-up sentences that are
  as long as Multi30k's.
- `beam`: beam search with 5 beams, ours and transformers' `generate` on the same random weights,
  until no hypothesis can become better.

Each program is a process; they take turns, one at a time. Both sides use float32 and the same
padded batches. PyTorch's side is timed eager and compiled, and our ratio is to the faster one.
Packed rows and products of bfloat16 show what else our side can do. Numbers are medians over
rounds, of wall time and of CPU time summed over cores, and of the ratios within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import task_work
from benchmarks.turns import Command, Times, medians, take_turns

WORKS = {
    "tag": "fine-tuning a BERT for tags",
    "translate": "training a translation model",
    "beam": "beam search",
}
BASE = "gpt2_jax"
# Words of each program's command, by name.
OURS = {
    BASE: ["padded", "float32"],
    "gpt2_jax, packed": ["packed", "float32"],
    "gpt2_jax, packed, bfloat16 products": ["packed", "bfloat16"],
}
PEERS = {f"PyTorch, {mode}": [mode] for mode in ("eager", "compiled")}


def prepare(work: str, folder: Path, args: argparse.Namespace) -> None:
    """Prepares a work in a new folder."""
    folder.mkdir()
    if work == "tag":
        task_work.prepare_tag(folder, args.bert, args.tags, {})
    elif work == "translate":
        task_work.prepare_translate(folder, {})
    else:
        task_work.prepare_beam(folder, {})


def commands(work: str, folder: Path, torch_python: str | None) -> dict[str, Command]:
    """Returns the programs of a work by name; only ours if `torch_python` is None."""
    start = lambda python, side: [python, "-m", f"benchmarks.{side}", work, str(folder)]
    found = {
        name: [*start(sys.executable, "task_steps"), *words]
        for name, words in OURS.items()
        if work != "beam" or name == BASE
    }
    if torch_python is not None:
        for name, words in PEERS.items():
            found[name] = [*start(torch_python, "task_peers"), *words]
    return {name: (command, task_work.ROOT) for name, command in found.items()}


def ratio(times: Mapping[str, Sequence[Times]]) -> Times | None:
    """Returns our median ratio to the faster of PyTorch's programs; None if there are none."""
    peers = [times[name] for name in PEERS if name in times]
    if not peers:
        return None
    faster = min(peers, key=lambda found: medians(found).wall)
    return medians(
        [
            Times(*(a / b for a, b in zip(ours, theirs, strict=True)))
            for ours, theirs in zip(times[BASE], faster, strict=True)
        ]
    )


def amounts(folder: Path, name: str) -> tuple[int, int, str]:
    """Returns what a turn of a program has: steps or searches, tokens, and the share of padding."""
    path = folder / f"{OURS.get(name, OURS[BASE])[0]}.npz"
    if not path.exists():
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        return 1, len(facts["sources"]) * facts["length"], ""
    counts = task_work.count(path)
    return counts.batches, counts.tokens, f"{counts.padding:.0%}"


def show(work: str, folder: Path, times: Mapping[str, Sequence[Times]]) -> None:
    """Prints the table of a work. Tokens are those that are predicted or tagged."""
    unit = "search" if work == "beam" else "step"
    print(f"\n| {WORKS[work]} | ms per {unit} | CPU ms | padding | tokens per second | ratio |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        n, tokens, padding = amounts(folder, name)
        ms, ratios = medians(found), ratio(times) if name == BASE else None
        compared = f"{ratios.wall:.2f} (CPU time {ratios.cpu:.2f})" if ratios else ""
        cells = f"{ms.wall / n:,.1f} | {ms.cpu / n:,.1f} | {padding}"
        print(f"| {name} | {cells} | {tokens / ms.wall * 1e3:,.0f} | {compared} |", flush=True)


def same_share(ready: Mapping[str, str]) -> float:
    """Returns the share of our texts that PyTorch's eager program found as well."""
    ours, theirs = (json.loads(ready[name]) for name in (BASE, "PyTorch, eager"))
    return float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch_python", help="a Python with torch and transformers")
    parser.add_argument("--bert", type=Path)
    parser.add_argument("--tags")
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    works = args.works.split(",")
    if "tag" in works and not (args.bert and args.tags):
        parser.error("tag needs --bert and --tags; leave it out with --works=translate,beam")
    facts = f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {version('jax')}"
    print(f"{facts}, {args.rounds} rounds, {date.today()}")
    with tempfile.TemporaryDirectory() as root:
        for work in works:
            folder = Path(root) / work
            prepare(work, folder, args)
            times, ready = take_turns(commands(work, folder, args.torch_python), args.rounds, 1)
            show(work, folder, times)
            if work == "beam" and args.torch_python:
                print(f"\n{same_share(ready):.0%} of the texts are the same.")


if __name__ == "__main__":
    main()
