"""What a model does by depth at its start or at a checkpoint, and what a first update changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.model.diagnostics import gradient_norms, rms, streams
from gpt2_jax.model.structure import Structure, structure
from gpt2_jax.train.mesh import by_rows, make_mesh, replicated
from gpt2_jax.train.optimizer import make_optimizer
from gpt2_jax.train.probe import OBSERVED_ROWS, make_probe
from gpt2_jax.train.program import profiled
from gpt2_jax.train.state import jit_once, purpose_key
from gpt2_jax.train.step import make_gradients

UPDATE_LR = 1e-4
# What each column of the CSV files is: the names of `observe` and these.
BY_BLOCK = {
    "stream_rms": "RMS of the stream behind the block",
    "attn_ratio": "RMS of what attention adds over the RMS of what it was given",
    "mlp_ratio": "the same of the MLP",
    "cosine": "cosine between the stream before the block and behind it, mean over tokens",
    "entropy": "of the attention weights, nats, mean over heads and tokens",
    "largest_score": "largest attention logit",
    "grad_norm": "norm of the block's gradient on one batch, mean over batches",
    "mean_grad_norm": "norm of the block's gradient averaged over the batches",
    "sgd_change": "relative change (RMS) of the stream behind the block by a first update of SGD",
    "adam_change": "the same of Adam",
    "skip_cost": "nats a token by which the loss rises when the block's branches give 0",
}
WHOLE = {
    "loss": "nats a token, mean over batches",
    "model_grad_norm": "norm of the whole gradient on one batch, mean over batches",
    "model_mean_grad_norm": "norm of the whole gradient averaged over the batches",
    "sgd_model_change": "RMS by which a first update of SGD changes what the head reads",
    "adam_model_change": "the same of Adam",
    "n_params": "parameters",
}


@dataclass(frozen=True)
class Diagnosis:
    """Figures of one model.

    Attributes:
      name: what it is called beside others. step: updates behind it.
      by_block: for each name in `BY_BLOCK` one number a block, (L).
      whole: a number for each name in `WHOLE`.
    """

    name: str
    n_layer: int
    step: int
    by_block: dict[str, np.ndarray]
    whole: dict[str, float]


def diagnose_start(name: str, config: ConfigDict, batches: Sequence[np.ndarray]) -> Diagnosis:
    """Returns the figures of a resolved config's model before its first update.

    Args:
      batches: each (B, T+1), as the run would see them.
    """
    mesh, model = make_mesh(config), structure(config.model)
    init = jit_once(lambda: model.init(purpose_key(config.seed, "init")), mesh)
    params = profiled(model, mesh, init(), batches[0])
    return diagnose(name, config, model, mesh, params, 0, batches)


def diagnose(
    name: str,
    config: ConfigDict,
    model: Structure,
    mesh: Mesh,
    params: Any,
    step: int,
    batches: Sequence[np.ndarray],
) -> Diagnosis:
    """Returns the figures of a model with these parameters, laid out on the mesh.

    Gradients are those of training: the whole batch, with dropout where the config has it. First
    updates are at `UPDATE_LR`, without clipping or decay, Adam's from zero moments: small enough
    to be proportional to the rate, so that models of unlike best rates compare.
    """
    at = jax.device_put(np.int32(step), replicated(mesh))
    on_mesh = [jax.device_put(batch, by_rows(mesh)) for batch in batches]
    rows = min(OBSERVED_ROWS, len(batches[0]))
    figures: dict[str, Any] = dict(make_probe(model, mesh, rows, rows)(params, at, on_mesh[0]))
    first, of_gradients = _gradients(config, model, mesh, params, at, on_mesh)
    figures |= of_gradients | {"n_params": model.n_params()}
    changes = _changes(config, model, params, first, on_mesh[0][:rows, :-1], step)
    for kind, (by_block, of_model) in changes.items():
        figures |= {f"{kind}_change": by_block, f"{kind}_model_change": of_model}
    return Diagnosis(
        name,
        config.model.n_layer,
        step,
        {key: np.asarray(figures[key], np.float64) for key in BY_BLOCK},
        {key: float(figures[key]) for key in WHOLE},
    )


def _gradients(
    config: ConfigDict,
    model: Structure,
    mesh: Mesh,
    params: Any,
    step: jax.Array,
    batches: Sequence[jax.Array],
) -> tuple[Any, dict[str, Any]]:
    """Returns the gradient of the first batch, and the figures of gradients over all of them."""
    of_batch, seed = make_gradients(config, model, mesh), np.uint32(config.seed)
    norms = lambda grads: (gradient_norms(model, grads), optax.tree.norm(grads))

    @jax.jit
    def measure(mean: Any, params: Any, batch: jax.Array) -> tuple[Any, Any, Any]:
        loss, grads = of_batch(params, batch, step, jnp.asarray(seed))
        mean = jax.tree.map(lambda m, g: m + g / len(batches), mean, grads)
        return grads, mean, (*norms(grads), loss)

    mean, first, seen = jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p))(params), None, []
    for batch in batches:
        # One at a time: a CPU's collectives lock up with several programs in flight.
        grads, mean, numbers = jax.block_until_ready(measure(mean, params, batch))
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


def _changes(
    config: ConfigDict, model: Structure, params: Any, grads: Any, tokens_BT: jax.Array, step: int
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns what a first update of each optimizer changes: streams (L), and the model's output.

    The second is the update of a model in the sense of Wang et al. 2022 (DeepNet, section 4): how
    far its output on fixed inputs moves.
    """
    plain = config.copy_and_resolve_references()
    plain.optimizer.name, plain.optimizer.weight_decay = "adamw", 0.0
    adam = make_optimizer(plain, model.infos)

    @jax.jit
    def changes(params: Any, grads: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        updates = {
            "sgd": jax.tree.map(jnp.negative, grads),
            "adam": adam.update(grads, adam.init(params), params)[0],
        }
        before_LBTD, output_BTD = streams(model, params, tokens_BT, step)
        out = {}
        for kind, update in updates.items():
            moved = model.project(jax.tree.map(lambda p, u: p + UPDATE_LR * u, params, update))
            behind_LBTD, new_output_BTD = streams(model, moved, tokens_BT, step)
            change_L = jax.vmap(rms)(behind_LBTD - before_LBTD) / jax.vmap(rms)(before_LBTD)
            out[kind] = change_L, rms(new_output_BTD - output_BTD)
        return out

    return changes(params, grads)
