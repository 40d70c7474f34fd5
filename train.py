"""Pretrains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

import sys

from gpt2_jax.cli.train import run

if __name__ == "__main__":
    run(sys.argv)
