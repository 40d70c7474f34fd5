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
from gpt2_jax.model.definition import ModelDef, define_model, global_norm
from gpt2_jax.model.diagnostics import (
    TowerStreams,
    by_tower,
    gradient_norms,
    rms,
    streams,
    tower_figure,
)
from gpt2_jax.model.tower import Inputs
from gpt2_jax.tasks.losses import AnyBatch, inputs_of
from gpt2_jax.tasks.task import head_of
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
# Columns of the CSV files. A target is what `Task.target` says: a token, a word, a text.
BY_BLOCK = {
    "stream_rms": "RMS of the residual stream after the block",
    "attn_ratio": "RMS of attention's output over the RMS of its input",
    "mlp_ratio": "the same for the MLP",
    "cross_ratio": "the same for cross-attention; only in a decoder that reads an encoder",
    "cosine": "cosine between the stream before and after the block, mean over tokens",
    "entropy": "entropy of self-attention's weights in nats, mean over heads and tokens",
    "largest_score": "largest logit of self-attention",
    "grad_norm": "norm of the block's gradient on one batch, mean over batches",
    "mean_grad_norm": "norm of the block's gradient averaged over the batches",
    "sgd_change": "relative change (RMS) of the stream after the block by a step of SGD",
    "adam_change": "the same for Adam",
    "skip_cost": "nats per target by which the loss rises if the block's sublayers return 0",
}
WHOLE = {
    "loss": "that of training, in nats per target, mean over batches",
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
      n_layer: blocks of the tower with the head.
      step: number of steps done.
      by_block: for each tower by its name, which is empty for the only one, and in the order in
        which they are applied: one number per block, (L), for each name in `BY_BLOCK` that the
        tower has.
      whole: one number for each name in `WHOLE`.
    """

    name: str
    n_layer: int
    step: int
    by_block: dict[str, dict[str, np.ndarray]]
    whole: dict[str, float]

    @property
    def depths(self) -> dict[str, int]:
        """The number of blocks of each tower."""
        return {tower: len(found["stream_rms"]) for tower, found in self.by_block.items()}


def diagnose_start(name: str, config: Config, batches: Sequence[AnyBatch]) -> Diagnosis:
    """Returns the diagnosis of a resolved config's model before its first step.

    Args:
      batches: the first batches of the run.
    """
    head = head_of(config.task, config.head)
    model = define_model(config.model, config.placement, head=head)
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
    batches: Sequence[AnyBatch],
) -> Diagnosis:
    """Returns the diagnosis of a model with parameters sharded on the mesh.

    Gradients are those of training before clipping: for the whole batch, with dropout if the config
    has it, and for all parameters, including frozen ones.
    """
    at = jax.device_put(np.int32(step), replicated(mesh))
    on_mesh = [jax.device_put(batch, by_rows(mesh)) for batch in batches]
    rows = min(OBSERVED_ROWS, len(jax.tree.leaves(batches[0])[0]))
    diagnostics = jit_diagnostics(model, mesh, rows, rows)
    measured: dict[str, Any] = dict(jax.block_until_ready(diagnostics(params, at, on_mesh[0])))
    first, gradient_stats = _gradients(config, model, mesh, params, at, on_mesh)
    measured |= gradient_stats | {"n_params": model.n_params()}
    exact = in_float32(config)
    inputs, source = jax.tree.map(lambda x: x[:rows], inputs_of(on_mesh[0]))
    updates = jax.jit(partial(step_directions, config, model))(params, first)
    measure = jax.jit(partial(change, exact))
    for kind, update in updates.items():
        of_blocks, of_model = jax.block_until_ready(measure(params, update, inputs, at, source))
        measured |= {tower_figure(t, f"{kind}_change"): x_L for t, x_L in of_blocks.items()}
        measured[f"{kind}_model_change"] = of_model
    return Diagnosis(
        name,
        config.model.n_layer,
        step,
        {tower.kind.name: _of_tower(tower.kind.name, measured) for tower in model.cfg.towers},
        {key: float(measured[key]) for key in WHOLE},
    )


def _of_tower(tower: str, measured: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the numbers of a tower's blocks, without its name in theirs."""
    own = {key: measured.get(tower_figure(tower, key)) for key in BY_BLOCK}
    return {key: np.asarray(x_L, np.float64) for key, x_L in own.items() if x_L is not None}


def _gradients(
    config: Config,
    model: ModelDef,
    mesh: Mesh,
    params: Any,
    step: jax.Array,
    batches: Sequence[AnyBatch],
) -> tuple[Any, dict[str, Any]]:
    """Returns the gradient of the first batch, and statistics of all batches' gradients."""
    of_batch = make_gradients(config, model, mesh)
    norms = lambda grads: (gradient_norms(model, grads), global_norm(grads))

    @jax.jit
    def measure(mean: Any, params: Any, batch: AnyBatch, seed: Any) -> tuple[Any, Any, Any]:
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
    split = partial(by_tower, model.cfg.towers)
    return first, {
        **split("grad_norm", blocks),
        **split("mean_grad_norm", mean_blocks),
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
    model: ModelDef,
    params: Any,
    update: Any,
    inputs: Inputs,
    step: jax.Array | int,
    source: Inputs | None = None,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns how far a step at `STEP_LR` moves the stream after each block, and the head's input.

    The first, (L) for each tower by its name, is relative to the stream. The second is the RMS of
    the change: the model update of Wang et al. 2022 (DeepNet, section 4). Both are measured in
    float32 at a learning rate that changes the output by `RELATIVE_CHANGE`, and scaled to
    `STEP_LR`: a smaller change would be lost in rounding, and a larger one would not be
    proportional to the learning rate. Padding does not count.
    """
    before, last = streams(model, params, inputs, step, source), model.spec.tower.kind.name
    output_BTD, is_token_BT = before[last].output_BTD, before[last].is_token_BT

    def at(lr: jax.Array | float) -> tuple[dict[str, jax.Array], jax.Array]:
        moved = model.project(jax.tree.map(lambda p, u: p + lr * u, params, update))
        after = streams(model, moved, inputs, step, source)
        by_block = {name: _relative_change(before[name], after[name]) for name in before}
        return by_block, rms(after[last].output_BTD - output_BTD, is_token_BT)

    lr: jax.Array | float = STEP_LR
    for _ in range(2):  # the first change may be far from proportional
        moved = at(lr)[1] / rms(output_BTD, is_token_BT)
        lr = jnp.clip(lr * RELATIVE_CHANGE / moved, 1e-9, 1.0)
    return jax.tree.map(lambda x: x * STEP_LR / lr, at(lr))


def _relative_change(before: TowerStreams, after: TowerStreams) -> jax.Array:
    """Returns the RMS of the change of a tower's stream over that of the stream, (L)."""
    sizes = jax.vmap(lambda x_BTD: rms(x_BTD, before.is_token_BT))
    return sizes(after.stream_LBTD - before.stream_LBTD) / sizes(before.stream_LBTD)


def in_float32(config: Config) -> ModelDef:
    """Returns the config's model with float32 computation; for parameters of `open_run`."""
    exact = replace(
        config,
        {"model.dtype": "float32", "model.matmul_dtype": None, "model.attention": "xla"},
    )
    return define_merged(exact)
