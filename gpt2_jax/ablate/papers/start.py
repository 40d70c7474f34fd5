"""Claims about models before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.diagnosis import UPDATE_LR, change, first_updates
from gpt2_jax.ablate.papers.claim import Claim, Part, bend, slope, spread
from gpt2_jax.config_check import check
from gpt2_jax.model.diagnostics import observe
from gpt2_jax.model.parts import Role
from gpt2_jax.model.structure import Info, Structure, structure
from gpt2_jax.train.step import mean_loss

WIDTH = 64
SEQ_LEN = 64
ROWS = 8
TOKENS = 512  # of the vocabulary
SEEDS = 5

THEOREM = (
    f"Their setting: one head, W_Q = W_K = 0, W_O = I, an MLP of width d with ReLU, Xavier's "
    f"matrices without a factor for depth, embeddings of variance 1, no positions; but attention "
    f"is causal, a mean over the tokens so far. d = {WIDTH}, {ROWS} sequences of {SEQ_LEN} random "
    f"tokens, {SEEDS} seeds."
)


def theorem_model(placement: str, n_layer: int) -> Structure:
    """Returns a model under the assumptions of Xiong et al. 2020, section 3.3."""
    config = configs.default()
    config.model.update(
        {
            "placement": placement,
            "n_layer": n_layer,
            "unroll": False,
            "n_head": 1,
            "n_embd": WIDTH,
            "n_inner": WIDTH,
            "n_positions": SEQ_LEN,
            "vocab_size": TOKENS,
            "tie_head": False,
            "init": "xavier",
            "init_std": WIDTH**-0.5,
            "query_init": "0",
            "key_init": "0",
            "residual_init": "1",
            "embedding_std": "1",
            "embedding_multiplier": "1",
            "positions": "none",
            "activation": "relu",
        }
    )
    config.data.seq_len, config.train.batch_size = SEQ_LEN, ROWS
    check(config)
    return structure(config.model)


def theorem_params(model: Structure, key: jax.Array) -> Any:
    """Returns its initial parameters: attention is the mean of the values, without W_O."""
    params = model.init(key)
    for segment in model.segments:
        kernel = params[segment.name]["attn"]["sublayer"]["out"]["kernel"]
        identity = jnp.eye(WIDTH).reshape(kernel.shape[1:])
        params[segment.name]["attn"]["sublayer"]["out"]["kernel"] = jnp.broadcast_to(
            identity, kernel.shape
        )
    return params


def last_gradient_and_streams(placement: str, n_layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns |dL/dW_2| (Frobenius) in the last block, and the mean square of each block's stream.

    The first for each seed, the second a mean over seeds; the loss is the mean over positions.
    """
    model = theorem_model(placement, n_layer)

    @jax.jit
    def measure(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = theorem_params(model, jax.random.fold_in(key, 0))
        shape = (ROWS, SEQ_LEN + 1)
        tokens = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, TOKENS)
        grads = jax.grad(mean_loss)(params, model, tokens, None, 0)
        last = grads[model.segments[-1].name]["mlp"]["sublayer"]["down"]["kernel"][-1]
        streams_L = observe(model, params, tokens[:, :-1], 0).stream_rms
        return jnp.linalg.norm(last), streams_L**2

    norms, squares = zip(*(measure(jax.random.key(seed)) for seed in range(SEEDS)), strict=True)
    return np.array(norms, float), np.mean(squares, 0)


def last_layer_gradient(depths: Sequence[int] = (4, 8, 16, 32, 64)) -> Claim:
    """Xiong et al. 2020, Theorem 1."""
    names, within = ("post_ln", "pre_ln"), 0.15
    norms = {name: [last_gradient_and_streams(name, n)[0] for n in depths] for name in names}
    post, pre = (slope(depths, [x.mean() for x in norms[name]]) for name in names)
    return Claim(
        "The last layer's gradient",
        "Xiong et al. 2020, 2002.04745, Theorem 1",
        "before training, the gradient of the last block's second MLP matrix is bounded by "
        "O(d sqrt(ln d)) in Post-LN, whatever the number L of blocks, and by O(d sqrt(ln d / L)) "
        "in Pre-LN.",
        f"{THEOREM} Frobenius norm, mean (least to greatest).",
        ("blocks", "Post-LN", "Pre-LN"),
        [(str(n), *(spread(norms[name][i]) for name in names)) for i, n in enumerate(depths)],
        [
            Part(
                f"in Post-LN it does not depend on L (exponent of L within {within} of 0)",
                f"exponent {post:.2f}",
                abs(post) < within,
            ),
            Part(
                f"in Pre-LN it falls as 1/sqrt(L) (exponent within {within} of -0.5)",
                f"exponent {pre:.2f}",
                abs(pre + 0.5) < within,
            ),
        ],
    )


