"""Claims about models at initialization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.claim import Claim, Part, bend, slope, spread
from gpt2_jax.ablation.diagnosis import STEP_LR, change, step_directions
from gpt2_jax.config import Config, replace, resolve
from gpt2_jax.config.check import check
from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import ModelDef, define_model, is_info
from gpt2_jax.model.diagnostics import observe
from gpt2_jax.nn.param import Role
from gpt2_jax.train.loss import mean_loss

WIDTH = 64
SEQ_LEN = 64
ROWS = 8
VOCABULARY = 512
SEEDS = 5

THEOREM = (
    f"The paper's setting: one head, W_Q = W_K = 0, W_O = I, an MLP of width d with ReLU, Xavier "
    f"initialization without a depth factor, embeddings of variance 1, no position embeddings; but "
    f"attention is causal, a mean over the tokens so far. d = {WIDTH}, {ROWS} sequences of "
    f"{SEQ_LEN} random tokens, {SEEDS} seeds."
)


def theorem_model(placement: str, n_layer: int) -> ModelDef:
    """Returns a model under the assumptions of Xiong et al. 2020, section 3.3."""
    config = replace(
        Config(),
        {
            "model.n_layer": n_layer,
            "model.unroll": False,
            "model.n_head": 1,
            "model.n_embd": WIDTH,
            "model.n_inner": WIDTH,
            "model.n_positions": SEQ_LEN,
            "model.vocab_size": VOCABULARY,
            "model.tie_head": False,
            "model.init_std": WIDTH**-0.5,
            "placement.preset": placement,
            "placement.init": "xavier",
            "placement.query_init": "0",
            "placement.key_init": "0",
            "placement.residual_init": "1",
            "placement.embedding_std": "1",
            "placement.embedding_multiplier": "1",
            "placement.positions": "none",
            "placement.activation": "relu",
            "data.seq_len": SEQ_LEN,
            "train.batch_size": ROWS,
        },
    )
    check(config)
    return define_model(config.model, config.placement)


def theorem_params(model: ModelDef, key: jax.Array) -> Any:
    """Returns initial parameters with W_O = I; attention is the mean of the values."""
    params = model.init(key)
    for stack in model.spec.stacks:
        attention = params["blocks"][stack.name]["attn"]["sublayer"]
        kernel = attention["out"]["kernel"]
        identity = jnp.eye(WIDTH).reshape(kernel.shape[1:])
        attention["out"]["kernel"] = jnp.broadcast_to(identity, kernel.shape)
    return params


def last_gradient_and_streams(placement: str, n_layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the last block's |dL/dW_2| (Frobenius), and the stream's mean square by block.

    The former is per seed, the latter a mean over seeds. The loss is the mean over positions.
    """
    model = theorem_model(placement, n_layer)

    @jax.jit
    def measure(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = theorem_params(model, jax.random.fold_in(key, 0))
        shape = (ROWS, SEQ_LEN + 1)
        tokens = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, VOCABULARY)
        grads = jax.grad(mean_loss)(params, model, Batch(tokens), None, 0)
        last = grads["blocks"][model.spec.stacks[-1].name]["mlp"]["sublayer"]["down"]["kernel"][-1]
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
        "at initialization, the gradient of the last block's second MLP matrix is bounded by "
        "O(d sqrt(ln d)) in Post-LN, independently of the number of blocks L, and by "
        "O(d sqrt(ln d / L)) in Pre-LN.",
        f"{THEOREM} Frobenius norm, mean (minimum to maximum).",
        ("blocks", "Post-LN", "Pre-LN"),
        [(str(n), *(spread(norms[name][i]) for name in names)) for i, n in enumerate(depths)],
        [
            Part(
                f"in Post-LN it is independent of L (exponent of L within {within} of 0)",
                f"exponent {post:.2f}",
                abs(post) < within,
            ),
            Part(
                f"in Pre-LN it decreases as 1/sqrt(L) (exponent within {within} of -0.5)",
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
        "after block l of Pre-LN, the mean square of the residual stream is between 1 + l/2 and "
        "1 + 3l/2.",
        THEOREM,
        ("block l", "1 + l/2", "measured", "1 + 3l/2"),
        rows,
        [
            Part(
                "it is within these bounds after every block of the table",
                f"it grows by {growth:.2f} per block",
                all(low <= value <= high for _, low, value, high in rows),
            )
        ],
    )


def small_config(placement: str, n_layer: int, changes: Mapping[str, Any] | None = None) -> Config:
    """Returns the config of a narrow model on random tokens, as in DeepNet's figure 5."""
    sizes = {
        "model.n_layer": n_layer,
        "model.n_head": 2,
        "model.n_embd": WIDTH,
        "model.n_inner": 2 * WIDTH,
        "model.n_positions": SEQ_LEN,
        "model.unroll": False,
        "placement.preset": placement,
        "data.seq_len": SEQ_LEN,
        "train.batch_size": ROWS,
        "mesh.data": 1,
    }
    config = replace(Config(), sizes | dict(changes or {}))
    check(config)
    return resolve(config, VOCABULARY)


def random_batch(seed: int = 0) -> np.ndarray:
    """Returns random tokens (B, T+1)."""
    draw = np.random.default_rng(seed).integers
    return draw(0, VOCABULARY, (ROWS, SEQ_LEN + 1), np.int32)


def model_changes(placement: str, n_layer: int) -> tuple[float, float]:
    """Returns the RMS by which one step of SGD at learning rate 1e-4 moves the head's input.

    The two values are for training all parameters, and only the blocks' matrices.
    """
    config = small_config(placement, n_layer)
    model = define_model(config.model, config.placement)
    tokens = jnp.asarray(random_batch())

    @jax.jit
    def measure(key: jax.Array) -> list[jax.Array]:
        params, changes = model.init(key), []
        grads = jax.grad(mean_loss)(params, model, Batch(tokens), None, 0)
        every = step_directions(config, model, params, grads)["sgd"]
        for roles in (set(Role), {Role.MATRIX}):
            chosen = lambda info, u, roles=roles: u * (info.role in roles)
            direction = jax.tree.map(chosen, model.infos, every, is_leaf=is_info)
            changes.append(change(model, params, direction, tokens[:, :-1], 0)[1])
        return changes

    found = [measure(jax.random.key(seed)) for seed in range(SEEDS)]
    everything, matrices = np.mean(jax.device_get(found), 0)
    return float(everything), float(matrices)


def first_step(depths: Sequence[int] = (6, 12, 24, 48, 96)) -> Claim:
    """Wang et al. 2022: the model update of DeepNet."""
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
        "The first model update",
        "Wang et al. 2022, 2203.00555 (DeepNet), section 4",
        "one step of SGD moves the output of DeepNorm by the same amount at any depth, and that of "
        "Post-LN by more the deeper it is. The argument is about the blocks' matrices; gains of "
        "norms and biases are not scaled down with depth.",
        f"Width {WIDTH}, 2 heads, MLP of {2 * WIDTH}, each preset with its own initial values, "
        f"{SEEDS} seeds, random tokens; RMS by which one step at learning rate {STEP_LR} moves the "
        "head's input, if all parameters are trained and if only the blocks' matrices are.",
        ("blocks", *(f"{name}, {kind}" for kind in kinds for name in names)),
        rows,
        [
            Part(
                "if only matrices are trained, DeepNorm's exponent of depth is within "
                f"{within} of 0 and Post-LN's is larger",
                f"exponents {listed['matrices']}",
                flat("matrices"),
            ),
            Part(
                "the same if all parameters are trained", f"exponents {listed['all']}", flat("all")
            ),
        ],
    )


