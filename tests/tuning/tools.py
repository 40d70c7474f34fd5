"""Runs of tiny models to tune."""

import dataclasses

import numpy as np

from gpt2_jax import config as configs
from gpt2_jax.track.metrics import read_rows
from tests.train.distributed.test_sharding import batch
from tests.train.test_loop import config


def tuned(text_file, source, **changes):
    """Returns a config without model fields that tunes the weights of `source` in 10 steps."""
    fields = {"train__init_from": str(source), "train__steps": 10, "train__sample_tokens": 20}
    made = config(text_file, **(fields | changes))
    return dataclasses.replace(made, model=configs.Config().model)


def losses(workdir):
    """Returns the validation losses of a run by step."""
    rows = read_rows(workdir / "metrics.jsonl")
    return {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}


def train(program, state, n):
    """Returns the state after n steps, and the loss and the gradient norm of each, (n, 2).

    All steps have the same batch, so that the loss falls.
    """
    rows = []
    for _ in range(n):
        state, metrics = program.step(state, program.put(batch(0)))
        rows.append([metrics["loss"].item(), metrics["grad_norm"].item()])
    return state, np.array(rows)