def stream_growth(n_layer: int = 32) -> Claim:
    """Xiong et al. 2020, Lemma 2."""
    squares = last_gradient_and_streams("pre_ln", n_layer)[1]
    blocks = [1, *range(4, n_layer + 1, 4)]
    rows = [(str(l), 1 + l / 2, squares[l - 1], 1 + 3 * l / 2) for l in blocks]
    growth = np.polyfit(np.arange(1, n_layer + 1), squares, 1)[0]
    return Claim(
        "Growth of the Pre-LN stream",
        "Xiong et al. 2020, 2002.04745, Lemma 2",
        "behind block l of Pre-LN the mean square of the stream lies between 1 + l/2 and 1 + 3l/2.",
        THEOREM,
        ("block l", "1 + l/2", "measured", "1 + 3l/2"),
        rows,
        [
            Part(
                "it lies there behind every block of the table",
                f"it grows by {growth:.2f} a block",
                all(low <= value <= high for _, low, value, high in rows),
            )
        ],
    )


def small_config(placement: str, n_layer: int, **model: Any) -> ConfigDict:
    """Returns the config of a narrow model on random tokens, as DeepNet's figure 5 has it."""
    config = configs.default()
    sizes = {"n_head": 2, "n_embd": WIDTH, "n_inner": 2 * WIDTH, "n_positions": SEQ_LEN}
    config.model.update({"placement": placement, "n_layer": n_layer, "unroll": False})
    config.model.update({**sizes, **model})
    config.data.seq_len, config.train.batch_size, config.mesh.data = SEQ_LEN, ROWS, 1
    check(config)
    return configs.resolve(config, TOKENS)


def random_batch(seed: int = 0) -> np.ndarray:
    """Returns tokens (B, T+1) that nothing can be learnt of."""
    draw = np.random.default_rng(seed).integers
    return draw(0, TOKENS, (ROWS, SEQ_LEN + 1), np.int32)


def model_changes(placement: str, n_layer: int) -> tuple[float, float]:
    """Returns how far a first step of SGD at rate 1e-4 moves what the head reads, RMS.

    When all parameters move, and when the blocks' matrices alone do.
    """
    config = small_config(placement, n_layer)
    model, tokens = structure(config.model), jnp.asarray(random_batch())

    @jax.jit
    def measure(key: jax.Array) -> list[jax.Array]:
        params, changes = model.init(key), []
        grads = jax.grad(mean_loss)(params, model, tokens, None, 0)
        every = first_updates(config, model, params, grads)["sgd"]
        for roles in (set(Role), {Role.MATRIX}):
            chosen = lambda info, u, roles=roles: u * (info.role in roles)
            is_info = lambda x: isinstance(x, Info)
            update = jax.tree.map(chosen, model.infos, every, is_leaf=is_info)
            changes.append(change(model, params, update, tokens[:, :-1], 0)[1])
        return changes

    found = [measure(jax.random.key(seed)) for seed in range(SEEDS)]
    all_of_them, matrices = np.mean(jax.device_get(found), 0)
    return float(all_of_them), float(matrices)


