"""Study files, and the trials that follow from the outcomes so far."""

import dataclasses
import math
import random
import runpy

import numpy as np
import pytest

from gpt2_jax.ablation.study import definition
from gpt2_jax.ablation.study.design import (
    Search,
    Study,
    crossed,
    describe,
    grid,
    without,
    zipped,
)  # fmt: skip
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.plan import Plan
from gpt2_jax.ablation.study.trials import trial_config, trial_name
from gpt2_jax.ablation.vectorized import program_key
from gpt2_jax.config import Config, difference, freeze, replace
from gpt2_jax.errors import UserError
from gpt2_jax.placements import PRESETS
from tests.tools import ROOT, tiny

P, L, LR = "placement.preset", "model.n_layer", "optimizer.peak_lr"
TWO = grid({P: ("pre_ln", "post_ln")})
TEN = grid({P: tuple(PRESETS)[:10]})
SIX = (1, 2, 3, 4, 5, 6)


def test_grid_zipped_crossed_and_without():
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
        (
            {"variants": grid({"model.n_layers": (2,)})},
            "'model.n_layers'.*did you mean",
        ),
        ({"variants": grid({"seed": (1, 2)})}, "seeds="),
        ({"variants": grid({LR: (0.1,)})}, "optimizer.peak_lr.*search="),
        ({"variants": TWO + TWO}, "placement=pre_ln twice"),
        ({"baseline": {P: "keel"}}, "no variant placement=keel, which placement=pre_ln"),
        ({"seeds": (1, 1)}, "seeds="),
        ({"seeds": (1, 2, 3, 4, 5)}, "5 seeds .* no difference in 1 comparison.* 6 seeds"),
        ({"variants": TEN, "seeds": range(1, 9)}, "in 9 comparisons.* at least 9 seeds"),
        ({"smallest_difference": 0.0}, "smallest_difference=0.0 must be above 0"),
        ({"search": Search(1e-3, max_contenders=0)}, "max_contenders=0 must be"),
        ({"seeds": range(6)}, r"seeds of the verdict \(\[0\]\)"),
        ({"tokens": 10, "flops": 1e9}, "tokens= and in flops="),
        ({"tokens": 0}, "tokens=0"),
        ({"flops": math.inf}, "flops= is inf"),
        ({"trials_per_batch": 0}, "trials_per_batch=0"),
        ({"search": Search(1e-3, n=2)}, "search: n=2"),
        ({"search": Search(0.0)}, "lowest=0.0"),
        ({"search": Search(1e-3, ratio=1e300)}, "ratio=1e"),
        ({"search": Search(1e-3, n="5")}, "n='5'"),
        ({"seeds": (1, 2**64)}, "seeds= has 18446744073709551616"),
        ({"variants": grid({P: ("pre_nl",)})}, "preset='pre_nl' is unknown"),
        ({"variants": grid({"model.n_layer": (10**7,)})}, "n_layer=10000000"),
        ({"search": Search(1e-3, seeds=())}, "seeds="),
        ({"variants": grid({"train.eval_tokens": (64, 128)}), "baseline": {}}, "different texts"),
        ({"names": ["a"]}, "1 names= for 2 variants"),
        ({"variants": grid({"train.steps": (5,)}), "tokens": 10, "baseline": {}}, "train.steps"),
    ],
)
def test_invalid_study_is_refused(changes, message):
    usual = Study(TWO, {P: "pre_ln"}, search=Search(1e-3))
    usual.check()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(usual, **changes).check()


def test_baseline_may_omit_fields_of_the_base():
    extra = {P: "completep", "placement.base_n_layer": 4}
    study = Study([{P: "pre_ln"}, extra], {P: "pre_ln", "placement.base_n_layer": None})
    study.check()
    assert study.baseline_of(extra) == {P: "pre_ln"}
    assert describe(study.baseline) == "placement=pre_ln"


def follow(study, loss, order):
    """Simulates a study whose outcomes `loss(trial)` arrive in an order chosen by `order`."""
    plan, outcomes, rounds = Plan(study), {}, 0
    while todo := [c for c in plan.trials(outcomes) if c.name not in outcomes]:
        for trial in order(todo):
            value = loss(trial)
            status = "finished" if math.isfinite(value) else "diverged"
            outcomes[trial.name] = Outcome(status, 9, value if status == "finished" else None, 5.0)
        rounds += 1
        assert rounds < 100
    return plan, outcomes


