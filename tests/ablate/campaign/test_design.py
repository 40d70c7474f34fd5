"""Campaign files, the search of a rate, and which cells follow from what is known."""

import dataclasses
import math
import random
import runpy

import numpy as np
import pytest

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign import definition
from gpt2_jax.ablate.campaign.cells import Outcome, Plan, cell_config, cell_name
from gpt2_jax.ablate.campaign.design import (
    Campaign,
    Search,
    crossed,
    describe,
    grid,
    without,
    zipped,
)  # fmt: skip
from gpt2_jax.ablate.population import program_key
from gpt2_jax.errors import UserError
from gpt2_jax.model.placements import PRESETS
from tests.tools import ROOT, tiny

P, L, LR = "model.placement", "model.n_layer", "optimizer.peak_lr"
TWO = grid({P: ("pre_ln", "post_ln")})
TEN = grid({P: tuple(PRESETS)[:10]})
SIX = (1, 2, 3, 4, 5, 6)


def test_lists_of_variants():
    assert grid({P: ("a", "b"), L: (2, 4)}) == [
        {P: "a", L: 2}, {P: "a", L: 4}, {P: "b", L: 2}, {P: "b", L: 4},
    ]  # fmt: skip
    assert zipped({P: ("a", "b"), L: (2, 4)}) == [{P: "a", L: 2}, {P: "b", L: 4}]
    assert crossed([{L: 2}, {L: 4}], [{P: "a"}]) == [{L: 2, P: "a"}, {L: 4, P: "a"}]
    assert without(grid({P: ("a", "b"), L: (2, 4)}), {P: "a", L: 4}, {P: "b"}) == [{P: "a", L: 2}]
    with pytest.raises(UserError, match=r"differ in length: \[1, 2\]"):
        zipped({P: ("a",), L: (2, 4)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "no variants"),
        ({"variants": grid({"model.n_layers": (2,)})}, "'model.n_layers', no field; did you mean"),
        ({"variants": grid({"seed": (1, 2)})}, "those of `seeds=`"),
        ({"variants": grid({LR: (0.1,)})}, "as an axis and searches for it"),
        ({"variants": TWO + TWO}, "placement=pre_ln twice"),
        ({"baseline": {P: "keel"}}, "no variant placement=keel, which placement=pre_ln"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": (1, 2, 3, 4, 5)}, "5 seeds can show no difference in 1 comparison.* 6 seeds"),
        ({"variants": TEN, "seeds": range(1, 9)}, "in 9 comparisons.* it takes 9 seeds"),
        ({"smallest_difference": 0.0}, "smallest_difference=0.0 must be above 0"),
        ({"search": Search(1e-3, contenders=0)}, "contenders=0 must be"),
        ({"seeds": range(6)}, r"seeds of the verdict \(\[0\]\)"),
        ({"tokens": 10, "flops": 1e9}, "not in both"),
        ({"tokens": 0}, "tokens=0"),
        ({"flops": math.inf}, "flops= is inf"),
        ({"at_once": 0}, "at_once=0"),
        ({"search": Search(1e-3, n=2)}, "search: n=2"),
        ({"search": Search(0.0)}, "lowest=0.0"),
        ({"search": Search(1e-3, ratio=1e300)}, "ratio=1e"),
        ({"search": Search(1e-3, n="5")}, "n='5'"),
        ({"seeds": (1, 2**64)}, "seeds= has 18446744073709551616"),
        ({"variants": grid({P: ("pre_nl",)})}, "placement='pre_nl' is unknown"),
        ({"variants": grid({"model.n_layer": (10**7,)})}, "n_layer=10000000"),
        ({"search": Search(1e-3, seeds=())}, "must be some"),
        ({"variants": grid({"train.eval_tokens": (64, 128)}), "baseline": {}}, "different texts"),
        ({"names": ["a"]}, "1 names= for 2 variants"),
        ({"variants": grid({"train.steps": (5,)}), "tokens": 10, "baseline": {}}, "take one"),
    ],
)
def test_what_makes_no_campaign_is_said(changes, message):
    usual = Campaign(TWO, {P: "pre_ln"}, search=Search(1e-3))
    usual.check()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(usual, **changes).check()


def test_a_baseline_may_leave_fields_to_the_base():
    extra = {P: "completep", "model.base_n_layer": 4}
    campaign = Campaign([{P: "pre_ln"}, extra], {P: "pre_ln", "model.base_n_layer": None})
    campaign.check()
    assert campaign.baseline_of(extra) == {P: "pre_ln"}
    assert describe(campaign.baseline) == "placement=pre_ln"


