"""Baselines and names of variants, and the validation of study files."""

import itertools
import math
import runpy

import numpy as np
import pytest

from gpt2_jax.ablation.study import Search, Study, crossed, grid, zipped
from gpt2_jax.ablation.study.labels import comparisons, labels
from gpt2_jax.ablation.study.plan import Plan
from gpt2_jax.ablation.study.trials import trial_name
from gpt2_jax.errors import UserError
from tests.tools import ROOT

P, N, L, LR = "placement.preset", "placement.norm_sites", "model.n_layer", "optimizer.peak_lr"
PRE, SANDWICH, POST = {P: "pre_ln"}, {P: "pre_ln", N: "pre+out"}, {P: "post_ln"}


def compared(variants, baseline):
    study = Study(variants, baseline)
    study.check()
    return [study.baseline_of(variant) for variant in study.variants]


@pytest.mark.parametrize(
    ("variants", "baseline", "expected"),
    [
        ([PRE, SANDWICH], PRE, [PRE, PRE]),
        ([SANDWICH, POST, PRE], PRE, [PRE] * 3),
        ([PRE, SANDWICH, POST], SANDWICH, [SANDWICH] * 3),
        ([{}, {N: "pre+out"}], {}, [{}, {}]),
        ([{P: "pre_ln", N: None}, SANDWICH], PRE, [{P: "pre_ln", N: None}] * 2),
        (
            grid({L: (4, 8), P: ("pre_ln", "post_ln")}),
            PRE,
            [{L: 4} | PRE] * 2 + [{L: 8} | PRE] * 2,
        ),
        (
            crossed(grid({L: (4, 8)}), [PRE, SANDWICH]),
            PRE,
            [{L: 4} | PRE] * 2 + [{L: 8} | PRE] * 2,
        ),
        # A depth that only some variants set is not matched.
        ([PRE, POST, {L: 8} | PRE], PRE, [PRE] * 3),
        (grid({L: (4, 8), P: ("pre_ln",)}), {L: 4}, [{L: 4} | PRE] * 2),
    ],
)
def test_variant_is_compared_with_the_one_that_equals_the_baseline(variants, baseline, expected):
    assert compared(variants, baseline) == expected


@pytest.mark.parametrize(
    ("variants", "baseline", "named"),
    [
        ([SANDWICH, POST], PRE, "no variant placement=pre_ln, which placement=pre_ln,norm_sites="),
        ([{L: 4} | PRE, {L: 8} | POST], PRE, "no variant n_layer=8,placement=pre_ln"),
        (
            [SANDWICH, {N: "pre"} | PRE],
            PRE,
            r"norm_sites=pre\+out with nothing but itself.*placement\.norm_sites",
        ),
        (grid({LR: (0.1, 0.2)}), {}, "peak_lr=0.1 with nothing but itself: optimizer.peak_lr"),
        ([PRE, {P: "pre_ln", N: None}], PRE, "placement=pre_ln twice"),
    ],
)
def test_missing_baseline_or_self_comparison_is_refused(variants, baseline, named):
    with pytest.raises(UserError, match=named):
        compared(variants, baseline)


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ([PRE, SANDWICH], ["placement=pre_ln", "norm_sites=pre+out"]),
        (
            [PRE, POST, SANDWICH],
            ["placement=pre_ln", "placement=post_ln", "placement=pre_ln,norm_sites=pre+out"],
        ),
        (
            [PRE, {P: "lns", N: "pre+out"}],
            ["placement=pre_ln", "placement=lns,norm_sites=pre+out"],
        ),
        ([{"name": "GPT-2"} | PRE, SANDWICH | {"name": "sandwich"}], ["GPT-2", "sandwich"]),
        ([PRE, POST | {"name": "Vaswani's"}], ["pre_ln", "Vaswani's"]),
        (
            crossed(grid({L: (4, 8)}), [PRE, POST, SANDWICH | {"name": "sandwich"}]),
            [f"n_layer={n},{x}" for n in (4, 8) for x in
             ("placement=pre_ln", "placement=post_ln", "sandwich")],
        ),
    ],
)  # fmt: skip
def test_label_has_every_field_that_differs_from_the_baseline(variants, expected):
    study = Study(variants, PRE)
    study.check()
    assert labels(study) == expected
    shown = dict(line.split(" -> ") for line in comparisons(study) if " -> " in line)
    base = next(line for line in comparisons(study) if "(baseline)" in line)
    assert set(shown) <= set(expected) and base.startswith(expected[0])
    again = Study(study.variants, study.baseline, names=study.names)
    assert again == study  # as when read from study.json


def test_name_that_describes_another_variant_is_refused():
    study = Study([PRE, POST, {P: "lns", "name": "post_ln"}], PRE)
    with pytest.raises(UserError, match="two variants of the study are called 'post_ln'"):
        labels(study)


def test_names_do_not_change_trials():
    named = Study([PRE, SANDWICH | {"name": "sandwich"}], PRE)
    plain = Study([PRE, SANDWICH], PRE)
    assert Plan(named).trials({}) == Plan(plain).trials({})


