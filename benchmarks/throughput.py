"""Training speed of this project next to nanoGPT's.

python -m benchmarks.throughput --suite=gpu --help
"""

from __future__ import annotations

import argparse

from benchmarks import cpu, gpu

SUITES = {"cpu": cpu.main, "gpu": gpu.main}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--suite", required=True, choices=SUITES)
    args, words = parser.parse_known_args()
    SUITES[args.suite](words)


if __name__ == "__main__":
    main()
