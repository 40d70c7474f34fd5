"""Claims of papers: some at fewer depths, and false ones, which must not be seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers import initialization, training
from experiments.papers.claim import Claim, Part, bend, slope
from gpt2_jax.model.definition import define_model
from tests.tools import one_line_error, run


@pytest.mark.slow
def test_last_layer_gradient_falls_with_depth_only_in_pre_ln():
    claim = initialization.last_layer_gradient(depths=(3, 48))
    assert claim.holds, claim.parts
    post, pre = ([float(row[i].split()[0]) for row in claim.rows] for i in (1, 2))
    assert pre[0] / pre[1] == pytest.approx(4, rel=0.35)  # the root of 16
    assert post[0] / post[1] == pytest.approx(1, rel=0.5)


def test_pre_ln_stream_grows_within_its_bounds():
    claim = initialization.stream_growth(n_layer=12)
    assert claim.holds, claim.parts


def test_assumptions_of_the_theorem_hold():
    """Attention scores are 0, so attention is a mean, and W_O = I."""
    model = initialization.theorem_model("pre_ln", 2)
    params = initialization.theorem_params(model, jax.random.key(0))
    blocks = params["blocks"]["all"]
    assert not np.any(blocks["attn"]["sublayer"]["qkv"]["kernel"][:, :, :2])
    out = np.asarray(blocks["attn"]["sublayer"]["out"]["kernel"][1, 0])
    np.testing.assert_array_equal(out, np.eye(initialization.WIDTH))
    for kernel in (blocks["mlp"]["sublayer"]["up"], blocks["mlp"]["sublayer"]["down"]):
        assert np.std(kernel["kernel"]) == pytest.approx(initialization.WIDTH**-0.5, rel=0.05)
    bound = model.bind(params)
    x = bound.embedding(jnp.arange(500)[None, :60], bound.context(0, None, 0))
    assert float(jnp.square(x).mean()) == pytest.approx(1, rel=0.1)


@pytest.mark.slow
def test_deepnorm_first_step_is_independent_of_depth_if_only_matrices_are_trained():
    matrices, everything = initialization.first_step(depths=(6, 24, 96)).parts
    assert matrices.holds and not everything.holds


@pytest.mark.slow
def test_stream_variance_grows_as_claimed():
    claim = initialization.stream_variance(n_layer=24)
    assert claim.holds, claim.parts


def test_gains_equal_those_of_the_product_of_mixing_matrices():
    """With matrices that do not commute and have different row and column sums."""
    config = training.small_config("hyper_connections_static", 1, 1e-3, 1, 0)
    model = define_model(config.model, config.placement)
    params = model.init(jax.random.key(0))
    first, second = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    first[0] = [2, 5, 0, 0]  # stream 0 goes to 0 twice and to 1 five times
    second[1, 2] = -3.0  # from 1 to 2
    connection = params["blocks"]["all"]["connection"]
    connection["attn"]["mix"] = jnp.asarray(first)[None]
    connection["mlp"]["mix"] = jnp.asarray(second)[None]
    forward, backward = training.gains(model, params, jnp.zeros((2, 5), jnp.int32))
    # first @ second, (from, to): rows 2 5 -15 0 | 0 1 -3 0 | 0 0 1 0 | 0 0 0 1
    np.testing.assert_allclose(forward, [6.0, 17.0])
    np.testing.assert_allclose(backward, [7.0, 8.0])


@pytest.fixture
def measured(monkeypatch):
    """Makes `by_learning_rate` return the values set here, by placement and warm-up."""
    table = {}
    monkeypatch.setattr(training, "text", lambda: None)
    monkeypatch.setattr(training, "unigram_entropy", lambda _: 3.0)
    monkeypatch.setattr(
        training, "by_learning_rate", lambda name, n, warmups=(training.WARMUP,): {
            w: np.array(table[name, w]) for w in warmups
        }
    )  # fmt: skip
    return table


GOOD, BAD, NAN = [2.0] * 9, [3.1] * 9, [np.nan] * 9


def up_to(n):
    """Returns results of a placement that learns at the first n of nine learning rates."""
    return GOOD[:n] + BAD[n:]


def test_keel_learning_rates_are_compared_with_pre_ln(measured):
    names = ("post_ln", "deepnorm", "pre_ln", "keel")
    for rates, want in (
        ((0, 2, 5, 5), [True, True, True]),
        ((4, 2, 5, 5), [False, True, True]),  # Post-LN learns at half of Pre-LN's
        ((0, 2, 6, 5), [True, False, False]),
        ((0, 0, 0, 0), [False, False, False]),  # nothing trains
    ):
        measured |= {(n, 30): up_to(k) for n, k in zip(names, rates, strict=True)}
        assert [part.holds for part in training.largest_learning_rates().parts] == want
    measured["pre_ln", 30] = NAN
    assert not training.largest_learning_rates().holds


def test_warm_up_is_needed_if_fewer_learning_rates_learn_without_it(measured):
    for post, pre, want in (
        ((1, 3), (9, 9), [True, True, True]),
        ((3, 3), (9, 9), [False, True, True]),
        ((1, 3), (5, 9), [True, False, True]),
    ):
        measured |= {("post_ln", 0): up_to(post[0]), ("post_ln", 100): up_to(post[1])}
        measured |= {("pre_ln", 0): up_to(pre[0]), ("pre_ln", 100): up_to(pre[1])}
        assert [part.holds for part in training.without_warmup().parts] == want
    measured["pre_ln", 0] = [2.1] * 9
    assert not training.without_warmup().parts[2].holds


def test_linear_and_other_growth_are_distinguished():
    straight, fast = np.arange(1.0, 10), np.exp(np.arange(9.0))
    slow = np.log(np.arange(1.0, 10))
    seen = initialization.growth_parts({"pre_ln": fast, "lns": slow, "peri_ln": straight})
    assert [part.holds for part in seen] == [True, True]
    seen = initialization.growth_parts({"pre_ln": straight, "lns": straight, "peri_ln": fast})
    assert [part.holds for part in seen] == [False, False]


def test_every_run_learns_at_the_largest_learning_rate(monkeypatch):
    monkeypatch.setattr(training, "text", lambda: None)
    monkeypatch.setattr(training, "unigram_entropy", lambda _: 3.0)
    results, rates = np.array([2.5, 2.0, 2.4, 2.9, 3.1, np.nan]), (1, 2, 4, 8, 16, 32)
    assert training.largest(results, 0.0, rates) == 8
    assert training.largest(results, 0.5, rates) == 4
    assert training.largest(np.array([np.nan, 3.5]), 0.5, (1, 2)) == 0


def test_slope_and_bend():
    assert slope([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert slope([1, 4, 16], [8, 4, 2]) == pytest.approx(-0.5)
    assert bend([1.0, 3.0, 5.0, 7.0, 9.0]) == 1
    assert bend([0.0, 1.0, 3.0]) == 2


def test_claim_lists_which_statements_were_seen():
    facts = ("t", "s", "says", "setup", ("a", "b"), [("x", 0.12345)])
    parts = [Part("it rises", "by 3", True), Part("it falls", "by 0", False)]
    claim = Claim(*facts, parts)
    assert not claim.holds and Claim(*facts, parts[:1]).holds
    text = claim.render()
    assert "| x | 0.123 |" in text
    assert text.endswith("- it rises: **seen**; by 3.\n- it falls: **not seen**; by 0.")


def test_unknown_claim_is_a_one_line_error(tmp_path):
    done = run("-m", "experiments.papers", "--only=first_steps", tmp=tmp_path)
    assert "--only has 'first_steps'; did you mean 'first_step'?" in one_line_error(done)