GOOD = {"variants": [PRE, SANDWICH], "baseline": PRE}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"variants": None}, "variants="),
        ({"variants": "pre_ln"}, "variants="),
        ({"variants": PRE}, "variants="),
        ({"variants": iter([PRE])}, "variants="),
        ({"variants": [PRE, "post_ln"]}, "variant 2"),
        ({"variants": [PRE, {3: "post_ln"}]}, "variant 2 has 3"),
        ({"variants": [PRE, {P: {"a": 1}}]}, f"variant 2: '{P}' is a dict"),
        ({"variants": [PRE, {P: object()}]}, f"variant 2: '{P}' is a object"),
        ({"variants": [PRE, {P: np.ones(3)}]}, f"variant 2: '{P}'"),
        ({"variants": [PRE, {LR: math.nan}]}, f"variant 2: '{LR}' is nan"),
        ({"variants": [PRE, {N: "pre\x1b[31m"}]}, f"variant 2: '{N}'.*printed"),
        ({"variants": [PRE, {N: "a\nb"}]}, f"variant 2: '{N}'.*printed"),
        ({"variants": [PRE, {N: "x" * 2000}]}, f"variant 2: '{N}' has 2,000 characters"),
        ({"variants": [PRE] * 2000}, "2e.03 variants"),
        ({"variants": [PRE, PRE | {L: "two"}]}, rf"{L}='two'"),
        ({"variants": [PRE, PRE | {L: True}]}, rf"{L}=True"),
        ({"variants": [PRE, PRE | {L: 2.0}]}, rf"{L}=2.0"),
        ({"variants": [PRE, PRE | {"model.tie_head": 1}]}, "model.tie_head=1"),
        ({"variants": [PRE, PRE | {"optimizer.frozen": (1,)}]}, "optimizer.frozen="),
        ({"variants": [PRE, SANDWICH | {"name": 3}]}, "names a variant 3"),
        ({"variants": [PRE, SANDWICH | {"name": " "}]}, "names a variant ' '"),
        ({"variants": [PRE, SANDWICH | {"name": "x" * 81}]}, "name has 81 characters"),
        ({"variants": [PRE | {"name": "a"}, SANDWICH | {"name": "a"}]}, "two variants 'a'"),
        ({"baseline": "pre_ln"}, "baseline must be"),
        ({"baseline": {L: "two"}}, f"{L}='two'"),
        ({"seeds": 3}, "seeds= must be a list"),
        ({"seeds": (1, True)}, "seeds= has True"),
        ({"seeds": (1, 2**64)}, "seeds= has 18446744073709551616"),
        ({"seeds": (-1,)}, "seeds= has -1"),
        ({"seeds": range(10**7)}, "10,000,000 entries"),
        ({"search": 5}, "search= must be a Search"),
        ({"tokens": math.inf}, "tokens= is inf"),
        ({"tokens": 1.5}, "tokens= is 1.5"),
        ({"flops": "1e9"}, "flops= is '1e9'"),
        ({"flops": 10**40}, "flops=1e.40"),
        ({"trials_per_batch": True}, "trials_per_batch= is True"),
        ({"search": Search("low")}, "search: lowest='low'"),
        ({"search": Search(None)}, "search: lowest=None"),
        ({"search": Search(1e-3, n=2.5)}, "search: n=2.5"),
        ({"search": Search(1e-3, max_n=10**9)}, "search: max_n=1000000000"),
        ({"search": Search(1e-3, ratio=1e30), "seeds": (1,)}, "search: ratio=1e.30"),
        ({"search": Search(1e-300), "seeds": (1,)}, "search: lowest=1e-300"),
        ({"search": Search(1e-3, seeds=range(1000, 2000))}, "30,054 trials"),
        ({"keep_checkpoints": "no"}, "keep_checkpoints="),
    ],
)  # fmt: skip
def test_invalid_values_are_refused_by_name(change, named):
    with pytest.raises(UserError, match=named) as refused:
        Study(**(GOOD | change)).check()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: grid({P: "pre_ln"}), f"'{P}' must be a list, not 'pre_ln'"),
        (lambda: grid({P: ()}), f"'{P}' has no values"),
        (lambda: grid({L: itertools.count()}), f"'{L}' must be a list"),
        (lambda: grid([P]), "a grid is"),
        (lambda: grid({L: range(10**4), "model.n_head": range(10**4)}), "1e.08 variants"),
        (lambda: crossed([PRE] * 10**4, [POST] * 10**4), "1e.08 variants"),
        (lambda: zipped({L: 3}), f"'{L}' must be a list, not 3"),
        (lambda: Search(1e-3, ratio=math.nan), "search's ratio= is nan"),
        (lambda: Search(1e-3, seeds="12"), "search's seeds="),
    ],
)
def test_invalid_axes_and_searches_are_refused_by_name(make, named):
    with pytest.raises(UserError, match=named):
        make()


def test_trial_name_fits_a_folder_name():
    """For any values, a name and its suffixes have at most 255 bytes."""
    for text in ("x" * 1000, "字" * 200, "../..", "a/b", "pre | qk", "[1]", ""):
        name = trial_name({"data.source": text, "seed": 3})
        assert len(f".{name}.json.01234567.tmp".encode()) < 255
        assert "/" not in name and name.isascii() and not name.startswith(".")


@pytest.mark.parametrize("name", ["placement", "qk_norm", "residual_scale_depth"])
def test_shipped_studies_compare_each_variant_with_a_baseline(name):
    study = runpy.run_path(str(ROOT / f"configs/ablations/{name}.py"))["get_study"]()
    study.check()
    lines = comparisons(study)
    assert sum("(baseline)" in line for line in lines) == (4 if "depth" in name else 1)
    if "depth" in name:
        assert "n_layer=8,placement=completep -> n_layer=8,placement=pre_ln" in lines
