"""Claims about training, on small models and the bytes of Python's standard library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.claim import Claim, Part, bend
from experiments.papers.initialization import growth_parts
from gpt2_jax.ablation.unigram import unigram_entropy
from gpt2_jax.ablation.vectorized import VectorizedTrainer
from gpt2_jax.config import Config, replace, resolve
from gpt2_jax.config.check import check
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.decode import bind_unstacked, unstack_params
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.diagnostics import observe

WIDTH, SEQ_LEN, ROWS = 64, 64, 8
STEPS, WARMUP, PER_DISPATCH = 300, 30, 10
LAST = 30  # steps whose mean loss is a run's result
SEEDS = 2
LEARNING_RATES = tuple(2.0**p for p in range(-12, -3))

SETUP = (
    f"Width {WIDTH}, 2 heads, {STEPS} steps of {ROWS} x {SEQ_LEN} bytes of Python's standard "
    "library, AdamW, a constant learning rate after the warm-up, gradients clipped to norm 1"
)


@cache
def text() -> Tokens:
    """Returns the bytes to train on."""
    corpus, _ = open_corpus("stdlib", None, "bytes", 0.1)
    assert corpus.train is not None
    return corpus.train


def small_config(placement: str, n_layer: int, lr: float, warmup: int, seed: int) -> Config:
    """Returns the config of one run."""
    config = replace(
        Config(),
        {
            "seed": seed,
            "model.n_layer": n_layer,
            "model.n_head": 2,
            "model.n_embd": WIDTH,
            "model.n_positions": SEQ_LEN,
            "model.unroll": False,
            "placement.preset": placement,
            "data.tokenizer": "bytes",
            "data.seq_len": SEQ_LEN,
            "optimizer.peak_lr": lr,
            "optimizer.warmup_steps": warmup,
            "optimizer.schedule": "constant",
            "train.batch_size": ROWS,
            "train.steps": STEPS,
        },
    )
    check(config)
    return resolve(config, 257)


def train(runs: Sequence[Config]) -> tuple[np.ndarray, ModelDef, list[Any]]:
    """Trains runs that differ in learning rate, warm-up and seed, together.

    Returns:
      The mean nats per byte of each run over its last steps (nan if any step was skipped); the
      model; and the parameters of each run.
    """
    trainer = VectorizedTrainer(runs)
    losses = []
    samplers = [Sampler(text(), SEQ_LEN, ROWS, config.seed) for config in runs]
    for first in range(0, STEPS, PER_DISPATCH):
        steps = range(first, first + PER_DISPATCH)
        batches = np.stack(
            [np.stack([s.batch(step).tokens_BT1 for step in steps]) for s in samplers]
        )
        measured = jax.device_get(trainer.advance(batches))
        losses.append(np.where(measured["skipped"] > 0, np.nan, measured["loss"]))
    results = np.concatenate(losses, axis=1)[: len(runs), -LAST:].mean(1)
    trained = [trainer.state(i).params for i in range(len(runs))]
    return results, trainer.model_def, trained


def by_learning_rate(
    placement: str,
    n_layer: int,
    warmups: Sequence[int] = (WARMUP,),
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> dict[int, np.ndarray]:
    """Returns, for each warm-up, the result of the worst seed at each learning rate."""
    keys = [(w, lr, seed) for w in warmups for lr in learning_rates for seed in range(SEEDS)]
    results, *_ = train([small_config(placement, n_layer, lr, w, s) for w, lr, s in keys])
    shape = (len(warmups), len(learning_rates), SEEDS)
    shaped = np.max(results.reshape(shape), axis=-1)  # nan if any is
    return dict(zip(warmups, shaped, strict=True))


def largest(
    results: np.ndarray, share: float, learning_rates: Sequence[float] = LEARNING_RATES
) -> float:
    """Returns the largest learning rate at which every run learns; 0 if there is none.

    A run learns if it ends below the unigram entropy, by at least `share` of the best run's margin.
    """
    gains = np.nan_to_num(unigram_entropy(text()) - results, nan=-1.0)
    learns = (gains > 0) & (gains >= share * float(np.max(gains)))
    return max((lr for lr, ok in zip(learning_rates, learns, strict=True) if ok), default=0.0)


def _shown(lr: float) -> str:
    return f"{lr:.2g}" if lr else f"below {LEARNING_RATES[0]:.2g}"


def largest_learning_rates(n_layer: int = 24) -> Claim:
    """Keel, 2601.19895: learning rates that Post-LN, Pre-LN and Keel tolerate."""
    names = ("post_ln", "deepnorm", "pre_ln", "keel")
    results = {name: by_learning_rate(name, n_layer)[WARMUP] for name in names}
    learns, trains = ({n: largest(results[n], share) for n in names} for share in (0.0, 0.5))
    rows = [(f"{lr:.2g}", *(results[n][i] for n in names)) for i, lr in enumerate(LEARNING_RATES)]
    for title, of in (("largest that learns", learns), ("largest that trains", trains)):
        rows.append((title, *(_shown(of[name]) for name in names)))
    both = lambda of, n: f"{_shown(of[n])} and {_shown(of['pre_ln'])}"
    return Claim(
        "The largest learning rate that trains a deep model",
        "Keel, 2601.19895 (64 and 512 layers)",
        "a deep Post-LN model tolerates a learning rate many times smaller than Pre-LN (3e-4 "
        "compared with 7.7e-3 at 64 layers), whereas Keel, although it is Post-LN with a scaled "
        "skip, tolerates one as large as Pre-LN's or larger (1e-2).",
        f"{SETUP}; {n_layer} blocks, warm-up of {WARMUP} steps. Mean nats per byte over the last "
        f"{LAST} steps, the worse of {SEEDS} seeds. A model learns at a learning rate if that is "
        f"below the unigram entropy of {unigram_entropy(text()):.2f}, and trains if it is below it "
        "by at least half as much as at its best learning rate; a run may learn a little and "
        "still be broken.",
        ("learning rate", *names),
        rows,
        [
            Part(
                "Post-LN's largest learning rate that trains is below a quarter of Pre-LN's",
                both(trains, "post_ln"),
                max(trains["post_ln"], LEARNING_RATES[0]) < trains["pre_ln"] / 4,
            ),
            Part(
                "Keel's largest learning rate that trains is at least Pre-LN's",
                both(trains, "keel"),
                trains["keel"] >= trains["pre_ln"] > 0,
            ),
            Part(
                "Keel's largest learning rate that learns is at least Pre-LN's",
                both(learns, "keel"),
                learns["keel"] >= learns["pre_ln"] > 0,
            ),
        ],
    )


def without_warmup(n_layer: int = 12) -> Claim:
    """Xiong et al. 2020: Post-LN needs the warm-up, Pre-LN does not."""
    warmups = (0, 100)
    results = {name: by_learning_rate(name, n_layer, warmups) for name in ("post_ln", "pre_ln")}
    columns = [(n, w) for n in results for w in warmups]
    rows = [
        (f"{lr:.2g}", *(results[n][w][i] for n, w in columns))
        for i, lr in enumerate(LEARNING_RATES)
    ]
    entropy = unigram_entropy(text())
    learn = {(n, w): int((results[n][w] < entropy).sum()) for n, w in columns}
    best = {(n, w): float(np.nanmin(results[n][w])) for n, w in columns}
    counts = lambda n: f"at {learn[n, 0]} and {learn[n, 100]} of {len(LEARNING_RATES)}"
    lows = f"{best['pre_ln', 0]:.2f} and {best['pre_ln', 100]:.2f}"
    return Claim(
        "Post-LN without warm-up",
        "Xiong et al. 2020, 2002.04745, section 4",
        "without warm-up, Post-LN fails at learning rates at which it trains with warm-up (BLEU "
        "8.45 instead of 34 on IWSLT14 at 1e-3), while Pre-LN does equally well without.",
        f"{SETUP}; {n_layer} blocks. Mean nats per byte over the last {LAST} steps, the worse of "
        f"{SEEDS} seeds; the unigram entropy is {entropy:.2f}.",
        ("learning rate", *(f"{n}, warm-up {w}" for n, w in columns)),
        rows,
        [
            Part(
                "Post-LN learns at fewer learning rates without warm-up than with it",
                counts("post_ln"),
                learn["post_ln", 0] < learn["post_ln", 100],
            ),
            Part(
                "Pre-LN learns at as many without as with it",
                counts("pre_ln"),
                learn["pre_ln", 0] >= learn["pre_ln", 100] > 0,
            ),
            Part(
                "Pre-LN's best loss without warm-up is within 0.02 nats of that with it",
                lows,
                best["pre_ln", 0] - best["pre_ln", 100] < 0.02,
            ),
        ],
    )


def trained_variance(n_layer: int = 24, lr: float = 2.0**-10) -> Claim:
    """Sun et al. 2025 and Kim et al. 2025: the stream's variance in trained models."""
    names, variances = ("pre_ln", "lns", "peri_ln"), {}
    tokens = jnp.asarray(Sampler(text(), SEQ_LEN, ROWS, SEEDS).batch(STEPS).inputs_BT)
    for name in names:
        runs = [small_config(name, n_layer, lr, WARMUP, seed) for seed in range(SEEDS)]
        _, model, trained = train(runs)
        of = jax.jit(lambda params, model=model: observe(model, params, tokens, STEPS).stream_rms)
        variances[name] = np.mean([np.square(of(params)) for params in trained], 0)
    bent = bend(variances["pre_ln"])
    return Claim(
        "Variance of the stream after training",
        "Sun et al. 2025, 2502.05795 (LNS), section 3 and figure 4; Kim et al. 2025, 2502.02732 "
        "(Peri-LN)",
        "during training, Pre-LN's stream may come to grow exponentially with depth, while LNS's "
        "growth is limited and Peri-LN's is linear.",
        f"{SETUP}; {n_layer} blocks, learning rate {lr:.2g}, warm-up of {WARMUP} steps, each "
        f"preset with its own norm and initial values, {SEEDS} seeds; mean square of the stream "
        "after the block.",
        ("block", *names),
        [(str(l), *(variances[n][l - 1] for n in names)) for l in (1, *range(4, n_layer + 1, 4))],
        [
            *growth_parts(variances),
            Part(
                "Pre-LN's grows faster than linearly (more than 1.25 times as much in the last "
                "half of the blocks as in the first)",
                f"{bent:.2f} times",
                bent > 1.25,
            ),
        ],
    )


