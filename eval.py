"""Evaluates a run: `python eval.py --workdir=runs/quickstart [--data=SOURCE] [--stride=S]`."""

import sys

from gpt2_jax.cli.evaluate import run

if __name__ == "__main__":
    run(sys.argv)
