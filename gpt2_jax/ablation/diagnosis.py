"""Diagnoses a model block by block: activations, gradients, the effect of one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt2_jax.config import Config, replace
from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef, define_model, global_norm
from gpt2_jax.model.diagnostics import gradient_norms, rms, streams
from gpt2_jax.train.compiled_step import apply_data_dependent_init
from gpt2_jax.train.diagnostics import OBSERVED_ROWS, jit_diagnostics
from gpt2_jax.train.distributed.mesh import by_rows, make_mesh, replicated
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.optim.optimizer import make_optimizer
from gpt2_jax.train.pretrained import define_merged
from gpt2_jax.train.state import jit_once, purpose_key
from gpt2_jax.train.step import make_gradients

STEP_LR = 1e-4
RELATIVE_CHANGE = 0.01  # of the output, at which changes are measured
# Columns of the CSV files.
BY_BLOCK = {
    "stream_rms": "RMS of the residual stream after the block",
    "attn_ratio": "RMS of attention's output over the RMS of its input",
    "mlp_ratio": "the same for the MLP",
    "cosine": "cosine between the stream before and after the block, mean over tokens",
    "entropy": "entropy of the attention weights in nats, mean over heads and tokens",
    "largest_score": "largest attention logit",
    "grad_norm": "norm of the block's gradient on one batch, mean over batches",
    "mean_grad_norm": "norm of the block's gradient averaged over the batches",
    "sgd_change": "relative change (RMS) of the stream after the block by a step of SGD",
    "adam_change": "the same for Adam",
    "skip_cost": "nats per token by which the loss rises if the block's sublayers return 0",
}
WHOLE = {
    "loss": "nats per token, mean over batches",
    "model_grad_norm": "norm of the whole gradient on one batch, mean over batches",
    "model_mean_grad_norm": "norm of the whole gradient averaged over the batches",
    "sgd_model_change": "RMS of the change of the head's input by a step of SGD",
    "adam_model_change": "the same for Adam",
    "n_params": "parameters",
}


@dataclass(frozen=True)
class Diagnosis:
    """Diagnostics of one model.

    Attributes:
      name: label in tables and legends.
      step: number of steps done.
      by_block: one number per block, (L), for each name in `BY_BLOCK`.
      whole: one number for each name in `WHOLE`.
    """

    name: str
    n_layer: int
    step: int
    by_block: dict[str, np.ndarray]
    whole: dict[str, float]


def diagnose_start(name: str, config: Config, batches: Sequence[Batch]) -> Diagnosis:
    """Returns the diagnosis of a resolved config's model before its first step.

    Args:
      batches: the first batches of the run, each (B, T+1).
    """
    model = define_model(config.model, config.placement)
    mesh = make_mesh(config.train, config.mesh)
    layout = make_layout(model, mesh).shardings(model.shapes)
    init = jit_once(lambda: model.init(purpose_key(config.seed, "init")), layout, model.target)
    params = apply_data_dependent_init(model, mesh, init(), batches[0])
    return diagnose(name, config, model, mesh, params, 0, batches)


def diagnose(
    name: str,
    config: Config,
    model: ModelDef,
    mesh: Mesh,
    params: Any,
    step: int,
    batches: Sequence[Batch],
) -> Diagnosis:
    """Returns the diagnosis of a model with parameters sharded on the mesh.

    Gradients are those of training before clipping: for the whole batch, with dropout if the config
    has it, and for all parameters, including frozen ones.
    """
    at = jax.device_put(np.int32(step), replicated(mesh))
    on_mesh = [jax.device_put(batch, by_rows(mesh)) for batch in batches]
    rows = min(OBSERVED_ROWS, len(batches[0].tokens_BT1))
    diagnostics = jit_diagnostics(model, mesh, rows, rows)
    measured: dict[str, Any] = dict(jax.block_until_ready(diagnostics(params, at, on_mesh[0])))
    first, gradient_stats = _gradients(config, model, mesh, params, at, on_mesh)
    measured |= gradient_stats | {"n_params": model.n_params()}
    exact, tokens_BT = in_float32(config), on_mesh[0].inputs_BT[:rows]
    updates = jax.jit(partial(step_directions, config, model))(params, first)
    measure = jax.jit(partial(change, exact))
    for kind, update in updates.items():
        by_block, of_model = jax.block_until_ready(measure(params, update, tokens_BT, at))
        measured |= {f"{kind}_change": by_block, f"{kind}_model_change": of_model}
    return Diagnosis(
        name,
        config.model.n_layer,
        step,
        {key: np.asarray(measured[key], np.float64) for key in BY_BLOCK},
        {key: float(measured[key]) for key in WHOLE},
    )


def _gradients(
    config: Config,
    model: ModelDef,
    mesh: Mesh,
    params: Any,
    step: jax.Array,
    batches: Sequence[Batch],
) -> tuple[Any, dict[str, Any]]:
    """Returns the gradient of the first batch, and statistics of all batches' gradients."""
    of_batch = make_gradients(config, model, mesh)
    norms = lambda grads: (gradient_norms(model, grads), global_norm(grads))

    @jax.jit
    def measure(mean: Any, params: Any, batch: Batch, seed: Any) -> tuple[Any, Any, Any]:
        loss, grads = of_batch(params, None, batch, step, seed)
        mean = jax.tree.map(lambda m, g: m + g / len(batches), mean, grads)
        return grads, mean, (*norms(grads), loss)

    mean, first, seen = jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p))(params), None, []
    for i, batch in enumerate(batches):
        seed = np.uint32((config.seed + i) % 2**32)  # a dropout mask per batch
        # One at a time: collectives on a CPU deadlock with several programs in flight.
        grads, mean, numbers = jax.block_until_ready(measure(mean, params, batch, seed))
        first = grads if first is None else first
        seen.append(jax.device_get(numbers))
    blocks, wholes, losses = (np.stack(values).mean(0) for values in zip(*seen, strict=True))
    mean_blocks, mean_whole = jax.jit(norms)(mean)
    return first, {
        "grad_norm": blocks,
        "mean_grad_norm": mean_blocks,
        "loss": losses,
        "model_grad_norm": wholes,
        "model_mean_grad_norm": mean_whole,
    }


