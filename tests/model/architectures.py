"""Models and batches for tests of encoders and encoder-decoders."""

from functools import cache, partial

import jax
import numpy as np

from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.definition import param_name
from tests.model.oracles.towers import TOWERS, Tower
from tests.placements import depth
from tests.tools import tiny_model

STEP = 700
RNG = np.random.default_rng(3)


def tokens(*rows):
    """Returns random ids with these segment numbers."""
    segments = np.array(rows, np.int32)
    return Tokens(RNG.integers(0, 11, segments.shape).astype(np.int32), segments)


SOURCE = tokens([1] * 3 + [2] * 4 + [0] * 2, [1] * 9)
TARGET = tokens([1] * 4 + [2] * 3 + [0], [1] * 5 + [0] * 3)
REAL = TARGET.segments_BT != 0

TWO = {"model__architecture": "encoder_decoder", "model__n_encoder_layer": 3}


@cache
def encoder(name="pre_ln", **changes):
    changes = {"model__n_layer": depth(name), "model__unroll": False, **changes}
    return tiny_model(placement__preset=name, model__architecture="encoder", **changes)


@cache
def translator(name="pre_ln", **changes):
    changes = {"model__unroll": False, **TWO, **changes}
    return tiny_model(placement__preset=name, **changes)


@partial(jax.jit, static_argnums=0)
def logits(model_def, params, inputs, source=None):
    given = {} if source is None else {"source": source}
    return model_def.bind(params)(inputs, step=STEP, **given)[..., :11]


def tower_params(params, spec):
    """Returns a tower's parameters outside the blocks, and those of each block."""
    own = dict(params[spec.tower.kind.name])
    inside, blocks = own.pop("blocks"), []
    outside = {**own, **{k: v for k, v in inside.items() if k in ("cross_layer", "adapter")}}
    for stack in spec.stacks:
        for layer in range(stack.start, stack.stop):
            row = (layer - stack.start) // stack.repeats
            blocks.append(jax.tree.map(lambda x, row=row: x[row], inside[stack.name]))
    return outside, blocks


def oracle(name, model_def, params):
    """Returns the outputs of both towers and the logits of TARGET, given SOURCE, in float64."""
    first, last = model_def.specs
    read = Tower(*tower_params(params, first), *SOURCE[:2], causal=False)
    read.M = last.tower.n_layer
    memory, table = TOWERS[name](read), read.embedding.wte
    of_memory = {"memory": memory, "memory_segments": SOURCE.segments_BT}
    written = Tower(*tower_params(params, last), *TARGET[:2], causal=True, table=table, **of_memory)
    hidden = TOWERS[name](written)
    return memory, hidden, (hidden @ written.table.T)[..., :11]


def padded(inputs, more):
    ids, segments = (np.pad(x, ((0, 0), (0, more))) for x in inputs[:2])
    return Tokens(np.where(segments == 0, RNG.integers(0, 11, ids.shape), ids), segments)


def names(model_def):
    return {param_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(model_def.shapes)}