def first_update(depths: Sequence[int] = (6, 12, 24, 48, 96)) -> Claim:
    """Wang et al. 2022, the update of DeepNet's model."""
    names, kinds, within = ("post_ln", "pre_ln", "deepnorm"), ("all", "matrices"), 0.15
    found = {name: np.array([model_changes(name, n) for n in depths]) for name in names}
    exponents = {(n, k): slope(depths, found[n][:, i]) for n in names for i, k in enumerate(kinds)}
    rows = [
        (str(n), *(found[name][i, kind] for kind in (0, 1) for name in names))
        for i, n in enumerate(depths)
    ]
    listed = {k: ", ".join(f"{n} {exponents[n, k]:.2f}" for n in names) for k in kinds}
    flat = lambda kind: abs(exponents["deepnorm", kind]) < within < exponents["post_ln", kind]
    return Claim(
        "The first update of the model",
        "Wang et al. 2022, 2203.00555 (DeepNet), section 4",
        "a step of SGD moves the output of DeepNorm as far at any depth, and that of Post-LN "
        "farther the deeper it is. The argument counts the blocks' matrices; norms' gains and "
        "biases are not made smaller with depth.",
        f"Width {WIDTH}, 2 heads, MLP of {2 * WIDTH}, each preset with its own initial values, "
        f"{SEEDS} seeds, random tokens; RMS by which a first update at rate {UPDATE_LR} moves what "
        "the head reads, when all parameters move and when the blocks' matrices alone do.",
        ("blocks", *(f"{name}, {kind}" for kind in kinds for name in names)),
        rows,
        [
            Part(
                f"when the matrices move, DeepNorm's exponent of depth is within {within} of 0 and "
                "Post-LN's is above that",
                f"exponents {listed['matrices']}",
                flat("matrices"),
            ),
            Part("the same when all parameters move", f"exponents {listed['all']}", flat("all")),
        ],
    )


def stream_variance(n_layer: int = 32) -> Claim:
    """Sun et al. 2025 (LNS) and Kim et al. 2025 (Peri-LN): variance of the stream by depth."""
    # The same matrices for all, so that only the placement differs.
    same = {"residual_init": "1", "norm": "layernorm", "init": "xavier"}
    names = ("pre_ln", "lns", "peri_ln")
    variances = {name: _mean_squares(name, n_layer, **same) for name in names}
    return Claim(
        "Variance of the stream by depth",
        "Sun et al. 2025, 2502.05795 (LNS), section 4; Kim et al. 2025, 2502.02732 (Peri-LN), "
        "section 3",
        "LNS keeps the stream's variance from growing as Pre-LN's does; Peri-LN's grows linearly "
        "with depth.",
        f"Width {WIDTH}, {n_layer} blocks, the same Xavier matrices and LayerNorm in all three, "
        f"{SEEDS} seeds; mean square of the stream behind the block.",
        ("block", *names),
        [(str(l), *(variances[n][l - 1] for n in names)) for l in (1, *range(4, n_layer + 1, 4))],
        growth_parts(variances),
    )


def growth_parts(variances: dict[str, np.ndarray]) -> list[Part]:
    """Returns what is claimed of LNS's and Peri-LN's stream, put to the test."""
    bends = {name: bend(values) for name, values in variances.items()}
    by = {name: values[-1] - values[0] for name, values in variances.items()}
    return [
        Part(
            "LNS's stream grows by less than half of what Pre-LN's does",
            f"by {by['lns']:.3g} and {by['pre_ln']:.3g} from the first block to the last",
            by["lns"] < by["pre_ln"] / 2,
        ),
        Part(
            "Peri-LN's grows linearly (by 0.8 to 1.25 times as much in the last half of the blocks "
            "as in the first)",
            f"{bends['peri_ln']:.2f} times; Pre-LN's {bends['pre_ln']:.2f}, LNS's "
            f"{bends['lns']:.2f}",
            0.8 < bends["peri_ln"] < 1.25,
        ),
    ]


def _mean_squares(placement: str, n_layer: int, **model: Any) -> np.ndarray:
    """Returns the mean square of the stream behind each block, (L), mean over seeds."""
    built = structure(small_config(placement, n_layer, **model).model)
    tokens = jnp.asarray(random_batch()[:, :-1])
    measure = jax.jit(lambda key: observe(built, built.init(key), tokens, 0).stream_rms ** 2)
    return np.mean([measure(jax.random.key(seed)) for seed in range(SEEDS)], 0)


CLAIMS: dict[str, Callable[[], Claim]] = {
    "last_layer_gradient": last_layer_gradient,
    "stream_growth": stream_growth,
    "first_update": first_update,
    "stream_variance": stream_variance,
}
