"""Bootstrap intervals against explicit resampling."""

import numpy as np
import pytest

from gpt2_jax.tasks.scores.bootstrap import Bootstrap, ratio


def mean(sums):
    return {"mean": ratio(sums["x"][:, 0], sums["x"][:, 1])}


def data(n=150):
    x = np.random.default_rng(0).gamma(2.0, size=n)
    return {"x": np.stack([x, np.ones(n)], 1)}


def test_interval_is_between_percentiles_of_resampled_means():
    counts = data()
    got = Bootstrap(4000, seed=3).intervals(counts, mean)["mean"]
    x = counts["x"][:, 0]
    rng = np.random.default_rng(9)
    means = [rng.choice(x, len(x)).mean() for _ in range(4000)]
    assert got.estimate == pytest.approx(x.mean())
    assert got.low == pytest.approx(np.quantile(means, 0.025), abs=0.02)
    assert got.high == pytest.approx(np.quantile(means, 0.975), abs=0.02)


def test_level_and_seed():
    counts = data()
    narrow = Bootstrap(1000, level=0.5).intervals(counts, mean)["mean"]
    wide = Bootstrap(1000).intervals(counts, mean)["mean"]
    assert wide.low < narrow.low < narrow.high < wide.high
    assert Bootstrap(1000).intervals(counts, mean)["mean"] == wide
    assert Bootstrap(1000, seed=1).intervals(counts, mean)["mean"] != wide


def test_repeated_rows_equal_rows_that_repeat():
    counts = {"x": np.array([[0.0, 1.0], [1.0, 1.0]])}
    repeats = np.array([30, 10])
    whole = {"x": counts["x"].repeat(repeats, axis=0)}
    got = Bootstrap(4000).intervals(counts, mean, repeats)["mean"]
    want = Bootstrap(4000).intervals(whole, mean)["mean"]
    assert got.estimate == want.estimate == 0.25
    assert got.low == pytest.approx(want.low, abs=0.03)
    assert got.high == pytest.approx(want.high, abs=0.03)


def test_no_resamples_and_no_examples_have_no_interval():
    for made, counts in ((Bootstrap(0), data()), (Bootstrap(), data(0))):
        value = made.intervals(counts, mean)["mean"]
        assert np.isnan(value.low) and np.isnan(value.high)


def test_chunks_do_not_change_the_result(monkeypatch):
    counts = data()
    whole = Bootstrap(100).intervals(counts, mean)["mean"]
    monkeypatch.setattr("gpt2_jax.tasks.scores.bootstrap._CHUNK", 1000)
    assert Bootstrap(100).intervals(counts, mean)["mean"] == pytest.approx(whole, rel=1e-12)


def test_undefined_resamples_are_left_out():
    def undefined(sums):
        return {"y": np.where(sums["x"][:, 0] > 1.5, sums["x"][:, 0], np.nan)}

    value = Bootstrap(200).intervals({"x": np.array([[1.0], [0.0]])}, undefined)["y"]
    assert np.isnan(value.estimate) and value.low == value.high == 2.0
