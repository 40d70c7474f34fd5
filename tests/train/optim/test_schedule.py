"""Learning rates, step by step."""

import pytest

from gpt2_jax.train.optim.schedule import make_schedule
from tests.tools import tiny


def rates(steps, **optimizer):
    changes = {f"optimizer.{name}": value for name, value in optimizer.items()}
    config = tiny(**{"train.steps": steps, "optimizer.peak_lr": 1.0, **changes})
    schedule = make_schedule(config.optimizer, steps)
    return [float(schedule(n)) for n in range(steps)]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ("inverse_sqrt", [0.5, 1, 1, (2 / 3) ** 0.5, 0.5**0.5, 0.4**0.5, (1 / 3) ** 0.5]),
        ("cosine", [0.5, 1, 1, 0.9696, 0.8828, 0.7531, 0.6, 0.4469, 0.3172, 0.2304]),
    ],
)
def test_each_schedule(name, want):
    got = rates(10, schedule=name, warmup_steps=2, final_lr_ratio=0.2, decay_fraction=0.4)
    assert got[: len(want)] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("steps", "share", "same"), [(10, 0.2, 2), (10, 0.29, 3), (10, 0.99, 9), (1, 0.5, 0)]
)
def test_warm_up_can_be_a_fraction_of_the_steps(steps, share, same):
    assert rates(steps, warmup_fraction=share) == rates(steps, warmup_steps=same)


def test_first_step_has_the_peak_without_warm_up():
    assert rates(4, schedule="linear", warmup_steps=0, final_lr_ratio=0.0) == pytest.approx(
        [1, 0.75, 0.5, 0.25]
    )
