"""Times the quickstart from the start of its process until its first step is in metrics.jsonl.

    python -m benchmarks.first_step --checkouts=.,../other --rounds=3

Each round starts every checkout twice: with an empty compile cache (cold), and again (warm).
Checkouts take turns, so that their ratio does not depend on the machine's load. Prints medians of
wall time and of CPU time, which a busy machine changes less.
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

FLAGS = [
    "--config=configs/quickstart.py",
    "--config.train.log_every=1",
    "--config.track.wandb.mode=disabled",
]


def first_step(checkout: Path, workdir: Path, cache: Path) -> tuple[float, float]:
    """Returns the seconds until the first step, of wall time and of CPU time."""
    environment = {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(checkout)}
    command = [sys.executable, "train.py", *FLAGS, f"--workdir={workdir}"]
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=checkout,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not _has_step(workdir / "metrics.jsonl"):
            if process.poll() is not None:
                sys.exit(f"{checkout}: training ended with exit code {process.returncode}")
            time.sleep(0.02)
        seconds, cpu_seconds = time.monotonic() - started, _cpu_seconds(process.pid)
        process.kill()
    return seconds, cpu_seconds


def _has_step(metrics: Path) -> bool:
    return metrics.exists() and '"step": 1,' in metrics.read_text(encoding="utf-8")


def _cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process so far, from Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkouts", default=".")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    checkouts = [Path(name).absolute() for name in args.checkouts.split(",")]
    found: dict[tuple[Path, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds):
            for state in ("cold", "warm"):
                for n, checkout in enumerate(checkouts):
                    workdir, cache = Path(folder, f"{state}{i}-{n}"), Path(folder, f"cache{i}-{n}")
                    times = first_step(checkout, workdir, cache)
                    found.setdefault((checkout, state), []).append(times)
                    print(f"{state} {checkout}: {times[0]:.1f} s, CPU {times[1]:.1f} s", flush=True)
    for (checkout, state), times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"median {state} {checkout}: {wall:.1f} s, CPU {cpu:.1f} s")


if __name__ == "__main__":
    main()
