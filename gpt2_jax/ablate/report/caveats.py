"""What is not to be concluded from a campaign."""

from __future__ import annotations

from math import isfinite

from gpt2_jax.ablate.campaign.design import RATE, count
from gpt2_jax.ablate.campaign.search import between
from gpt2_jax.ablate.report.variant import Analysis, Variant
from gpt2_jax.ablate.statistics import seeds_to_reject, share_interval

FEW_SEARCH_SEEDS = 4  # below which a report warns: simulated studies hold what they say from here
SAME_PARAMETERS = 5e-3  # share by which models may differ and count as equally large


def caveats(found: Analysis) -> list[str]:
    """Returns what is not to be concluded, what is particular to this campaign first."""
    out = []
    if not found.complete:
        out.append(
            f"The campaign is not finished: {found.n_done} of the {found.n_cells} cells known so "
            "far are in, and more may follow. Nothing here is final."
        )
    n, needed = len(found.campaign.seeds), seeds_to_reject(found.campaign.comparisons)
    if n < needed:
        out.append(
            f"{count(n, 'seed')} {'is' if n == 1 else 'are'} too few: it takes {needed} to show "
            f"any difference in {count(found.campaign.comparisons, 'comparison')}."
        )
    if any("model.placement" in variant.values for variant in found.variants):
        out.append(
            "A placement brings its own norm and initial values along (below, with each variant): "
            "a difference is that of the whole recipe."
        )
    if found.n_dropped:
        out.append(
            f"The directory has {count(found.n_dropped, 'cell')} of variants, rates or seeds that "
            "the file has no longer. Whoever drops or adds any after a look at the results should "
            "not trust p: it is not corrected for that."
        )
    for variant in found.variants:
        out += _of_variant(variant, found)
    return out + _of_any(found)


def _of_variant(variant: Variant, found: Analysis) -> list[str]:
    out = []
    if failed := [r for r in variant.all_runs if r.outcome.status == "failed"]:
        n = count(len(failed), "cell")
        out.append(f"{variant.name}: {n} failed ({failed[0].outcome.reason}).")
    if variant.n_broken:
        out.append(
            f"{variant.name}: {variant.n_broken} of {count(len(variant.runs), 'seed')} broke at "
            f"its rate ({_share(variant)} by the exact 95 % interval)."
        )
    if (compared := variant.comparison) and compared.mean * compared.difference.estimate < 0:
        out.append(
            f"{variant.name}: the mean of its differences ({compared.mean:+.4f}, broken seeds left "
            "out) has another sign than their median, which the verdict is about."
        )
    if not variant.comparable:
        out.append(
            f"{variant.name} is scored on another validation text than {variant.baseline}, or by "
            "other tokens: their losses a token cannot be compared. A data.val_source that all "
            "have, and one tokenizer, would help."
        )
    out += [f"{variant.name}: {line}." for line in variant.searched.unresolved]
    if (gain := _off_grid(variant)) > found.campaign.smallest_difference:
        out.append(
            f"{variant.name}: a parabola through its best rate and its two neighbours is "
            f"{gain:.4f} nats lower between them; a finer grid may favour it."
        )
    baseline = found.variant(variant.baseline)
    mine, theirs = variant.info.get("parameters"), baseline.info.get("parameters")
    if mine and theirs and abs(mine / theirs - 1) > SAME_PARAMETERS:
        out.append(
            f"{variant.name} has {mine / theirs - 1:+.1%} parameters beside {baseline.name}: a "
            "difference may be that of size."
        )
    mine, theirs = _tokens(variant), _tokens(baseline)
    if mine and theirs and mine != theirs:
        out.append(f"{variant.name} trains on {mine:,} tokens, {baseline.name} on {theirs:,}.")
    flops, other = variant.info.get("flops"), baseline.info.get("flops")
    if flops and other and abs(flops / other - 1) > 0.01:
        out.append(
            f"{variant.name} takes {flops / other - 1:+.1%} FLOPs in all beside {baseline.name}."
        )
    return out


def _share(variant: Variant) -> str:
    low, high = share_interval(variant.n_broken, len(variant.runs))
    return f"{low:.0%} to {high:.0%}"


def _off_grid(variant: Variant) -> float:
    scores, best = variant.searched.scores, variant.searched.best
    if best is None:
        return 0.0
    around = [scores.get(k, float("inf")) for k in (best - 1, best, best + 1)]
    is_lowest = around[1] == min(around)  # where seeds broke, another may have a lower mean
    return between(*around) if is_lowest and all(map(isfinite, around)) else 0.0


def _tokens(variant: Variant) -> int | None:
    info = variant.info
    return round(info["flops"] / info["flops_per_token"]) if info.get("flops_per_token") else None


def _of_any(found: Analysis) -> list[str]:
    search = found.campaign.search
    if search is None and any(RATE in variant.values for variant in found.variants):
        chosen = "The rates are those of the variants: none was searched for."
    elif search is None:
        chosen = (
            "Each variant trains at the rate that its config has, which may suit one better than "
            "another."
        )
    else:
        chosen = (
            f"The rates were chosen by {count(len(search.seeds), 'seed')} on a grid of factor "
            f"{search.ratio:.3g}: a variant's best rate is known no better than that."
        )
        if len(search.seeds) < FEW_SEARCH_SEEDS or search.contenders < 2:
            chosen += (
                f" With fewer than {FEW_SEARCH_SEEDS} search seeds, or one rate in contention at "
                "most, verdicts err more often than they say: they do not account for a wrong "
                "choice."
            )
    return [
        "One text, one budget and models of this size: what holds here may not hold elsewhere, and "
        "differences between variants can change sign with any of them.",
        chosen,
        _shared_recipe(found),
        "Verdicts are about medians over seeds: the broken seeds and the seed-by-seed table show "
        "the unlucky ones.",
        "Intervals are over seeds (initial weights and order of the data) alone.",
    ]


def _shared_recipe(found: Analysis) -> str:
    """Returns which settings, known to suit variants differently, are the same for all."""
    varied = {name for variant in found.variants for name in variant.values}
    settings = {
        "warm-up": {"optimizer.warmup_steps", "optimizer.warmup_fraction"},
        "weight decay (scaled by the learning rate)": {"optimizer.weight_decay"},
    }
    shared = [text for text, fields in settings.items() if not fields & varied]
    if len({_tokens(variant) for variant in found.variants} - {None}) < 2:
        shared.append("number of training tokens")
    return (
        f"All variants share: {', '.join(shared) or 'no such setting'}. Each may suit some better "
        "than others; make it an axis of the study to find out."
    )
