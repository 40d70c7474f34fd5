"""Claims about models in training: small ones, on the bytes of Python's standard library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.guessing import guessing
from gpt2_jax.ablate.papers.claim import Claim, Part, bend
from gpt2_jax.ablate.papers.start import growth_parts
from gpt2_jax.ablate.population import Population
from gpt2_jax.config_check import check
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Tokens
from gpt2_jax.model.decode import bind_apart, take_apart
from gpt2_jax.model.diagnostics import observe
from gpt2_jax.model.structure import Structure

WIDTH, SEQ_LEN, ROWS = 64, 64, 8
STEPS, WARMUP, AT_ONCE = 300, 30, 10
LAST = 30  # updates whose mean loss is a run's result
SEEDS = 2
RATES = tuple(2.0**p for p in range(-12, -3))

SETUP = (
    f"Width {WIDTH}, 2 heads, {STEPS} updates of {ROWS} x {SEQ_LEN} bytes of Python's standard "
    "library, AdamW, a constant rate after the warm-up, gradients clipped to norm 1"
)


@cache
def text() -> Tokens:
    """Returns the bytes to train on."""
    corpus, _ = open_corpus("stdlib", None, "bytes", 0.1)
    assert corpus.train is not None
    return corpus.train


def small_config(placement: str, n_layer: int, rate: float, warmup: int, seed: int) -> ConfigDict:
    """Returns the config of one run."""
    config = configs.default()
    sizes = {"n_head": 2, "n_embd": WIDTH, "n_positions": SEQ_LEN, "n_layer": n_layer}
    config.model.update({"placement": placement, "unroll": False, **sizes})
    config.optimizer.update({"peak_lr": rate, "warmup_steps": warmup, "schedule": "constant"})
    config.data.tokenizer, config.data.seq_len = "bytes", SEQ_LEN
    config.train.batch_size, config.train.steps, config.seed = ROWS, STEPS, seed
    check(config)
    return configs.resolve(config, 257)


def train(members: Sequence[ConfigDict]) -> tuple[np.ndarray, Structure, list[Any]]:
    """Trains runs that differ in rate, warm-up and seed, together.

    Returns:
      The result of each, mean nats a byte over the last updates (not a number if any update had
      to be skipped); the model; and each one's parameters.
    """
    population = Population(members)
    losses = []
    samplers = [Sampler(text(), SEQ_LEN, ROWS, config.seed) for config in members]
    for first in range(0, STEPS, AT_ONCE):
        steps = range(first, first + AT_ONCE)
        batches = np.stack([np.stack([s.batch(step) for step in steps]) for s in samplers])
        measured = jax.device_get(population.advance(batches))
        losses.append(np.where(measured["skipped"] > 0, np.nan, measured["loss"]))
    results = np.concatenate(losses, axis=1)[: len(members), -LAST:].mean(1)
    trained = [population.member(i).params for i in range(len(members))]
    return results, population.structure, trained


def by_rate(
    placement: str, n_layer: int, warmups: Sequence[int] = (WARMUP,), rates: Sequence[float] = RATES
) -> dict[int, np.ndarray]:
    """Returns for each warm-up the result at each rate, the worst of the seeds."""
    keys = [(w, rate, seed) for w in warmups for rate in rates for seed in range(SEEDS)]
    results, *_ = train([small_config(placement, n_layer, rate, w, s) for w, rate, s in keys])
    shaped = np.max(results.reshape(len(warmups), len(rates), SEEDS), axis=-1)  # nan if any is
    return dict(zip(warmups, shaped, strict=True))


def largest(results: np.ndarray, share: float, rates: Sequence[float] = RATES) -> float:
    """Returns the largest rate at which every run learns; 0 if there is none.

    That is, takes at least `share` of what the best rate takes off the nats of guessing.
    """
    taken = np.nan_to_num(guessing(text()) - results, nan=-1.0)
    learns = (taken > 0) & (taken >= share * float(np.max(taken)))
    return max((rate for rate, ok in zip(rates, learns, strict=True) if ok), default=0.0)


def _shown(rate: float) -> str:
    return f"{rate:.2g}" if rate else f"below {RATES[0]:.2g}"


def largest_rates(n_layer: int = 24) -> Claim:
    """Keel, 2601.19895: rates that Post-LN, Pre-LN and Keel bear."""
    names = ("post_ln", "deepnorm", "pre_ln", "keel")
    results = {name: by_rate(name, n_layer)[WARMUP] for name in names}
    learns, trains = ({n: largest(results[n], share) for n in names} for share in (0.0, 0.5))
    rows = [(f"{rate:.2g}", *(results[n][i] for n in names)) for i, rate in enumerate(RATES)]
    for title, of in (("largest that learns", learns), ("largest that trains", trains)):
        rows.append((title, *(_shown(of[name]) for name in names)))
    both = lambda of, n: f"{_shown(of[n])} and {_shown(of['pre_ln'])}"
    return Claim(
        "The largest rate that trains a deep model",
        "Keel, 2601.19895 (64 and 512 layers)",
        "a deep Post-LN bears a rate many times smaller than Pre-LN's (3e-4 beside 7.7e-3 at 64 "
        "layers), and Keel, though it is Post-LN with a wide skip, one as large as Pre-LN's or "
        "larger (1e-2).",
        f"{SETUP}; {n_layer} blocks, warm-up of {WARMUP}. Mean nats a byte over the last {LAST} "
        f"updates, the worse of {SEEDS} seeds. At a rate it learns if that is below the "
        f"{guessing(text()):.2f} of guessing by frequency, and it trains if it takes at least half "
        "as much off them as at its best rate; a run may learn a little and still be broken.",
        ("rate", *names),
        rows,
        [
            Part(
                "Post-LN's largest rate that trains is below a quarter of Pre-LN's",
                both(trains, "post_ln"),
                max(trains["post_ln"], RATES[0]) < trains["pre_ln"] / 4,
            ),
            Part(
                "Keel's largest rate that trains is at least Pre-LN's",
                both(trains, "keel"),
                trains["keel"] >= trains["pre_ln"] > 0,
            ),
            Part(
                "Keel's largest rate that learns anything is at least Pre-LN's",
                both(learns, "keel"),
                learns["keel"] >= learns["pre_ln"] > 0,
            ),
        ],
    )


def without_warmup(n_layer: int = 12) -> Claim:
    """Xiong et al. 2020: Post-LN needs the warm-up, Pre-LN does not."""
    warmups = (0, 100)
    results = {name: by_rate(name, n_layer, warmups) for name in ("post_ln", "pre_ln")}
    columns = [(n, w) for n in results for w in warmups]
    rows = [
        (f"{rate:.2g}", *(results[n][w][i] for n, w in columns)) for i, rate in enumerate(RATES)
    ]
    learn = {(n, w): int((results[n][w] < guessing(text())).sum()) for n, w in columns}
    best = {(n, w): float(np.nanmin(results[n][w])) for n, w in columns}
    counts = lambda n: f"at {learn[n, 0]} and {learn[n, 100]} of {len(RATES)} rates"
    lows = f"{best['pre_ln', 0]:.2f} and {best['pre_ln', 100]:.2f}"
    return Claim(
        "Post-LN without warm-up",
        "Xiong et al. 2020, 2002.04745, section 4",
        "without a warm-up Post-LN fails at rates at which it trains with one (BLEU 8.45 in place "
        "of 34 on IWSLT14 at 1e-3), and Pre-LN does as well without.",
        f"{SETUP}; {n_layer} blocks. Mean nats a byte over the last {LAST} updates, the worse of "
        f"{SEEDS} seeds; guessing by frequency takes {guessing(text()):.2f}.",
        ("rate", *(f"{n}, warm-up {w}" for n, w in columns)),
        rows,
        [
            Part(
                "Post-LN learns at fewer rates without warm-up than with one",
                counts("post_ln"),
                learn["post_ln", 0] < learn["post_ln", 100],
            ),
            Part(
                "Pre-LN learns at as many",
                counts("pre_ln"),
                learn["pre_ln", 0] >= learn["pre_ln", 100] > 0,
            ),
            Part(
                "Pre-LN comes as far at its best rate, within 0.02 nats",
                lows,
                best["pre_ln", 0] - best["pre_ln", 100] < 0.02,
            ),
        ],
    )


def trained_variance(n_layer: int = 24, rate: float = 2.0**-10) -> Claim:
    """Sun et al. 2025 and Kim et al. 2025: the stream's variance in trained models."""
    names, variances = ("pre_ln", "lns", "peri_ln"), {}
    tokens = jnp.asarray(Sampler(text(), SEQ_LEN, ROWS, SEEDS).batch(STEPS)[:, :-1])
    for name in names:
        members = [small_config(name, n_layer, rate, WARMUP, seed) for seed in range(SEEDS)]
        _, model, trained = train(members)
        of = jax.jit(lambda params, model=model: observe(model, params, tokens, STEPS).stream_rms)
        variances[name] = np.mean([np.square(of(params)) for params in trained], 0)
    bent = bend(variances["pre_ln"])
    return Claim(
        "Variance of the trained stream",
        "Sun et al. 2025, 2502.05795 (LNS), section 3 and figure 4; Kim et al. 2025, 2502.02732 "
        "(Peri-LN)",
        "in training Pre-LN's stream may come to grow exponentially along the depth, while LNS's "
        "is held back and Peri-LN's grows linearly.",
        f"{SETUP}; {n_layer} blocks, rate {rate:.2g}, warm-up of {WARMUP}, each preset with its "
        f"own norm and initial values, {SEEDS} seeds; mean square of the stream behind the block.",
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


class _Recorded:
    """Stands for a sublayer's maps and keeps the matrices r (from, to) that mix the streams."""

    def __init__(self, maps: Any, kept: list[jax.Array]) -> None:
        self.maps, self.kept = maps, kept

    def __call__(self, h_nBTD: jax.Array) -> Any:
        out = self.maps(h_nBTD)
        self.kept.append(out[1])
        return out


def gains(model: Structure, params: Any, tokens_BT: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the forward and the backward gain of the mixing up to each sublayer, (S) each.

    The largest absolute row sum (over what a stream is made of) and column sum (over what is made
    of it) of the product of all matrices so far, of its mean over tokens.
    """
    bound = bind_apart(model, take_apart(model, params, STEPS))
    mixing: list[jax.Array] = []
    context = bound.model.context(jnp.arange(tokens_BT.shape[1]), None, STEPS)
    carry = bound.model.begin(bound.model.embed(tokens_BT, context))
    for layer, block in enumerate(bound.blocks):
        for which in ("attn", "mlp"):
            maps = getattr(block.connection, which)
            setattr(block.connection, which, _Recorded(maps, mixing))
        carry, _ = bound.model.pass_block(block, carry, context.at(layer, carry.values))
    product, sums = jnp.eye(mixing[0].shape[-1]), []
    for r in mixing:
        product = product @ r  # (from, to)
        mean = jnp.broadcast_to(product, (*tokens_BT.shape, *product.shape[-2:])).mean((0, 1))
        sums.append([float(jnp.abs(mean.sum(axis)).max()) for axis in (0, 1)])
    forward, backward = np.array(sums).T
    return forward, backward


def mixing_gain(n_layer: int = 12, rate: float = 2.0**-8) -> Claim:
    """DeepSeek 2025 (mHC): what the mixing of streams does to a signal over the depth."""
    names, most = ("hyper_connections", "mhc", "mhc_lite"), 1.6
    tokens = jnp.asarray(Sampler(text(), SEQ_LEN, ROWS, SEEDS).batch(STEPS)[:, :-1])
    found = {}
    for name in names:
        _, model, trained = train([small_config(name, n_layer, rate, WARMUP, s) for s in (0, 1)])
        found[name] = np.mean([gains(model, params, tokens) for params in trained], 0)
    ends = {name: found[name][:, -1] for name in names}
    sublayers = (1, *range(4, 2 * n_layer + 1, 4))
    listed = lambda name: f"{name} {ends[name][0]:.3g} and {ends[name][1]:.3g}"
    return Claim(
        "Gain of the mixing over depth",
        "DeepSeek 2025, 2512.24880 (mHC), figures 3 and 7",
        "the product of hyper-connections' mixing matrices amplifies what passes (about 3000 times "
        f"at 27B), that of mHC, kept doubly stochastic, does not (at most {most}).",
        f"{SETUP}; {n_layer} blocks, rate {rate:.2g}, 2 seeds; largest absolute row sum (forward) "
        "and column sum (backward) of the product of the matrices up to the sublayer, of its mean "
        "over tokens. Most of mHC's half holds by construction, whatever the training: products of "
        "doubly stochastic matrices have row and column sums of 1, so both gains of mhc_lite and "
        "the forward gain of mhc are 1; only mhc's backward gain measures anything, namely how far "
        "20 Sinkhorn iterations leave the columns from 1.",
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
    "largest_rates": largest_rates,
    "without_warmup": without_warmup,
    "trained_variance": trained_variance,
    "mixing_gain": mixing_gain,
}
