"""A model against its oracle."""

import jax
import numpy as np

from tests.model.oracles.base import Model
from tests.tools import tiny_model

TOKENS = np.random.default_rng(7).integers(0, 11, (3, 12))


def parts(model_def, params):
    """Returns the parameters outside the blocks, and those of each block, in order."""
    stacks, inside, blocks = model_def.spec.stacks, dict(params["blocks"]), []
    for stack in stacks:
        own = inside.pop(stack.name)
        for layer in range(stack.start, stack.stop):
            row = (layer - stack.start) // stack.repeats
            blocks.append(jax.tree.map(lambda x, row=row: x[row], own))
    return {name: value for name, value in params.items() if name != "blocks"} | inside, blocks


def logits(oracle, model_def, params, step):
    """Returns the model's logits, (B, T, V), and the oracle's."""
    ours = jax.jit(lambda p: model_def.bind(p)(TOKENS, step=step))(params)[..., :11]
    return np.asarray(ours), oracle(Model(*parts(model_def, params), TOKENS, 11, step))


def relative_error(oracle, step=0, **changes):
    """Returns the largest difference of the logits over the RMS of the oracle's.

    Args:
      changes: of the config of `tests.tools.tiny`. Every parameter has noise on it.
    """
    ours, theirs = logits(oracle, *tiny_model(**changes), step)
    return np.abs(ours - theirs).max() / np.sqrt((theirs**2).mean())
