"""Pretrains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

import sys

from gpt2_jax import cli
from gpt2_jax.cli.train import main

if __name__ == "__main__":
    cli.run(main, sys.argv)