class _Recorder:
    """Wraps a sublayer's maps and records the matrices r (from, to) that mix the streams."""

    def __init__(self, maps: Any, kept: list[jax.Array]) -> None:
        self.maps, self.kept = maps, kept

    def __call__(self, h_nBTD: jax.Array) -> Any:
        out = self.maps(h_nBTD)
        self.kept.append(out[1])
        return out


def gains(model: ModelDef, params: Any, tokens_BT: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the forward and the backward gain of the mixing up to each sublayer, (S) each.

    Both are computed from the product of all mixing matrices so far, averaged over tokens, as the
    largest absolute sum of any stream: forward over the streams that it is made of (a row in the
    paper's notation), backward over those that it contributes to (a column).
    """
    bound = bind_unstacked(model, unstack_params(model, params, STEPS))
    mixing: list[jax.Array] = []
    context = bound.model.context(jnp.arange(tokens_BT.shape[1]), None, STEPS)
    carry = bound.model.blocks.begin(bound.model.embedding(tokens_BT, context))
    for layer, block in enumerate(bound.blocks):
        for which in ("attn", "mlp"):
            maps = getattr(block.connection, which)
            setattr(block.connection, which, _Recorder(maps, mixing))
        carry, _ = bound.model.blocks.apply(block, carry, context.at(layer, carry.first_values))
    product, sums = jnp.eye(mixing[0].shape[-1]), []
    for r in mixing:
        product = product @ r  # (from, to)
        mean = jnp.broadcast_to(product, (*tokens_BT.shape, *product.shape[-2:])).mean((0, 1))
        sums.append([float(jnp.abs(mean.sum(axis)).max()) for axis in (0, 1)])
    forward, backward = np.array(sums).T
    return forward, backward


def mixing_gain(n_layer: int = 12, lr: float = 2.0**-8) -> Claim:
    """DeepSeek 2025 (mHC): the gain of the mixing of streams over depth."""
    names, most = ("hyper_connections", "mhc", "mhc_lite"), 1.6
    tokens = jnp.asarray(Sampler(text(), SEQ_LEN, ROWS, SEEDS).batch(STEPS).inputs_BT)
    found = {}
    for name in names:
        _, model, trained = train([small_config(name, n_layer, lr, WARMUP, s) for s in (0, 1)])
        found[name] = np.mean([gains(model, params, tokens) for params in trained], 0)
    ends = {name: found[name][:, -1] for name in names}
    sublayers = (1, *range(4, 2 * n_layer + 1, 4))
    listed = lambda name: f"{name} {ends[name][0]:.3g} and {ends[name][1]:.3g}"
    return Claim(
        "Gain of the mixing over depth",
        "DeepSeek 2025, 2512.24880 (mHC), figures 3 and 7",
        "the product of hyper-connections' mixing matrices amplifies signals (about 3000 times at "
        f"27B parameters); that of mHC, kept doubly stochastic, does not (at most {most}).",
        f"{SETUP}; {n_layer} blocks, learning rate {lr:.2g}, 2 seeds; largest absolute row sum "
        "(forward) and column sum (backward) of the mean over tokens of the product of the "
        "matrices up to the sublayer. Most of the statement on mHC holds by construction, however "
        "it is trained: products of doubly stochastic matrices have row and column sums of 1, so "
        "both gains of mhc_lite and the forward gain of mhc are 1. Only mhc's backward gain is a "
        "measurement: of how far from 1 the column sums are after 20 Sinkhorn iterations.",
        ("sublayer", *(f"{name}, {way}" for name in names for way in ("forward", "backward"))),
        [(str(s), *(found[n][way, s - 1] for n in names for way in (0, 1))) for s in sublayers],
        [
            Part(
                f"hyper-connections' gain is above {most} in both directions",
                listed(names[0]),
                bool((ends[names[0]] > most).all()),
            ),
            Part(
                f"that of mHC and mHC-lite is not above {most}",
                f"{listed(names[1])}, {listed(names[2])}",
                all(bool((ends[name] <= most).all()) for name in names[1:]),
            ),
        ],
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "largest_learning_rates": largest_learning_rates,
    "without_warmup": without_warmup,
    "trained_variance": trained_variance,
    "mixing_gain": mixing_gain,
}