def follow(campaign, loss, order):
    """Plays a campaign: outcomes of `loss(cell)` come in as `order` picks them."""
    plan, outcomes, rounds = Plan(campaign), {}, 0
    while todo := [c for c in plan.cells(outcomes) if c.name not in outcomes]:
        for cell in order(todo):
            value = loss(cell)
            status = "finished" if math.isfinite(value) else "diverged"
            outcomes[cell.name] = Outcome(status, 9, value if status == "finished" else None, 5.0)
        rounds += 1
        assert rounds < 100
    return plan, outcomes


def bowl(cell):
    """Best at 2**-9 for pre_ln and 2**-3 for post_ln, which diverges from 2**-1 on."""
    best = {"pre_ln": -9, "post_ln": -3}[cell.values[P]]
    rate = math.log2(cell.values[LR])
    if cell.values[P] == "post_ln" and rate >= -1:
        return math.inf
    return 2.0 + 0.1 * (rate - best) ** 2 + 0.01 * cell.seed


def test_a_plan_tries_rates_until_the_best_is_inside_and_then_fresh_seeds():
    search = Search(2.0**-8, n=3, seeds=(0, 5))
    campaign = Campaign(TWO, {P: "pre_ln"}, (1, 2), search)
    plan, outcomes = follow(campaign, bowl, lambda todo: todo)
    rates = {
        v: sorted({math.log2(c.values[LR]) for c in plan.searched(v, outcomes).cells})
        for v in (0, 1)
    }
    assert rates == {0: [-10, -9, -8, -7, -6], 1: [-8, -7, -6, -5, -4, -3, -2]}
    verdicts = [c for c in plan.cells(outcomes) if c.purpose == "verdict"]
    assert [(c.variant, math.log2(c.values[LR]), c.seed) for c in verdicts] == [
        (0, -9, 1), (0, -9, 2), (1, -3, 1), (1, -3, 2),
    ]  # fmt: skip
    assert sorted((math.log2(c.values[LR]), c.seed) for c in plan.searched(0, outcomes).cells) == [
        (-10, 0), (-10, 5), (-9, 0), (-9, 5), (-8, 0), (-8, 5), (-7, 0), (-6, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_the_cells_do_not_depend_on_the_order_of_outcomes(seed):
    campaign = Campaign(TWO, {P: "pre_ln"}, (1, 2), Search(2.0**-8, n=3, seeds=(0, 5)))
    expected = follow(campaign, bowl, lambda todo: todo)[1]
    draw = random.Random(seed)
    some = lambda todo: draw.sample(todo, draw.randint(1, len(todo)))
    assert follow(campaign, bowl, some)[1] == expected


def test_verdicts_are_trained_at_every_rate_in_contention():
    """At 2**-9 and 2**-8 each is better with one seed of two: neither is ruled out."""

    def loss(cell):
        rate = math.log2(cell.values[LR])
        return 2.0 + 0.1 * abs(rate + 8.5) + 0.05 * ((rate == -9) == (cell.seed == 5))

    search = Search(2.0**-10, n=5, seeds=(0, 5))
    campaign = Campaign([{P: "pre_ln"}], {P: "pre_ln"}, (1, 2), search)
    plan, outcomes = follow(campaign, loss, lambda todo: todo)
    verdict = [c for c in plan.cells(outcomes) if c.purpose == "verdict"]
    assert {(math.log2(c.values[LR]), c.seed) for c in verdict} == {
        (-9, 1), (-9, 2), (-8, 1), (-8, 2),
    }  # fmt: skip
    alone = dataclasses.replace(campaign, search=dataclasses.replace(search, contenders=1))
    plan, outcomes = follow(alone, loss, lambda todo: todo)
    assert sum(c.purpose == "verdict" for c in plan.cells(outcomes)) == 2
    assert "among the 1 that verdicts are checked at" in plan.searched(0, outcomes).unresolved[0]


def test_a_run_no_better_than_guessing_is_broken():
    assert not Outcome("finished", 9, 3.2, 5.0, 3.25).is_broken
    for outcome in (Outcome("finished", 9, 3.25, 5.0, 3.25), Outcome("diverged", 9, None, 5.0)):
        assert outcome.is_broken and outcome.score == math.inf
    failed = Outcome("failed", 0, None, None, attempts=2)
    assert not failed.is_broken and failed.score == math.inf


def test_warm_up_and_decay_are_axes_compared_at_their_own_values():
    variants = grid({P: ("pre_ln", "post_ln"), "optimizer.warmup_steps": (10, 100)})
    campaign = Campaign(variants, {P: "pre_ln"}, (*SIX, 7))
    campaign.check()
    assert campaign.comparisons == 2
    post = {P: "post_ln", "optimizer.warmup_steps": 100}
    assert campaign.baseline_of(post) == post | {P: "pre_ln"}


def test_names_are_folders_and_differ_where_values_do():
    values = {P: "post_ln", LR: 2.0**-9, "seed": 3}
    assert cell_name(values) == "placement=post_ln,peak_lr=0.0019531,seed=3"
    named = {"data.source": "/a/b c", "optimizer.name": "muon"}
    assert cell_name(named).startswith("source=_a_b_c,optimizer.name=muon-")
    other = {"data.source": "/a/b:c", "optimizer.name": "muon"}
    assert cell_name(named) != cell_name(other)
    close = Campaign(grid({LR: (0.1, 0.1 + 1e-9)}), {LR: 0.1}, (1,))
    close = dataclasses.replace(close, baseline={})
    with pytest.raises(UserError, match=r"have the name peak_lr=0.1,seed=1"):
        Plan(close).cells({})


def test_lists_ranges_and_numpys_numbers_are_as_from_json(tmp_path):
    campaign = Campaign(
        grid({"optimizer.frozen": (["wte"], []), L: np.arange(2, 4)}),
        {"optimizer.frozen": []},
        seeds=range(10, 17),
        search=Search(1e-3, seeds=range(7, 9)),
        smallest_difference=np.float32(0.25),
    )
    campaign.check()
    stored = definition.Definition("a.py", tiny(), tiny(), campaign)
    definition.write(tmp_path, stored)
    found = definition.read(tmp_path).campaign
    assert found == campaign and campaign.seeds == tuple(range(10, 17))
    names = lambda c: [cell.name for cell in Plan(c).cells({})]
    assert names(found) == names(campaign)


def test_a_baseline_may_be_a_field_unset():
    campaign = Campaign(
        grid({"optimizer.skip_outliers": (None, 3.0)}), {"optimizer.skip_outliers": None}
    )
    campaign.check()
    unset, three = campaign.variants
    assert campaign.baseline_of(three) is unset and campaign.baseline_of(unset) is unset
    with pytest.raises(UserError, match="has no variant that is the base, which skip_outliers=3"):
        dataclasses.replace(campaign, variants=[three]).check()


def test_budgets():
    base = configs.default()
    for name, value in (("n_layer", 2), ("n_head", 2), ("n_embd", 16), ("n_positions", 12)):
        base.model[name] = value
    base.data.seq_len, base.train.batch_size = 12, 8
    campaign = Campaign([{}], {}, tokens=1000)
    assert cell_config(base, campaign, {"seed": 1}).train.steps == 11  # of 96 tokens
    flops = dataclasses.replace(campaign, tokens=None, flops=1e9)
    small, large = (cell_config(base, flops, {L: n}).train.steps for n in (2, 8))
    assert small > 2 * large
    unset = dataclasses.replace(campaign, tokens=None)
    assert cell_config(base, unset, {"train.steps": 7}).train.steps == 7
    with pytest.raises(UserError, match=r"seed=0,n_head=3: model\.n_head=3 does not divide"):
        cell_config(base, unset, {"seed": 0, "model.n_head": 3})
    with pytest.raises(UserError, match=r"n_layer=two: model\.n_layer='two'"):
        cell_config(base, unset, {L: "two"})


@pytest.mark.parametrize("name", ["placement", "qk_norm", "residual_scale_depth"])
def test_every_cell_of_a_shipped_campaign_makes_sense(name):
    file = str(ROOT / f"configs/ablations/{name}.py")
    base = runpy.run_path(file)["get_config"]()
    campaign = definition.load(file, base).campaign
    cells = Plan(campaign).cells({})
    assert len(cells) == len(campaign.variants) * campaign.search.n  # the first seed's
    made = [cell_config(base, campaign, cell.values) for cell in cells]
    assert len({program_key(config) for config in made}) == len(campaign.variants)
    assert len(campaign.search.seeds) >= 4 and len(campaign.variants) > 2


def test_a_definition_is_what_it_was(tmp_path):
    campaign = Campaign(
        [{P: "pre_ln", "optimizer.frozen": ("wte",)}], {P: "pre_ln"}, (1,), Search(1e-3), tokens=9
    )
    given = tiny()
    stored = definition.Definition("a.py:b", given, tiny(model__n_layer=3), campaign)
    definition.write(tmp_path, stored)
    found = definition.read(tmp_path)
    assert found.campaign == campaign and found.file == "a.py:b"
    assert configs.difference(found.given, given) == {}
    assert configs.difference(found.given, found.base) == {L: (2, 3)}
    with pytest.raises(UserError, match="is this a campaign's work directory"):
        definition.read(tmp_path / "none")
