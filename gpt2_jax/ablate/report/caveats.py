"""What is not to be concluded from a campaign."""

from __future__ import annotations

from gpt2_jax.ablate.campaign.design import RATE, count
from gpt2_jax.ablate.report.variant import Analysis, Variant

FEW_SEEDS = 5  # below which a report warns
SAME_PARAMETERS = 5e-3  # share by which models may differ and count as equally large


def caveats(found: Analysis) -> list[str]:
    """Returns what is not to be concluded, what is particular to this campaign first."""
    out = []
    if not found.complete:
        out.append(
            f"The campaign is not finished: {found.n_done} of the {found.n_cells} cells known so "
            "far are in, and more may follow. Nothing here is final."
        )
    if (n := len(found.campaign.seeds)) < FEW_SEEDS:
        out.append(
            f"{count(n, 'seed')} {'is' if n == 1 else 'are'} too few: an interval from so few is "
            "wide, and rests on the normal distribution."
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
    if failed := [r for r in (*variant.search_runs, *variant.runs) if r.outcome.status == "failed"]:
        out.append(f"{variant.name}: {len(failed)} cells failed ({failed[0].outcome.reason}).")
    if variant.lost:
        out.append(
            f"{variant.name}: {variant.lost_words} at its rate, so that "
            + (
                "nothing can be compared with it."
                if variant.is_baseline
                else "it is compared with nothing."
            )
        )
    if not variant.comparable:
        out.append(
            f"{variant.name} is scored on another validation text than {variant.baseline}, or by "
            "other tokens: their losses a token cannot be compared. A data.val_source that all "
            "have, and one tokenizer, would help."
        )
    if variant.is_at_edge:
        out.append(
            f"{variant.name}: its best rate is the edge of those tried; a better one may lie "
            "beyond."
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
    return [
        "One text, one budget and models of this size: what holds here may not hold elsewhere, and "
        "differences between variants can change sign with any of them.",
        chosen,
        "Intervals are over seeds (initial weights and order of the data) alone.",
    ]
