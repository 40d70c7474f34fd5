"""The limitations section of a study's report."""

from __future__ import annotations

from math import isfinite

from gpt2_jax.ablation.report.variant import Analysis, Variant
from gpt2_jax.ablation.statistics import seeds_to_reject, share_interval
from gpt2_jax.ablation.study.design import LEARNING_RATE
from gpt2_jax.ablation.study.search import parabola_gain
from gpt2_jax.errors import counted

FEW_SEARCH_SEEDS = 4  # with fewer, simulated studies err more often than stated
SAME_SIZE = 5e-3  # up to this relative difference in parameters, models count as equally large
SAME_COST = 0.01  # the same for FLOPs


def caveats(analysis: Analysis) -> list[str]:
    """Returns the limitations, those particular to this study first."""
    out, study = [], analysis.study
    if not analysis.complete:
        out.append(
            f"The study is not finished: {analysis.n_done} of the {analysis.n_trials} trials known "
            "so far have ended, and more may follow. Nothing here is final."
        )
    n, needed = len(study.seeds), seeds_to_reject(study.n_comparisons)
    if n < needed:
        out.append(
            f"{counted(n, 'seed')} {'is' if n == 1 else 'are'} too few: {needed} are needed to "
            f"show any difference in {counted(study.n_comparisons, 'comparison')}."
        )
    if any("placement.preset" in variant.values for variant in analysis.variants):
        out.append(
            "A placement includes its own norm and initial values (listed with each variant "
            "below), so a difference is due to the whole recipe, not to any one part of it."
        )
    if analysis.n_dropped:
        out.append(
            f"The directory contains {counted(analysis.n_dropped, 'trial')} of variants, learning "
            "rates or seeds that the study file no longer has. If any were added or dropped after "
            "seeing results, the p-values are not valid: they are not corrected for that."
        )
    for variant in analysis.variants:
        out += _of_variant(variant, analysis)
    return out + _of_any_study(analysis)


def _of_variant(variant: Variant, analysis: Analysis) -> list[str]:
    out, name = [], variant.name
    if failed := [r for r in variant.all_runs if r.outcome.status == "failed"]:
        out.append(f"{name}: {counted(len(failed), 'trial')} failed ({failed[0].outcome.reason}).")
    if variant.n_broken:
        low, high = share_interval(variant.n_broken, len(variant.runs))
        out.append(
            f"{name}: {variant.n_broken} of {counted(len(variant.runs), 'seed')} broke at its "
            f"learning rate (exact 95% interval of the proportion: {low:.0%} to {high:.0%})."
        )
    if (compared := variant.comparison) and compared.mean * compared.difference.estimate < 0:
        out.append(
            f"{name}: the mean difference ({compared.mean:+.4f}, without broken seeds) and the "
            "median difference, on which the verdict is based, have opposite signs."
        )
    if not variant.comparable:
        out.append(
            f"{name} is scored on a different validation text from {variant.baseline}, or with "
            "different tokens, so their losses per token cannot be compared. Set one "
            "data.val_source and one tokenizer for all variants."
        )
    out += [f"{name}: {line}." for line in variant.search.unresolved]
    if (gain := _off_grid_gain(variant)) > analysis.study.smallest_difference:
        out.append(
            f"{name}: the parabola through the losses at its best learning rate and the two next "
            f"to it has a minimum that is {gain:.4f} nats lower; a finer grid may favor this "
            "variant."
        )
    return out + _unequal_budgets(variant, analysis.variant(variant.baseline))


def _unequal_budgets(variant: Variant, baseline: Variant) -> list[str]:
    out, name = [], variant.name
    mine, theirs = variant.info.get("parameters"), baseline.info.get("parameters")
    if mine and theirs and abs(mine / theirs - 1) > SAME_SIZE:
        out.append(
            f"{name} has {mine / theirs - 1:+.1%} parameters compared with {baseline.name}; a "
            "difference may be due to size."
        )
    mine, theirs = variant.tokens, baseline.tokens
    if mine and theirs and mine != theirs:
        out.append(f"{name} trains on {mine:,} tokens, {baseline.name} on {theirs:,}.")
    mine, theirs = variant.info.get("flops"), baseline.info.get("flops")
    if mine and theirs and abs(mine / theirs - 1) > SAME_COST:
        out.append(f"{name} takes {mine / theirs - 1:+.1%} FLOPs compared with {baseline.name}.")
    return out


def _off_grid_gain(variant: Variant) -> float:
    scores, best = variant.search.scores, variant.search.best
    if best is None:
        return 0.0
    around = [scores.get(k, float("inf")) for k in (best - 1, best, best + 1)]
    is_lowest = around[1] == min(around)  # not always: the best is one where the fewest seeds broke
    return parabola_gain(*around) if is_lowest and all(map(isfinite, around)) else 0.0


def _of_any_study(analysis: Analysis) -> list[str]:
    return [
        "The study uses one text, one budget and one range of model sizes. The results may not "
        "hold for others: differences between variants can even change sign.",
        _choice_of_learning_rate(analysis),
        _shared_recipe(analysis),
        "Verdicts are about medians over seeds; for unlucky runs, see the broken seeds and the "
        "losses by seed.",
        "Intervals only reflect the variation between seeds (initial weights and data order).",
    ]


def _choice_of_learning_rate(analysis: Analysis) -> str:
    search = analysis.study.search
    if search is None and any(LEARNING_RATE in variant.values for variant in analysis.variants):
        return "The learning rates are those of the variants; there was no search."
    if search is None:
        return (
            "Each variant trains at the learning rate in its config, which may suit some variants "
            "better than others."
        )
    text = (
        f"Learning rates were chosen with {counted(len(search.seeds), 'seed')} on a grid with "
        f"ratio {search.ratio:.3g}, which limits how precisely a variant's best "
        "learning rate is known."
    )
    if len(search.seeds) < FEW_SEARCH_SEEDS or search.max_contenders < 2:
        text += (
            f" With fewer than {FEW_SEARCH_SEEDS} search seeds, or at most one learning rate in "
            "contention, the error rate of the verdicts is higher than stated, because they do not "
            "account for a wrong choice."
        )
    return text


def _shared_recipe(analysis: Analysis) -> str:
    """Lists the settings that are the same for all variants but may not suit all equally well."""
    varied = {name for variant in analysis.variants for name in variant.values}
    settings = {
        "warm-up": {"optimizer.warmup_steps", "optimizer.warmup_fraction"},
        "weight decay (scaled by the learning rate)": {"optimizer.weight_decay"},
    }
    shared = [text for text, fields in settings.items() if not fields & varied]
    if len({variant.tokens for variant in analysis.variants} - {None}) < 2:
        shared.append("number of training tokens")
    return (
        f"All variants share: {', '.join(shared) or 'no such setting'}. Each of these may suit "
        "some variants better than others; to find out, vary it in a study."
    )
