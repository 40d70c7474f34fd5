"""The words and tables of a campaign's report."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, isnan
from typing import Any

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.definition import Definition
from gpt2_jax.ablate.campaign.design import count, describe
from gpt2_jax.ablate.report.markup import NONE, escaped, table
from gpt2_jax.ablate.report.recipes import config_of, recipes, texts
from gpt2_jax.ablate.report.variant import Analysis, Variant, rate_of
from gpt2_jax.ablate.statistics import LEVEL, MOST_SEEDS, POWER, Interval

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
    flat = [configs.flatten(config_of(variant, definition)) for variant in found.variants]
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
        "",
    ]


def _either(values: Iterable[Any]) -> str:
    """Returns `4, 8 or 16`, each once, as Markdown shows it."""
    shown = [f"{v:,}" if isinstance(v, int) else str(v) for v in dict.fromkeys(values)]
    return escaped(" or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown))


def _verdict(found: Analysis) -> list[str]:
    if not any(variant.mean for variant in found.variants):
        return ["No variant has all its fresh seeds yet.", ""]
    columns = ("variant", "rate", "loss", "95 % (t)", "95 % (bootstrap)", "difference")
    order = sorted(found.variants, key=lambda v: v.mean.mean if v.mean else float("inf"))
    rows = [
        (
            escaped(v.name),
            _rate(v.rate),
            _number(v.mean.mean if v.mean else None),
            _ends(v.mean),
            _ends(v.bootstrap),
            _difference(v),
            _p(v),
            _word(v),
            _needed(v),
        )
        for v in order
    ]
    seeds, n = len(found.campaign.seeds), sum(v.comparison is not None for v in found.variants)
    intro = f"Final validation loss, nats a token, mean over {count(seeds, 'fresh seed')}."
    if n:
        intro += (
            " The difference is from the baseline, seed by seed; p is that of the paired t test, "
            f"corrected for {count(n, 'comparison')} (Holm); below {1 - LEVEL:.2g} it decides. "
            f"Intervals are not corrected: each holds {LEVEL:.0%} by itself. Seeds needed: to see "
            f"a difference like the one found with probability {POWER:.0%}."
        )
    return [
        intro,
        "",
        *table((*columns, "p", "verdict", "seeds needed"), rows),
        *_seeds(found),
    ]


def _seeds(found: Analysis) -> list[str]:
    seeds = found.campaign.seeds
    rows = [
        (escaped(v.name), *(_number(v.losses.get(seed)) for seed in seeds))
        for v in found.variants
        if v.losses
    ]
    return ["Seed by seed:", "", *table(("variant", *map(str, seeds)), rows)]


def _difference(variant: Variant) -> str:
    if variant.comparison is None:
        return NONE
    mean, low, high = variant.comparison.difference
    return f"{mean:+.4f}" + (f" ({low:+.4f} to {high:+.4f})" if isfinite(low) else "")


def _p(variant: Variant) -> str:
    compared = variant.comparison
    return NONE if compared is None or isnan(compared.corrected) else f"{compared.corrected:.3g}"


def _word(variant: Variant) -> str:
    if variant.comparison is None:
        return variant.word
    at = " at this budget" if variant.word == "not distinguishable" else ""
    return f"**{variant.word}**{at}"


def _needed(variant: Variant) -> str:
    if variant.comparison is None or not variant.comparison.spread > 0:
        return NONE
    return str(variant.needed) if variant.needed is not None else f"over {MOST_SEEDS}"


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
            )
        )
    over = ", ".join(f"{rate:.3g}" for rate in found.rates)
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
        *table(("variant", "best", "largest that trains", "sensitivity", "rates tried"), rows),
    ]


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
                f"{variant.mean.mean:.4f}" if variant.mean else NONE,
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
    starts = [s for v in found.variants for r in (*v.runs, *v.search_runs) for s in r.starts]
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
        lines.append(
            f"- Search: {search.n} rates from {search.lowest:.5g} on, each "
            f"{search.ratio:.4g} times the one before, with seeds "
            f"{', '.join(map(str, search.seeds))}; two more at a time while the best is an edge, "
            f"at most {search.most}."
        )
    lines.append(
        f"- Intervals are {LEVEL:.0%} by Student's t, and by the bootstrap's percentiles, which "
        "are too narrow for a few seeds; no verdict hangs on the latter."
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
    known = interval is not None and isfinite(interval.low)
    return f"{interval.low:.4f} to {interval.high:.4f}" if interval and known else NONE
