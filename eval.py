"""Evaluates a run: `python eval.py --workdir=runs/quickstart [--data=SOURCE] [--stride=S]`."""

import sys

from gpt2_jax import cli
from gpt2_jax.cli.evaluate import main

if __name__ == "__main__":
    cli.run(main, sys.argv)