def bowl(trial):
    """Best at 2**-9 for pre_ln and 2**-3 for post_ln, which diverges from 2**-1 up."""
    best = {"pre_ln": -9, "post_ln": -3}[trial.values[P]]
    rate = math.log2(trial.values[LR])
    if trial.values[P] == "post_ln" and rate >= -1:
        return math.inf
    return 2.0 + 0.1 * (rate - best) ** 2 + 0.01 * trial.seed


def test_plan_extends_the_grid_until_the_best_is_inside_then_uses_fresh_seeds():
    search = Search(2.0**-8, n=3, seeds=(0, 5))
    study = Study(TWO, {P: "pre_ln"}, (1, 2), search)
    plan, outcomes = follow(study, bowl, lambda todo: todo)
    rates = {
        v: sorted({math.log2(c.values[LR]) for c in plan.search_state(v, outcomes).trials})
        for v in (0, 1)
    }
    assert rates == {0: [-10, -9, -8, -7, -6], 1: [-8, -7, -6, -5, -4, -3, -2]}
    verdicts = [c for c in plan.trials(outcomes) if c.purpose == "verdict"]
    assert [(c.variant, math.log2(c.values[LR]), c.seed) for c in verdicts] == [
        (0, -9, 1), (0, -9, 2), (1, -3, 1), (1, -3, 2),
    ]  # fmt: skip
    tried = plan.search_state(0, outcomes).trials
    assert sorted((math.log2(t.values[LR]), t.seed) for t in tried) == [
        (-10, 0), (-10, 5), (-9, 0), (-9, 5), (-8, 0), (-8, 5), (-7, 0), (-6, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_trials_do_not_depend_on_the_order_of_outcomes(seed):
    study = Study(TWO, {P: "pre_ln"}, (1, 2), Search(2.0**-8, n=3, seeds=(0, 5)))
    expected = follow(study, bowl, lambda todo: todo)[1]
    draw = random.Random(seed)
    some = lambda todo: draw.sample(todo, draw.randint(1, len(todo)))
    assert follow(study, bowl, some)[1] == expected


def test_verdicts_are_trained_at_every_learning_rate_in_contention():
    """2**-9 and 2**-8 are each better with one of two seeds, so neither is ruled out."""

    def loss(trial):
        rate = math.log2(trial.values[LR])
        return 2.0 + 0.1 * abs(rate + 8.5) + 0.05 * ((rate == -9) == (trial.seed == 5))

    search = Search(2.0**-10, n=5, seeds=(0, 5))
    study = Study([{P: "pre_ln"}], {P: "pre_ln"}, (1, 2), search)
    plan, outcomes = follow(study, loss, lambda todo: todo)
    verdict = [c for c in plan.trials(outcomes) if c.purpose == "verdict"]
    assert {(math.log2(c.values[LR]), c.seed) for c in verdict} == {
        (-9, 1), (-9, 2), (-8, 1), (-8, 2),
    }  # fmt: skip
    alone = dataclasses.replace(study, search=dataclasses.replace(search, max_contenders=1))
    plan, outcomes = follow(alone, loss, lambda todo: todo)
    assert sum(c.purpose == "verdict" for c in plan.trials(outcomes)) == 2
    assert "no more than 1" in plan.search_state(0, outcomes).unresolved[0]


def test_run_no_better_than_unigrams_is_broken():
    assert not Outcome("finished", 9, 3.2, 5.0, 3.25).is_broken
    for outcome in (Outcome("finished", 9, 3.25, 5.0, 3.25), Outcome("diverged", 9, None, 5.0)):
        assert outcome.is_broken and outcome.score == math.inf
    failed = Outcome("failed", 0, None, None, attempts=2)
    assert not failed.is_broken and failed.score == math.inf


def test_variants_are_compared_at_equal_warm_up_and_decay():
    variants = grid({P: ("pre_ln", "post_ln"), "optimizer.warmup_steps": (10, 100)})
    study = Study(variants, {P: "pre_ln"}, (*SIX, 7))
    study.check()
    assert study.n_comparisons == 2
    post = {P: "post_ln", "optimizer.warmup_steps": 100}
    assert study.baseline_of(post) == post | {P: "pre_ln"}


def test_names_are_valid_folders_and_unique():
    values = {P: "post_ln", LR: 2.0**-9, "seed": 3}
    assert trial_name(values) == "placement=post_ln,peak_lr=0.0019531,seed=3"
    named = {"data.source": "/a/b c", "optimizer.name": "muon"}
    assert trial_name(named).startswith("source=_a_b_c,optimizer.name=muon-")
    other = {"data.source": "/a/b:c", "optimizer.name": "muon"}
    assert trial_name(named) != trial_name(other)
    close = Study(grid({LR: (0.1, 0.1 + 1e-9)}), {LR: 0.1}, (1,))
    close = dataclasses.replace(close, baseline={})
    with pytest.raises(UserError, match=r"have the name peak_lr=0.1,seed=1"):
        Plan(close).trials({})


def test_lists_ranges_and_numpy_numbers_round_trip_through_json(tmp_path):
    study = Study(
        grid({"optimizer.frozen": (["wte"], []), L: np.arange(2, 4)}),
        {"optimizer.frozen": []},
        seeds=range(10, 17),
        search=Search(1e-3, seeds=range(7, 9)),
        smallest_difference=np.float32(0.25),
    )
    study.check()
    stored = definition.Definition("a.py", tiny(), tiny(), study)
    definition.write(tmp_path, stored)
    found = definition.read(tmp_path).study
    assert found == study and study.seeds == tuple(range(10, 17))
    names = lambda c: [trial.name for trial in Plan(c).trials({})]
    assert names(found) == names(study)


def test_baseline_may_unset_a_field():
    study = Study(grid({"optimizer.skip_outliers": (None, 3.0)}), {"optimizer.skip_outliers": None})
    study.check()
    unset, three = study.variants
    assert study.baseline_of(three) is unset and study.baseline_of(unset) is unset
    with pytest.raises(UserError, match="equals the base, which skip_outliers=3"):
        dataclasses.replace(study, variants=[three]).check()


def test_budget_determines_the_steps():
    sizes = {L: 2, "model.n_head": 2, "model.n_embd": 16, "model.n_positions": 12}
    base = replace(Config(), sizes | {"data.seq_len": 12, "train.batch_size": 8})
    study = Study([{}], {}, tokens=1000)
    assert trial_config(base, study, {"seed": 1}).train.steps == 11  # with 96 tokens per step
    flops = dataclasses.replace(study, tokens=None, flops=1e9)
    small, large = (trial_config(base, flops, {L: n}).train.steps for n in (2, 8))
    assert small > 2 * large
    unset = dataclasses.replace(study, tokens=None)
    assert trial_config(base, unset, {"train.steps": 7}).train.steps == 7
    with pytest.raises(UserError, match=r"seed=0,n_head=3: model\.n_head=3 does not divide"):
        trial_config(base, unset, {"seed": 0, "model.n_head": 3})
    with pytest.raises(UserError, match=r"n_layer=two: model\.n_layer='two'"):
        trial_config(base, unset, {L: "two"})


@pytest.mark.parametrize("name", ["placement", "qk_norm", "residual_scale_depth"])
def test_every_trial_of_a_shipped_study_is_valid(name):
    file = str(ROOT / f"configs/ablations/{name}.py")
    base = freeze(runpy.run_path(file)["get_config"]())
    study = definition.load(file, base).study
    trials = Plan(study).trials({})
    assert len(trials) == len(study.variants) * study.search.n  # the first seed's
    made = [trial_config(base, study, trial.values) for trial in trials]
    assert len({program_key(config) for config in made}) == len(study.variants)
    assert len(study.search.seeds) >= 4 and len(study.variants) > 2


def test_definition_round_trip(tmp_path):
    study = Study(
        [{P: "pre_ln", "optimizer.frozen": ("wte",)}], {P: "pre_ln"}, (1,), Search(1e-3), tokens=9
    )
    file_config = tiny()
    stored = definition.Definition("a.py:b", file_config, tiny(model__n_layer=3), study)
    definition.write(tmp_path, stored)
    found = definition.read(tmp_path)
    assert found.study == study and found.file == "a.py:b"
    assert difference(found.file_config, file_config) == {}
    assert difference(found.file_config, found.base) == {L: (2, 3)}
    with pytest.raises(UserError, match=r"study\.json does not exist"):
        definition.read(tmp_path / "none")