def step_directions(config: Config, model: ModelDef, params: Any, grads: Any) -> dict[str, Any]:
    """Returns the updates of one SGD step, and one Adam step from zero moments, at learning rate 1.

    There is no clipping or decay. Adam's update includes the placement's learning-rate multipliers.
    """
    plain = replace(config, {"optimizer.name": "adamw", "optimizer.weight_decay": 0.0}).optimizer
    adam = make_optimizer(plain, model.infos)
    return {
        "sgd": jax.tree.map(jnp.negative, grads),
        "adam": adam.update(grads, adam.init(params), params)[0],
    }


def change(
    model: ModelDef, params: Any, update: Any, tokens_BT: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns how far a step at `STEP_LR` moves the stream after each block, and the head's input.

    The first, (L), is relative to the stream. The second is the RMS of the change: the model update
    of Wang et al. 2022 (DeepNet, section 4). Both are measured in float32 at a learning rate that
    changes the output by `RELATIVE_CHANGE`, and scaled to `STEP_LR`: a smaller change would be lost
    in rounding, and a larger one would not be proportional to the learning rate.
    """
    before_LBTD, output_BTD = streams(model, params, tokens_BT, step)

    def at(lr: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        moved = model.project(jax.tree.map(lambda p, u: p + lr * u, params, update))
        after_LBTD, new_BTD = streams(model, moved, tokens_BT, step)
        sizes_L = jax.vmap(rms)(before_LBTD)
        return jax.vmap(rms)(after_LBTD - before_LBTD) / sizes_L, rms(new_BTD - output_BTD)

    lr: jax.Array | float = STEP_LR
    for _ in range(2):  # the first change may be far from proportional
        moved = at(lr)[1] / rms(output_BTD)
        lr = jnp.clip(lr * RELATIVE_CHANGE / moved, 1e-9, 1.0)
    return jax.tree.map(lambda x: x * STEP_LR / lr, at(lr))


def in_float32(config: Config) -> ModelDef:
    """Returns the config's model with float32 computation; for parameters of `open_run`."""
    exact = replace(
        config,
        {"model.dtype": "float32", "model.matmul_dtype": None, "model.attention": "xla"},
    )
    return define_merged(exact)
