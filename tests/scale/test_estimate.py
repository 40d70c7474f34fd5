"""The roofline's arithmetic against numbers worked out by hand."""

import dataclasses
from pathlib import Path

import pytest

from gpt2_jax.config.sections import ModelConfig, TrainConfig
from gpt2_jax.hlo.text import parse
from gpt2_jax.scale.chips import CHIPS
from gpt2_jax.scale.estimate import chip_of, estimate
from gpt2_jax.scale.figures import Exchange, Figures, exchanges_of
from gpt2_jax.scale.report import Plan, as_text, si

GIB = 2**30
FIGURES = Figures(
    mesh={"data": 2, "fsdp": 8, "tensor": 1},
    device_kind="NVIDIA H100 80GB HBM3",
    n_params=10**9,
    flops_per_token=6 * 10**9,
    tokens_per_step=2**20,
    rows=8,
    parameters=GIB,
    optimizer=2 * GIB,
    gradients=GIB,
    peak=40 * GIB,
    memory=72 * GIB,
    product_flops=989.4e12 * 0.72 * 0.5,
    attention_flops=989.4e12 * 0.23 * 0.25,
    traffic={"products": 10**15, "attention": 10**15, "kernels": 10**9, "other": 10**9},
    exchanges=[
        Exchange("all-gather", 8, False, 96, 10**11, 45e9),
        Exchange("all-reduce", 2, True, 1, 10**10, 10e9),
    ],
    attention="cudnn",
    compile_seconds=1.0,
    whole=[],
)


def test_time_is_the_sum_of_products_attention_other_traffic_and_collectives():
    """0.5 s, 0.25 s, 2 GB / (0.77 x 3.35232 TB/s), 45 GB / 450 GB/s + 10 GB / 50 GB/s."""
    found = estimate(FIGURES, CHIPS["h100"], 16, 10**9, 2.5)
    assert found.seconds == pytest.approx(
        {
            "matrix products": 0.5,
            "attention kernel": 0.25,
            "other memory traffic": 0.000774802,
            "collectives": 0.1 + 0.2,
        },
        rel=1e-5,
    )
    assert found.step_seconds == pytest.approx(1.050774802, rel=1e-6)


def test_speed_and_cost_follow_from_the_time():
    found = estimate(FIGURES, CHIPS["h100"], 16, 10**9, 2.5)
    assert found.tokens_per_sec == pytest.approx(997_907, rel=1e-5)
    assert found.mfu == pytest.approx(997_907 * 6e9 / (16 * 989.4e12), rel=1e-5)
    assert found.days == pytest.approx(10**9 / 997_907 / 86_400, rel=1e-5)
    assert found.cost == pytest.approx(16 * 2.5 * 10**9 / 997_907 / 3_600, rel=1e-5)


def test_idle_devices_are_paid_for():
    half = dataclasses.replace(FIGURES, mesh={"data": 1, "fsdp": 8, "tensor": 1})
    costs = [estimate(half, CHIPS["h100"], n, 10**9, 1.0).cost for n in (8, 16)]
    assert costs[1] == pytest.approx(2 * costs[0])


def test_step_fits_if_its_peak_is_below_what_a_gpu_reserves():
    """92 % of 84,929,347,584 bytes."""
    limit = CHIPS["h100"].memory
    assert limit == 78_134_999_777
    fits = lambda peak: dataclasses.replace(FIGURES, peak=peak, memory=limit).fits
    assert fits(limit) and not fits(limit + 1) and fits(None) is None


def test_figures_are_the_same_after_a_round_trip():
    assert Figures.from_json(FIGURES.to_json()) == FIGURES


def test_chips_of_this_machine_are_recognized():
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("cpu") is None


TEXT = """\
1,000,000,000 parameters on 32 x NVIDIA H100 80GB HBM3 (h100:4x8), mesh data=2 x fsdp=8 x tensor=1
1,048,576 tokens per step: 4 micro-batches of 8 sequences per device
model.remat=block, attention kernel cudnn; compiled in 1 s
16 devices are idle, because a micro-batch has too few sequences: lower train.accumulation

memory per device
  parameters                 1.00 GiB
  optimizer state            2.00 GiB
  gradients                  1.00 GiB
  activations and the rest  36.00 GiB
  peak                      40.00 GiB
  available                 72.00 GiB  fits

collectives per step: number, size of the arrays
  all-gather  96  100 GB  among 8 devices
  all-reduce   1   10 GB  among 2 devices of several hosts

work per device and step
  of the model    393 TFLOP  6 N + 12 L D T per token
  executed        413 TFLOP  with what is computed again
  memory traffic       2 PB

time per step, estimated
  matrix products         500.0 ms
  attention kernel        250.0 ms
  other memory traffic      0.8 ms
  collectives             300.0 ms
  step                  1,050.8 ms

997,907 tokens/s, MFU 18.9 %
1,000,000,000 tokens: 0.3 hours, $22 at $2.50 per device and hour
"""


def test_plan_as_text():
    made = estimate(FIGURES, CHIPS["h100"], 32, 10**9, 2.5)
    plan = Plan("h100:4x8", 32, FIGURES, made, CHIPS["h100"], 2.5)
    text = as_text(plan, ModelConfig(remat="block"), TrainConfig(accumulation=4), 10**9)
    assert text.startswith(TEXT), text
    assumptions = text.removeprefix(TEXT)
    for part in (
        "72% of peak",
        "23% in the attention kernel",
        "77% of memory bandwidth",
        "November 2026",
    ):
        assert part in assumptions
    small = dataclasses.replace(FIGURES, peak=73 * GIB, parameters=10 * 2**20, exchanges=[])
    text = as_text(dataclasses.replace(plan, figures=small), ModelConfig(), TrainConfig(), 1)
    assert "DOES NOT FIT" in text and "10.0 MiB" in text and "all-" not in text


def test_numbers_have_three_digits_and_a_prefix():
    shown = [si(value, "B") for value in (0, 12, 999.4, 999.6, 12_345, 4.5e9, 2e15)]
    assert shown == ["0 B", "12 B", "999 B", "1 kB", "12.3 kB", "4.5 GB", "2 PB"]


GPU = Path(__file__).parent.parent / "hlo" / "gpu.hlo"


def test_collectives_are_summed_by_kind_and_by_the_hosts_that_they_connect():
    program = parse(GPU.read_text())
    assert exchanges_of(program, 4, per_host=2) == [
        Exchange("all-gather", 4, True, 1, 4 * 768 * 4, 3 * 768 * 4),
        Exchange("all-reduce", 2, True, 1, 384 * 4, 384 * 4),
        Exchange("reduce-scatter", 2, False, 12, 12 * 64 * 4, 12 * 32 * 4),
    ]
    assert not any(one.between_hosts for one in exchanges_of(program, 4, per_host=None))
