"""The words and tables of a campaign's report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from math import isnan
from typing import Any

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.definition import Definition
from gpt2_jax.ablate.campaign.design import count, describe
from gpt2_jax.ablate.campaign.terms import decay_text, search_text, tokens_per_parameter
from gpt2_jax.ablate.report.markup import NONE, escaped, signed, table
from gpt2_jax.ablate.report.recipes import config_of, recipes, texts
from gpt2_jax.ablate.report.variant import Analysis, Variant, rate_of
from gpt2_jax.ablate.statistics import (
    LEVEL,
    MOST_SEEDS,
    POWER,
    SPREAD_LEVEL,
    Interval,
    detectable,
)
from gpt2_jax.train.report import tokens_per_step
from gpt2_jax.train.schedule import warmup_steps

NO_FIGURES = "None were asked for: set `track.diagnostics_every`."


def markdown(found: Analysis, definition: Definition, figures: dict[str, str]) -> str:
    """Returns report.md.

    Args:
      figures: captions by path.
    """
    shown = lambda name: [
        line
        for path, caption in figures.items()
        if path.rpartition("/")[2].startswith(name)
        for line in (f"![{caption}]({path})", "", f"*{caption}*", "")
    ]
    caveats = [f"- {escaped(line)}" for line in found.warnings]
    parts = [
        _head(found, definition),
        ["## Verdict", "", *_verdict(found), *shown("losses")],
        ["## What is not to be concluded", "", *caveats, ""],
        ["## Learning rates", "", *_rates(found), *shown("rates")],
        ["## Learning curves", "", *shown("curves")],
        ["## What they cost", "", *_costs(found)],
        ["## By depth", "", *(shown("depth") or [NO_FIGURES, ""])],
        ["## The variants", "", *recipes(found, definition)],
        ["## How it was done", "", *_method(found, definition)],
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _head(found: Analysis, definition: Definition) -> list[str]:
    state = (
        "finished" if found.complete else f"{found.n_done} of {found.n_cells} cells known so far"
    )
    own = [config_of(variant, definition) for variant in found.variants]
    flat = [configs.flatten(one) for one in own]
    warmup = _either(map(_warmup, found.variants, own))
    given = lambda name: _either(one[name] for one in flat)
    infos = [v.info for v in found.variants if v.info.get("flops_per_token")]
    tokens = _either(round(i["flops"] / i["flops_per_token"]) for i in infos)
    return [
        f"# {escaped(definition.title)}",
        "",
        f"{count(len(found.variants), 'variant')}, "
        f"{escaped(describe(found.campaign.baseline)) or 'the base'} for a baseline: {state}.",
        f"{given('model.n_layer')} layers of width {given('model.n_embd')} on "
        f"{given('data.source')} (tokenizer {given('data.tokenizer')}), {given('optimizer.name')}"
        + (f"; {tokens} tokens a run." if tokens else "."),
        f"Warm-up of {warmup} steps; "
        + decay_text(one["optimizer.weight_decay"] for one in flat)
        + "".join(f"; {ratio}" for ratio in _tokens_per_parameter(found))
        + ".",
        "",
    ]


def _warmup(variant: Variant, config: ConfigDict) -> int:
    """Returns the steps of a variant's warm-up, which may be a share of the campaign's budget."""
    info = variant.info
    if info.get("flops_per_token"):
        tokens = round(info["flops"] / info["flops_per_token"])
        config.train.steps = max(1, round(tokens / tokens_per_step(config)))
    return warmup_steps(config)


def _tokens_per_parameter(found: Analysis) -> list[str]:
    infos = [v.info for v in found.variants if v.info.get("flops_per_token")]
    sizes = [(round(i["flops"] / i["flops_per_token"]), i["parameters"]) for i in infos]
    return [tokens_per_parameter(sizes)] if sizes else []


def _either(values: Iterable[Any]) -> str:
    """Returns `4, 8 or 16`, each once, as Markdown shows it."""
    shown = [f"{v:,}" if isinstance(v, int) else str(v) for v in dict.fromkeys(values)]
    return escaped(" or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown))


def _verdict(found: Analysis) -> list[str]:
    if not any(variant.median for variant in found.variants):
        return ["No variant has all its fresh seeds yet.", ""]
    order = sorted(found.variants, key=lambda v: v.median.estimate if v.median else float("inf"))
    rows = [
        (
            escaped(v.name),
            _rate(v.rate),
            _number(v.median.estimate if v.median else None),
            _ends(v.median),
            _broken(v),
            signed(v.comparison.difference) if v.comparison else NONE,
            _p(v),
            _word(v),
            _needed(v),
        )
        for v in order
    ]
    columns = ("variant", "rate", "loss", "95 %", "broken seeds", "difference", "p", "verdict")
    return [
        *_explained(found),
        "",
        *table((*columns, "seeds needed"), rows),
        *_seeds(found),
    ]


def _explained(found: Analysis) -> list[str]:
    """Returns what the columns are, and how much the seeds can show."""
    seeds, n = len(found.campaign.seeds), found.campaign.comparisons
    intro = (
        f"Final validation loss, nats per token: median over {count(seeds, 'fresh seed')}, each "
        "variant at its best learning rate. A broken seed diverged, or ended no better than "
        "guessing by frequency; it counts as an infinite loss."
    )
    if not n:
        return [intro]
    smallest = found.campaign.smallest_difference
    lines = [
        intro + " The difference is the median, over seeds, of the variant's loss minus its "
        "baseline's; its interval covers the difference at the best learning rates, whichever of "
        "those in contention they are.",
        "",
        f"*Better* and *worse*: by more than {smallest:g} nats, at every learning rate in "
        f"contention (exact sign test; p corrected for {count(n, 'comparison')} by Holm's method; "
        f"where nothing differs, at most {1 - LEVEL:.0%} of studies have any such verdict). "
        f"*Equivalent*: within {smallest:g} nats of zero, by an interval wide enough for all "
        f"comparisons together (Bonferroni). The intervals shown are not corrected: each holds "
        f"{LEVEL:.0%} by itself. Shares of broken seeds are compared by Fisher's exact test, also "
        "at every learning rate in contention, and corrected as a family of their own.",
        "",
        f"*Seeds needed*: for an interval that reaches {smallest:g} nats to either side, by which "
        "any difference is settled. The range is that of the spread, which these seeds tell only "
        f"roughly ({SPREAD_LEVEL:.0%}).",
    ]
    return lines + _detectable(found)


def _detectable(found: Analysis) -> list[str]:
    seeds, n = len(found.campaign.seeds), found.campaign.comparisons
    contenders = max(max(1, len(v.searched.contenders)) for v in found.variants)
    spreads = [v.comparison.spread for v in found.variants if v.comparison is not None]
    known = [spread for spread in spreads if spread > 0]
    effect = detectable(seeds, n, contenders)
    if effect is None or not known:
        return []
    spread = statistics.median(known)
    return [
        "",
        f"With {seeds} seeds a difference beyond {found.campaign.smallest_difference:g} nats of "
        f"{effect:.2f} standard deviations of the paired differences is found with probability "
        f"{POWER:.0%} or more: {effect * spread:.3f} nats at their median of {spread:.4f}.",
    ]


def _broken(variant: Variant) -> str:
    if not variant.runs:
        return NONE
    text = f"{variant.n_broken} of {len(variant.runs)}"
    compared = variant.comparison
    if compared is None or compared.broken_verdict is None:
        return text
    return f"{text}: {compared.broken_verdict} (p {compared.broken_p:.2g})"


def _seeds(found: Analysis) -> list[str]:
    seeds = found.campaign.seeds
    rows = [
        (escaped(v.name), *(_number(v.losses.get(seed)) for seed in seeds))
        for v in found.variants
        if v.losses
    ]
    return ["Seed by seed:", "", *table(("variant", *map(str, seeds)), rows)]


def _p(variant: Variant) -> str:
    compared = variant.comparison
    return NONE if compared is None or isnan(compared.corrected) else f"{compared.corrected:.3g}"


def _word(variant: Variant) -> str:
    if variant.comparison is None:
        return variant.word
    at = " at this budget" if variant.word == "not distinguishable" else ""
    return f"**{variant.word}**{at}"


def _needed(variant: Variant) -> str:
    if variant.needed is None:
        return NONE
    low, high = variant.needed
    return f"{low} to {high}" if low <= MOST_SEEDS else f"over {MOST_SEEDS}"


def _rates(found: Analysis) -> list[str]:
    if found.campaign.search is None:
        return ["No rate was searched for.", ""]
    rows = []
    for variant in found.variants:
        scores = variant.searched.scores
        spread = found.sensitivities.get(variant.name)
        rows.append(
            (
                escaped(variant.name),
                _rate(variant.rate),
                _largest(variant),
                NONE if spread is None else f"{spread:.3f}",
                str(len(scores)),
                _contention(variant, found),
            )
        )
    over = ", ".join(f"{rate:.3g}" for rate in found.rates)
    more = ("rates tried", "in contention")
    guesses = sorted({f"{loss:.3f}" for v in found.variants for loss in v.guess_losses})
    guess = f" ({' or '.join(guesses)} nats)" if guesses else ""
    return [
        "Sensitivity is that of Wortsman et al. 2023 (2309.14322): how far the loss, averaged over "
        "the rates, lies above that at the best one; a loss counts at most as that before the "
        "first update"
        + (f". It is over the rates that all were tried at ({over})." if over else "."),
        f"A rate trains if every seed of the search ends below guessing by frequency{guess} by at "
        "least half as much as the variant's best run does; ≥ stands where no higher one was "
        "tried.",
        "",
        *table(("variant", "best", "largest that trains", "sensitivity", *more), rows),
    ]


def _contention(variant: Variant, found: Analysis) -> str:
    search = found.campaign.search
    contenders = variant.searched.contenders
    return ", ".join(_rate(search.rate(k)) for k in sorted(contenders)) if search else NONE


def _costs(found: Analysis) -> list[str]:
    rows = []
    for variant in found.variants:
        info, speed = variant.info, variant.tokens_per_sec
        flops, per_token = info.get("flops"), info.get("flops_per_token")
        seconds = flops / per_token / speed if flops and per_token and speed else None
        peak = info.get("peak_bytes_per_device")
        rows.append(
            (
                escaped(variant.name),
                f"{info['parameters']:,}" if info else NONE,
                f"{per_token:,}" if per_token else NONE,
                f"{flops:.3g}" if flops else NONE,
                f"{speed:,.0f}" if speed else NONE,
                f"{seconds:,.0f} s" if seconds else NONE,
                f"{peak / 2**20:,.0f} MiB" if peak else "not told",
                _number(variant.median.estimate if variant.median else None),
            )
        )
    return [
        "Speeds are those of one run while its neighbours trained beside it: medians, of training "
        "alone. Memory is one run's share of a device at the peak of an update, as the compiler "
        "counts it.",
        "",
        *table(
            (
                *("variant", "parameters", "FLOPs a token", "FLOPs", "tokens/s", "time"),
                *("memory", "loss"),
            ),
            rows,
        ),
    ]


def _method(found: Analysis, definition: Definition) -> list[str]:
    starts = [s for v in found.variants for r in v.all_runs for s in r.starts]
    commits = sorted({str(start.get("commit")) for start in starts})
    versions: dict[str, set[str]] = {}
    for start in starts:
        for name, number in {"python": start.get("python"), **start.get("versions", {})}.items():
            versions.setdefault(name, set()).add(str(number))
    devices = sorted({d for v in found.variants for d in v.info.get("devices", [])})
    listed = ", ".join(f"{name} {' and '.join(sorted(n))}" for name, n in versions.items())
    search = found.campaign.search
    lines = [
        f"- Campaign file: `{definition.file}`; every cell is a run directory under `cells/`, and "
        "results.json holds every loss.",
        *texts(found),
        f"- Commit: {escaped(', '.join(commits)) or 'none'}.",
        f"- Versions: {escaped(listed)}.",
        f"- Devices: {escaped(', '.join(devices))}.",
        f"- Seeds of the verdict: {', '.join(map(str, found.campaign.seeds))}; a seed fixes the "
        "initial weights and the order of the data, the same for all variants.",
    ]
    if search is not None:
        lines.append(f"- Search: {search_text(search)}.")
        lines.append(
            "- In contention: the best learning rate and those within two standard errors of it, "
            f"at most {search.contenders}, all trained with the verdict's seeds. "
            "docs/ablations/null_studies.md shows how often such a study errs."
        )
    lines.append(
        f"- Intervals of medians lie between two order statistics and hold {LEVEL:.0%} or more "
        "whatever the noise; those of learning curves are Student's."
    )
    return [*lines, ""]


def _largest(variant: Variant) -> str:
    tried = max((rate_of(run.cell) for run in variant.search_runs), default=None)
    found = variant.largest_rate
    return ("≥ " if found is not None and found == tried else "") + _rate(found)


def _rate(rate: float | None) -> str:
    return NONE if rate is None else f"{rate:.4g}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _ends(interval: Interval | None) -> str:
    known = interval is not None and not isnan(interval.low)
    return f"{interval.low:.4f} to {interval.high:.4f}" if interval and known else NONE