def stream_variance(n_layer: int = 32) -> Claim:
    """Sun et al. 2025 (LNS) and Kim et al. 2025 (Peri-LN): the stream's variance by depth."""
    # All have the same initial matrices and differ only in the placement.
    same = {
        "placement.residual_init": "1",
        "placement.norm_type": "layernorm",
        "placement.init": "xavier",
    }
    names = ("pre_ln", "lns", "peri_ln")
    variances = {name: _mean_squares(name, n_layer, same) for name in names}
    return Claim(
        "Variance of the stream by depth",
        "Sun et al. 2025, 2502.05795 (LNS), section 4; Kim et al. 2025, 2502.02732 (Peri-LN), "
        "section 3",
        "LNS prevents the stream's variance from growing as it does in Pre-LN; in Peri-LN it grows "
        "linearly with depth.",
        f"Width {WIDTH}, {n_layer} blocks, the same Xavier matrices and LayerNorm in all three, "
        f"{SEEDS} seeds; mean square of the stream after the block.",
        ("block", *names),
        [(str(l), *(variances[n][l - 1] for n in names)) for l in (1, *range(4, n_layer + 1, 4))],
        growth_parts(variances),
    )


def growth_parts(variances: dict[str, np.ndarray]) -> list[Part]:
    """Tests the claims about the streams of LNS and Peri-LN on variances (L)."""
    bends = {name: bend(values) for name, values in variances.items()}
    by = {name: values[-1] - values[0] for name, values in variances.items()}
    return [
        Part(
            "LNS's stream grows by less than half as much as Pre-LN's",
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


def _mean_squares(
    placement: str, n_layer: int, changes: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Returns the mean square of the stream after each block, averaged over seeds, (L)."""
    config = small_config(placement, n_layer, changes)
    built = define_model(config.model, config.placement)
    tokens = jnp.asarray(random_batch()[:, :-1])
    measure = jax.jit(lambda key: observe(built, built.init(key), tokens, 0).stream_rms ** 2)
    return np.mean([measure(jax.random.key(seed)) for seed in range(SEEDS)], 0)


CLAIMS: dict[str, Callable[[], Claim]] = {
    "last_layer_gradient": last_layer_gradient,
    "stream_growth": stream_growth,
    "first_step": first_step,
    "stream_variance": stream_variance,
}
