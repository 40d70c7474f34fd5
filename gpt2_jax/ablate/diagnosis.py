"""What a model does by depth at its start or at a checkpoint, and what a first update changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
MOVED = 0.01  # share of the output's size
# What each column of the CSV files is: the names of `observe` and these.
BY_BLOCK = {
    "stream_rms": "RMS of the stream behind the block",
    "attn_ratio": "RMS of what attention's branch gives over the RMS of what it was given",
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

    Gradients are those of training before clipping: the whole batch, with dropout where the config
    has it, of all parameters, those that the run would freeze as well.
    """
    at = jax.device_put(np.int32(step), replicated(mesh))
    on_mesh = [jax.device_put(batch, by_rows(mesh)) for batch in batches]
    rows = min(OBSERVED_ROWS, len(batches[0]))
    probe = make_probe(model, mesh, rows, rows)
    figures: dict[str, Any] = dict(jax.block_until_ready(probe(params, at, on_mesh[0])))
    first, of_gradients = _gradients(config, model, mesh, params, at, on_mesh)
    figures |= of_gradients | {"n_params": model.n_params()}
    exact, tokens_BT = in_float32(config), on_mesh[0][:rows, :-1]
    updates = jax.jit(partial(first_updates, config, model))(params, first)
    measure = jax.jit(partial(change, exact))
    for kind, update in updates.items():
        by_block, of_model = jax.block_until_ready(measure(params, update, tokens_BT, at))
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
    of_batch = make_gradients(config, model, mesh)
    norms = lambda grads: (gradient_norms(model, grads), optax.tree.norm(grads))

    @jax.jit
    def measure(mean: Any, params: Any, batch: jax.Array, seed: Any) -> tuple[Any, Any, Any]:
        loss, grads = of_batch(params, batch, step, seed)
        mean = jax.tree.map(lambda m, g: m + g / len(batches), mean, grads)
        return grads, mean, (*norms(grads), loss)

    mean, first, seen = jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p))(params), None, []
    for i, batch in enumerate(batches):
        seed = np.uint32((config.seed + i) % 2**32)  # dropout masks of its own
        # One at a time: a CPU's collectives lock up with several programs in flight.
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


def first_updates(config: ConfigDict, model: Structure, params: Any, grads: Any) -> dict[str, Any]:
    """Returns what a step of SGD, and one of Adam from zero moments, adds to parameters at rate 1.

    Without clipping or decay; Adam's with the rates that the placement asks for.
    """
    plain = config.copy_and_resolve_references()
    plain.optimizer.name, plain.optimizer.weight_decay = "adamw", 0.0
    adam = make_optimizer(plain, model.infos)
    return {
        "sgd": jax.tree.map(jnp.negative, grads),
        "adam": adam.update(grads, adam.init(params), params)[0],
    }


def change(
    model: Structure, params: Any, update: Any, tokens_BT: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns how far `UPDATE_LR` of an update moves the stream behind each block, and the output.

    The first (L) is relative to the stream, the second the RMS of the change of what the head
    reads: a model's update in the sense of Wang et al. 2022 (DeepNet, section 4). Both are
    measured in float32 where the output moves by `MOVED` of its size and brought to the rate in
    proportion: a smaller change would drown in rounding, a larger one would not be proportional.
    """
    before_LBTD, output_BTD = streams(model, params, tokens_BT, step)

    def at(rate: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        moved = model.project(jax.tree.map(lambda p, u: p + rate * u, params, update))
        behind_LBTD, new_BTD = streams(model, moved, tokens_BT, step)
        sizes_L = jax.vmap(rms)(before_LBTD)
        return jax.vmap(rms)(behind_LBTD - before_LBTD) / sizes_L, rms(new_BTD - output_BTD)

    rate: jax.Array | float = UPDATE_LR
    for _ in range(2):  # the first may be far from proportional
        moved = at(rate)[1] / rms(output_BTD)
        rate = jnp.clip(rate * MOVED / moved, 1e-9, 1.0)
    return jax.tree.map(lambda x: x * UPDATE_LR / rate, at(rate))


def in_float32(config: ConfigDict) -> Structure:
    """Returns the same model computing in float32."""
    config = config.copy_and_resolve_references()
    config.model.dtype, config.model.attention = "float32", "xla"
    return structure(config.model)
