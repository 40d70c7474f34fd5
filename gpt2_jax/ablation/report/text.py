"""Writes the text and tables of a study's report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from math import isnan
from typing import Any

from gpt2_jax.ablation.report.markup import NONE, escaped, signed, table
from gpt2_jax.ablation.report.recipes import recipes, texts
from gpt2_jax.ablation.report.variant import Analysis, Variant, learning_rate_of
from gpt2_jax.ablation.statistics import (
    LEVEL,
    MAX_SEEDS,
    POWER,
    SPREAD_LEVEL,
    Interval,
    detectable,
)
from gpt2_jax.ablation.study.definition import Definition
from gpt2_jax.ablation.study.descriptions import decay_text, search_text, tokens_per_parameter
from gpt2_jax.ablation.study.design import describe
from gpt2_jax.ablation.study.trials import variant_config
from gpt2_jax.config import flatten
from gpt2_jax.errors import counted
from gpt2_jax.tasks.task import TASKS, Task
from gpt2_jax.track.metrics import Row
from gpt2_jax.train.optim.schedule import warmup_steps
from gpt2_jax.train.report import tokens_per_step

NO_DIAGNOSTICS = "None were recorded: set `track.diagnostics_every`."


def markdown(analysis: Analysis, definition: Definition, figures: dict[str, str]) -> str:
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
    task = TASKS[definition.base.task.name]
    of_decoder = " of the decoder" if len(definition.base.model.towers) > 1 else ""
    parts = [
        _head(analysis, definition),
        ["## Verdict", "", *_verdict(analysis, task), *shown("losses")],
        _scores(analysis, task),
        ["## Limitations", "", *(f"- {escaped(line)}" for line in analysis.warnings), ""],
        ["## Learning rates", "", *_learning_rates(analysis), *shown("learning_rates")],
        ["## Learning curves", "", *shown("curves")],
        ["## Cost", "", *_costs(analysis)],
        [f"## Diagnostics by depth{of_decoder}", "", *(shown("depth") or [NO_DIAGNOSTICS, ""])],
        ["## Variants", "", *recipes(analysis, definition)],
        ["## Methods", "", *_methods(analysis, definition)],
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _head(analysis: Analysis, definition: Definition) -> list[str]:
    state = (
        "finished"
        if analysis.complete
        else f"{analysis.n_done} of {analysis.n_trials} known trials done"
    )
    own = [variant_config(definition.base, variant.values) for variant in analysis.variants]
    flat = [flatten(one) for one in own]
    # Of the runs, which a study's budget may determine.
    lengths = [
        _steps(v, one.task.name, one.train.steps, tokens_per_step(one))
        for v, one in zip(analysis.variants, own, strict=True)
    ]
    warmup = _either(warmup_steps(one.optimizer, n) for one, n in zip(own, lengths, strict=True))
    of = lambda name: _either(one[name] for one in flat)
    tokens = _either(v.tokens for v in analysis.variants if v.tokens)
    sizes = [(v.tokens, v.info["parameters"]) for v in analysis.variants if v.tokens]
    return [
        f"# {escaped(definition.title)}",
        "",
        f"{counted(len(analysis.variants), 'variant')}, compared with the baseline "
        f"{escaped(describe(analysis.study.baseline)) or '(the base config)'}. Status: {state}.",
        f"Models with {counted(_either(one.model.depth for one in own), 'layer')} of width "
        f"{of('model.n_embd')}, trained on "
        f"{of('data.source')} (tokenizer {of('data.tokenizer')}) with {of('optimizer.name')}"
        + (f"; {tokens} tokens per run." if tokens else "."),
        f"Warm-up of {warmup} steps; "
        + decay_text(one["optimizer.weight_decay"] for one in flat)
        + (f"; {tokens_per_parameter(sizes)}" if sizes else "")
        + ".",
        "",
    ]


def _steps(variant: Variant, task: str, steps: int, tokens: int) -> int:
    """Returns the number of steps of each run of a variant.

    Args:
      steps: that its config has, without a budget. tokens: per step of language modeling.
    """
    if task != "lm":  # the data determines how many tokens a step has
        return max((run.outcome.step for run in variant.all_runs), default=steps)
    return max(1, round(variant.tokens / tokens)) if variant.tokens else steps


def _scores(analysis: Analysis, task: Task) -> list[str]:
    """Returns a table of the scores that runs end with; empty if the task has none."""
    last = {v.name: [_last_scores(run.rows, task) for run in v.runs] for v in analysis.variants}
    names = [n for n in task.shown if any(n in row for rows in last.values() for row in rows)]
    if not names:
        return []
    rows = []
    for variant, found in last.items():
        known = {n: [row[n] for row in found if n in row] for n in names}
        medians = {n: statistics.median(values) if values else None for n, values in known.items()}
        rows.append((escaped(variant), *(_number(medians[n]) for n in names)))
    return [
        "## Scores",
        "",
        "Of the validation examples at the end: the median over the verdict's seeds. The loss "
        "decides, not these.",
        "",
        *table(("variant", *names), rows),
    ]


def _last_scores(rows: list[Row], task: Task) -> dict[str, float]:
    """Returns the scores of the last evaluation that has all that the run has."""
    found = {n: row.get(f"val/{n}") for row in rows for n in task.shown if f"val/{n}" in row}
    return {name: value for name, value in found.items() if value is not None}


def _either(values: Iterable[Any]) -> str:
    """Joins distinct values as in `4, 8 or 16`, escaped for Markdown."""
    shown = [f"{v:,}" if isinstance(v, int) else str(v) for v in dict.fromkeys(values)]
    return escaped(" or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown))


def _verdict(analysis: Analysis, task: Task) -> list[str]:
    if not any(variant.median for variant in analysis.variants):
        return ["No variant has results for all fresh seeds yet.", ""]
    order = sorted(analysis.variants, key=lambda v: float("inf") if v.loss is None else v.loss)
    rows = [
        (
            escaped(v.name),
            _lr(v.learning_rate),
            _number(v.loss),
            _ends(v.median),
            _broken(v),
            signed(v.comparison.difference) if v.comparison else NONE,
            _p(v),
            _verdict_of(v),
            _seeds_needed(v),
        )
        for v in order
    ]
    columns = (
        *("variant", "learning rate", "loss", f"{LEVEL:.0%} interval", "broken seeds"),
        *("difference", "adjusted p", "verdict", "seeds needed"),
    )
    return [*_explanation(analysis, task), "", *table(columns, rows), *_by_seed(analysis)]


def _explanation(analysis: Analysis, task: Task) -> list[str]:
    """Explains the columns of the verdict table, and what the number of seeds can show."""
    seeds, n = len(analysis.study.seeds), analysis.study.n_comparisons
    intro = (
        f"Final validation loss in nats per {task.target}: the median over "
        f"{counted(seeds, 'fresh seed')}, each variant at its best learning rate. A seed is broken "
        "if its run diverged, or ended no better than predicting tokens by their frequency alone "
        "(the unigram entropy); it counts as an infinite loss."
    )
    if not n:
        return [intro]
    smallest = analysis.study.smallest_difference
    lines = [
        intro + " The difference is the median over seeds of the variant's loss minus its "
        "baseline's. Its interval covers the difference at the best learning rates, whichever of "
        "those in contention they are.",
        "",
        f"*Better* and *worse*: by more than {smallest:g} nats at every learning rate in "
        "contention (exact sign test; p-values adjusted for "
        f"{counted(n, 'comparison')} by Holm's method; if there are no differences, at most "
        f"{1 - LEVEL:.0%} of studies have any such verdict). *Equivalent*: the simultaneous "
        f"interval (at the Bonferroni level) lies within ±{smallest:g} nats. The intervals shown "
        f"are not adjusted: each has {LEVEL:.0%} coverage by itself. Proportions of broken seeds "
        "are compared by Fisher's exact test, also at every learning rate in contention, and "
        "adjusted as a separate family.",
        "",
        f"*Seeds needed*: for an interval of ±{smallest:g} nats, which settles any difference. The "
        f"range is the {SPREAD_LEVEL:.0%} interval that follows from the uncertainty of the "
        "standard deviation between seeds.",
    ]
    return lines + _detectable(analysis)


def _detectable(analysis: Analysis) -> list[str]:
    seeds, n = len(analysis.study.seeds), analysis.study.n_comparisons
    contenders = max(max(1, len(v.search.contenders)) for v in analysis.variants)
    sds = [v.comparison.sd for v in analysis.variants if v.comparison is not None]
    known = [sd for sd in sds if sd > 0]
    effect = detectable(seeds, n, contenders)
    if effect is None or not known:
        return []
    sd = statistics.median(known)
    return [
        "",
        f"With {counted(seeds, 'seed')}, a median difference that exceeds "
        f"{analysis.study.smallest_difference:g} nats by {effect:.2f} standard deviations of the "
        f"paired differences is detected with a probability of at least {POWER:.0%}. At the "
        f"variants' median standard deviation of {sd:.4f} nats, that is {effect * sd:.3f} nats "
        "beyond it.",
    ]


def _broken(variant: Variant) -> str:
    if not variant.runs:
        return NONE
    text = f"{variant.n_broken} of {len(variant.runs)}"
    compared = variant.comparison
    if compared is None or compared.broken_verdict is None:
        return text
    return f"{text}: {compared.broken_verdict} (p {compared.broken_p:.2g})"


def _by_seed(analysis: Analysis) -> list[str]:
    seeds = analysis.study.seeds
    rows = [
        (escaped(v.name), *(_number(v.losses.get(seed)) for seed in seeds))
        for v in analysis.variants
        if v.losses
    ]
    return ["Losses by seed:", "", *table(("variant", *map(str, seeds)), rows)]


def _p(variant: Variant) -> str:
    compared = variant.comparison
    return NONE if compared is None or isnan(compared.adjusted_p) else f"{compared.adjusted_p:.3g}"


def _verdict_of(variant: Variant) -> str:
    if variant.comparison is None:
        return variant.verdict
    budget = " at this budget" if variant.verdict == "not distinguishable" else ""
    return f"**{variant.verdict}**{budget}"


def _seeds_needed(variant: Variant) -> str:
    if variant.seeds_needed is None:
        return NONE
    low, high = variant.seeds_needed
    return f"{low} to {high}" if low <= MAX_SEEDS else f"over {MAX_SEEDS}"


def _learning_rates(analysis: Analysis) -> list[str]:
    if analysis.study.search is None:
        return ["There was no search for learning rates.", ""]
    rows = []
    for variant in analysis.variants:
        sensitivity = analysis.sensitivities.get(variant.name)
        rows.append(
            (
                escaped(variant.name),
                _lr(variant.learning_rate),
                _largest(variant),
                NONE if sensitivity is None else f"{sensitivity:.3f}",
                str(len(variant.search.scores)),
                _contention(variant, analysis),
            )
        )
    over = ", ".join(f"{lr:.3g}" for lr in analysis.learning_rates)
    more = ("learning rates tried", "in contention")
    entropies = sorted({f"{loss:.3f}" for v in analysis.variants for loss in v.unigram_losses})
    entropy = f" ({' or '.join(entropies)} nats)" if entropies else ""
    return [
        "Sensitivity is defined by Wortsman et al. 2023 (2309.14322): the mean loss over learning "
        "rates, with each loss clipped to the loss before the first step, minus the best loss"
        + (f", here over the learning rates tried for every variant ({over})." if over else "."),
        f"A learning rate trains if every seed of the search ends below the unigram entropy"
        f"{entropy} by at least half as much as the variant's best run; ≥ means that no higher "
        "one was tried.",
        "",
        *table(("variant", "best", "largest that trains", "sensitivity", *more), rows),
    ]


def _contention(variant: Variant, analysis: Analysis) -> str:
    search = analysis.study.search
    contenders = sorted(variant.search.contenders)
    return ", ".join(_lr(search.learning_rate(k)) for k in contenders) if search else NONE


def _costs(analysis: Analysis) -> list[str]:
    rows = []
    for variant in analysis.variants:
        info, speed = variant.info, variant.tokens_per_sec
        flops, per_token = info.get("flops"), info.get("flops_per_token")
        seconds = variant.tokens / speed if variant.tokens and speed else None
        peak = info.get("peak_bytes_per_device")
        rows.append(
            (
                escaped(variant.name),
                f"{info['parameters']:,}" if info else NONE,
                f"{per_token:,}" if per_token else NONE,
                f"{flops:.3g}" if flops else NONE,
                f"{speed:,.0f}" if speed else NONE,
                f"{seconds:,.0f} s" if seconds else NONE,
                f"{peak / 2**20:,.0f} MiB" if peak else "unknown",
                _number(variant.loss),
            )
        )
    columns = (
        *("variant", "parameters", "FLOPs per token", "FLOPs", "tokens/s", "time", "memory"),
        "loss",
    )
    return [
        "Speeds are medians per run, while other runs trained at the same time, and exclude "
        "evaluation. Memory is one run's share of a device at the peak of a step, as reported by "
        "the compiler.",
        "",
        *table(columns, rows),
    ]


def _methods(analysis: Analysis, definition: Definition) -> list[str]:
    starts = [s for v in analysis.variants for r in v.all_runs for s in r.starts]
    commits = sorted({str(start.get("commit")) for start in starts})
    versions: dict[str, set[str]] = {}
    for start in starts:
        for name, number in {"python": start.get("python"), **start.get("versions", {})}.items():
            if number is not None:  # of this project, if it runs without being installed
                versions.setdefault(name, set()).add(str(number))
    devices = sorted({d for v in analysis.variants for d in v.info.get("devices", [])})
    listed = ", ".join(f"{name} {' and '.join(sorted(n))}" for name, n in versions.items())
    search = analysis.study.search
    lines = [
        f"- Study file: `{definition.file}`; every trial is a run directory in `trials/`, and "
        "results.json contains every loss.",
        *texts(analysis),
        f"- Commit: {escaped(', '.join(commits)) or 'none'}.",
        f"- Versions: {escaped(listed)}.",
        f"- Devices: {escaped(', '.join(devices))}.",
        f"- Seeds of the verdict: {', '.join(map(str, analysis.study.seeds))}. A seed determines "
        "initial weights and data order, which are the same for all variants.",
    ]
    if search is not None:
        lines.append(f"- Search: {search_text(search)}.")
        lines.append(
            "- In contention: the best learning rate and those within two standard errors of it, "
            f"at most {search.max_contenders}, all trained with the verdict's seeds. "
            "docs/ablations/null_studies.md gives the error rates of such studies."
        )
    lines.append(
        f"- Intervals of medians are between order statistics and have at least {LEVEL:.0%} "
        "coverage for any noise distribution; those of learning curves are Student's t intervals."
    )
    return [*lines, ""]


def _largest(variant: Variant) -> str:
    tried = max((learning_rate_of(run.trial) for run in variant.search_runs), default=None)
    found = variant.max_learning_rate
    return ("≥ " if found is not None and found == tried else "") + _lr(found)


def _lr(learning_rate: float | None) -> str:
    return NONE if learning_rate is None else f"{learning_rate:.4g}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _ends(interval: Interval | None) -> str:
    known = interval is not None and not isnan(interval.low)
    return f"{interval.low:.4f} to {interval.high:.4f}" if interval and known else NONE
