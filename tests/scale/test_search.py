"""The search for a mesh, a micro-batch and a remat policy, with a compiler that is made up."""

import dataclasses

import pytest

from gpt2_jax.config.sections import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from gpt2_jax.scale.chips import CHIPS
from gpt2_jax.scale.compiler import TooLarge
from gpt2_jax.scale.estimate import Estimate
from gpt2_jax.scale.report import Plan, search_text
from gpt2_jax.scale.search import Candidate, Workload, candidates, search
from tests.scale.test_estimate import FIGURES

GIB = 2**30
H100 = CHIPS["h100"]
GPT2 = {"124m": (12, 12, 768, 124_439_808), "1558m": (48, 25, 1600, 1_557_611_200)}


def workload(size, **changes):
    layers, heads, width, n_params = GPT2[size]
    model = ModelConfig(
        n_layer=layers, n_head=heads, n_embd=width, vocab_size=50257, dtype="bfloat16"
    )
    flops = 6 * n_params + 12 * layers * width * 1024
    known = Workload(model, OptimizerConfig(), 512, 1024, n_params, flops, H100, 8)
    return dataclasses.replace(known, **changes)


def test_candidates_use_all_devices_and_the_whole_batch():
    model, train = ModelConfig(n_head=2), TrainConfig(batch_size=8)
    found = candidates(model, train, MeshConfig(), 4)
    assert {one.mesh for one in found} == {(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)}
    assert {one.remat for one in found} >= {"none", "elementwise", "block"}
    for one in found:
        data, fsdp, _ = one.mesh
        assert data * fsdp * one.rows * one.accumulation == 8
    fixed = candidates(model, train, MeshConfig(fsdp=2, tensor=2), 4)
    assert {one.mesh for one in fixed} == {(1, 2, 2)}


# The peaks are those of compiled steps, on one H100 and on eight.
@pytest.mark.parametrize(
    ("size", "candidate", "peak", "step"),
    [
        ("124m", Candidate((1, 1, 1), 8, 64, "none"), 38.74, 0.981),
        ("1558m", Candidate((1, 8, 1), 2, 32, "elementwise"), 60.03, 1.557),
        ("1558m", Candidate((4, 2, 1), 4, 16, "none"), 60.37, 1.771),
    ],
)
def test_guesses_are_near_the_figures_of_compiled_steps(size, candidate, peak, step):
    known = workload(size)
    assert known.guess_bytes(candidate) == pytest.approx(peak * GIB, rel=0.15)
    assert known.guess_seconds(candidate) == pytest.approx(step, rel=0.3)


def test_network_between_hosts_makes_a_step_slower():
    near, far = (workload("1558m", per_host=n) for n in (32, 8))
    on_hosts, across = Candidate((4, 8, 1), 1, 16, "none"), Candidate((1, 32, 1), 1, 16, "none")
    assert far.guess_seconds(on_hosts) > near.guess_seconds(on_hosts)
    assert near.guess_seconds(across) < far.guess_seconds(on_hosts) < far.guess_seconds(across)


def test_candidates_that_cannot_fit_are_dropped_and_the_fastest_is_first():
    known = workload("1558m")
    found = [Candidate((1, 1, 1), 512 // rows, rows, "none") for rows in (1, 8, 16, 64)]
    assert [one.rows for one in known.ranked(found)] == [16, 8, 1]


def plan_of(peak, seconds):
    figures = dataclasses.replace(FIGURES, peak=peak, memory=72 * GIB)
    made = Estimate({"matrix products": seconds}, 1e6, 0.5, 2.0, 100.0)
    return Plan("h100:8", 8, figures, made, H100, 3.0)


def test_search_skips_what_needs_more_than_one_that_did_not_fit():
    sizes = {1: 60, 2: 90, 3: 95, 4: 50, 5: 40, 6: 30, 7: 20}
    ranked = [Candidate((1, 8, 1), 1, rows, "none") for rows in sizes]
    compiled = []

    def plan(candidate):
        compiled.append(candidate.rows)
        if candidate.rows == 2:
            return TooLarge(None, "")
        if candidate.rows == 4:
            return None  # took too long
        return plan_of(sizes[candidate.rows] * GIB, 10 - candidate.rows)

    guess = lambda candidate: sizes[candidate.rows]
    found = search(ranked, guess, plan, 3)
    assert compiled == [1, 2, 4, 5, 6]
    assert [one.rows for one, _ in found] == [6, 5, 1]  # by the time of their compiled steps
    nothing = search(ranked, lambda _: 0, lambda _: plan_of(99 * GIB, 1), 2)
    assert nothing == []


def test_search_ends_after_twice_as_many_compilations_as_plans_wanted():
    compiled = []
    ranked = [Candidate((1, 8, 1), 1, rows, "none") for rows in range(1, 20)]
    plan = lambda candidate: compiled.append(candidate) or TooLarge(None, "")
    assert search(ranked, lambda one: -one.rows, plan, 3) == []
    assert len(compiled) == 6


def test_table_lists_the_plans_with_the_flags_of_the_first():
    one = Candidate((2, 4, 1), 4, 16, "block")
    text = search_text([(one.cells, plan_of(40 * GIB, 0.25))], 10**9)
    for part in ("2x4x1", "block", "40.00 GiB", "250 ms", "1,000,000", "50.0 %", "2.00", "$100"):
        assert part in text
    assert "--config.mesh.fsdp=4" in one.flags and "--config.model.remat=block" in one.flags
