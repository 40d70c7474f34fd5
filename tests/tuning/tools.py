"""Runs of tiny models to tune."""

import numpy as np

from tests.train.distributed.test_sharding import batch


def train(program, state, n):
    """Returns the state after n steps, and the loss and the gradient norm of each, (n, 2).

    All steps have the same batch, so that the loss falls.
    """
    rows = []
    for _ in range(n):
        state, metrics = program.step(state, program.put(batch(0)))
        rows.append([metrics["loss"].item(), metrics["grad_norm"].item()])
    return state, np.array(rows)
