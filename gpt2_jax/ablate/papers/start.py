"""Claims about models before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.diagnosis import UPDATE_LR
from gpt2_jax.ablate.papers.claim import Claim, linearity, slope
from gpt2_jax.config_check import check
from gpt2_jax.model.diagnostics import observe, rms
from gpt2_jax.model.parts import Role
from gpt2_jax.model.structure import Info, Structure, structure
from gpt2_jax.train.step import mean_loss

WIDTH = 64
SEQ_LEN = 64
ROWS = 8
TOKENS = 512  # of the vocabulary: more than a batch holds, so that inputs are nearly independent
SEEDS = 5

THEOREM = (
    f"Their setting: one head, W_Q = W_K = 0, W_O = I, an MLP of width d with ReLU, Xavier's "
    f"matrices without a factor for depth, embeddings of variance 1, no positions; d = {WIDTH}, "
    f"{ROWS} sequences of {SEQ_LEN} random tokens, {SEEDS} seeds."
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


def last_gradient_and_streams(placement: str, n_layer: int) -> tuple[float, np.ndarray]:
    """Returns |dL/dW_2| (Frobenius) in the last block, and the mean square of each block's stream.

    Means over seeds; the loss is the mean over positions.
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
    return float(np.mean(norms)), np.mean(squares, 0)


def last_layer_gradient(depths: Sequence[int] = (4, 8, 16, 32, 64)) -> Claim:
    """Xiong et al. 2020, Theorem 1."""
    norms = {
        name: [last_gradient_and_streams(name, n)[0] for n in depths]
        for name in ("post_ln", "pre_ln")
    }
    post, pre = (slope(depths, norms[name]) for name in ("post_ln", "pre_ln"))
    return Claim(
        "The last layer's gradient",
        "Xiong et al. 2020, 2002.04745, Theorem 1",
        "before training, the gradient of the last block's second MLP matrix does not depend on "
        "the number L of blocks in Post-LN, and falls as 1/sqrt(L) in Pre-LN.",
        THEOREM,
        ("blocks", "Post-LN", "Pre-LN"),
        list(zip(map(str, depths), norms["post_ln"], norms["pre_ln"], strict=True)),
        abs(post) < 0.15 and abs(pre + 0.5) < 0.15,
        f"the exponents of L are {post:.2f} in Post-LN (claimed 0) and {pre:.2f} in Pre-LN "
        "(claimed -0.5).",
    )


def stream_growth(n_layer: int = 32) -> Claim:
    """Xiong et al. 2020, Lemma 2."""
    squares = last_gradient_and_streams("pre_ln", n_layer)[1]
    blocks = [1, *range(4, n_layer + 1, 4)]
    rows = [(str(l), 1 + l / 2, squares[l - 1], 1 + 3 * l / 2) for l in blocks]
    inside = all(low <= value <= high for _, low, value, high in rows)
    growth = np.polyfit(np.arange(1, n_layer + 1), squares, 1)[0]
    return Claim(
        "Growth of the Pre-LN stream",
        "Xiong et al. 2020, 2002.04745, Lemma 2",
        "behind block l of Pre-LN the mean square of the stream lies between 1 + l/2 and 1 + 3l/2.",
        THEOREM,
        ("block l", "1 + l/2", "measured", "1 + 3l/2"),
        rows,
        inside,
        f"it grows by {growth:.2f} a block (claimed between 0.5 and 1.5).",
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
    model = structure(small_config(placement, n_layer).model)
    tokens = jnp.asarray(random_batch())

    @jax.jit
    def measure(key: jax.Array) -> list[jax.Array]:
        params = model.init(key)
        grads = jax.grad(mean_loss)(params, model, tokens, None, 0)
        hidden = lambda p: model.bind(p).hidden(tokens[:, :-1], None, 0)
        before, changes = hidden(params), []
        for roles in (set(Role), {Role.MATRIX}):
            moves = lambda info, p, g, roles=roles: p - UPDATE_LR * g * (info.role in roles)
            moved = jax.tree.map(
                moves, model.infos, params, grads, is_leaf=lambda x: isinstance(x, Info)
            )
            changes.append(rms(hidden(moved) - before))
        return changes

    found = [measure(jax.random.key(seed)) for seed in range(SEEDS)]
    all_of_them, matrices = np.mean(jax.device_get(found), 0)
    return float(all_of_them), float(matrices)


def first_update(depths: Sequence[int] = (6, 12, 24, 48, 96)) -> Claim:
    """Wang et al. 2022, the update of DeepNet's model."""
    names = ("post_ln", "pre_ln", "deepnorm")
    change = {name: np.array([model_changes(name, n) for n in depths]) for name in names}
    exponents = {name: [slope(depths, x) for x in change[name].T] for name in names}
    kinds = ("all parameters", "matrices")
    rows = [
        (str(n), *(change[name][i, kind] for kind in (0, 1) for name in names))
        for i, n in enumerate(depths)
    ]
    described = [
        f"with {kind} " + ", ".join(f"{name} {exponents[name][which]:.2f}" for name in names)
        for which, kind in enumerate(kinds)
    ]
    return Claim(
        "The first update of the model",
        "Wang et al. 2022, 2203.00555 (DeepNet), section 4",
        "a step of SGD changes the output of DeepNorm by as much at any depth, and that of "
        "Post-LN by more the deeper it is.",
        f"Width {WIDTH}, 2 heads, MLP of {2 * WIDTH}, each preset with its own initial values, "
        f"{SEEDS} seeds; RMS by which a first update at rate {UPDATE_LR} moves what the head "
        "reads, on random tokens. The paper's argument counts the matrices of the blocks; norms' "
        "gains and biases are not made smaller with depth.",
        ("blocks", *(f"{name}, {kind}" for kind in kinds for name in names)),
        rows,
        abs(exponents["deepnorm"][1]) < 0.15 and exponents["post_ln"][1] > 0.15,
        f"exponents of depth: {'; '.join(described)}.",
    )


def stream_variance(n_layer: int = 32) -> Claim:
    """Sun et al. 2025 (LNS) and Kim et al. 2025 (Peri-LN): variance of the stream by depth."""
    # The same matrices for all, so that only the placement differs.
    same = {"residual_init": "1", "norm": "layernorm", "init": "xavier"}
    names = ("pre_ln", "lns", "peri_ln")
    variances = {name: _mean_squares(name, n_layer, **same) for name in names}
    blocks = [1, *range(4, n_layer + 1, 4)]
    grown = {name: values[-1] / values[0] for name, values in variances.items()}
    straight = {name: linearity(variances[name]) for name in names}
    return Claim(
        "Variance of the stream by depth",
        "Sun et al. 2025, 2502.05795 (LNS), Lemmas 3.2 and 4.1; Kim et al. 2025, 2502.02732 "
        "(Peri-LN), section 3",
        "LNS's stream grows more slowly than Pre-LN's; Peri-LN's grows linearly in the number of "
        "blocks. (That Pre-LN's grows exponentially is said of trained models.)",
        f"Width {WIDTH}, {n_layer} blocks, the same Xavier matrices and LayerNorm in all three; "
        "mean square of the stream behind the block.",
        ("block", *names),
        [(str(l), *(variances[name][l - 1] for name in names)) for l in blocks],
        grown["lns"] < 0.7 * grown["pre_ln"] and straight["peri_ln"] > 0.99,
        "from the first block to the last it grows "
        + ", ".join(f"{grown[name]:.1f} times in {name}" for name in names)
        + "; a straight line explains "
        + ", ".join(f"{straight[name]:.2%} of {name}" for name in names)
        + ".",
    )


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
