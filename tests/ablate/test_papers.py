"""Claims of papers: those about the start on fewer depths, and that a false one is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.ablate.papers import start, trained
from gpt2_jax.ablate.papers.claim import Claim, linearity, slope
from gpt2_jax.model.structure import structure
from tests.tools import one_line_error, run


def test_the_last_layers_gradient_falls_with_depth_in_pre_ln_alone():
    claim = start.last_layer_gradient(depths=(3, 48))
    assert claim.holds, claim.verdict
    post, pre = (np.array([row[i] for row in claim.rows]) for i in (1, 2))
    assert pre[0] / pre[1] == pytest.approx(4, rel=0.35)  # the root of 16
    assert post[0] / post[1] == pytest.approx(1, rel=0.5)


def test_the_pre_ln_stream_grows_within_its_bounds():
    claim = start.stream_growth(n_layer=12)
    assert claim.holds, claim.verdict


def test_the_assumptions_of_the_theorem_hold():
    """Scores of 0, so that attention is a mean, and values that no W_O mixes."""
    model = start.theorem_model("pre_ln", 2)
    params = start.theorem_params(model, jax.random.key(0))
    blocks = params["blocks"]
    assert not np.any(blocks["attn"]["sublayer"]["qkv"]["kernel"][:, :, :2])
    out = np.asarray(blocks["attn"]["sublayer"]["out"]["kernel"][1, 0])
    np.testing.assert_array_equal(out, np.eye(start.WIDTH))
    for kernel in (blocks["mlp"]["sublayer"]["up"], blocks["mlp"]["sublayer"]["down"]):
        assert np.std(kernel["kernel"]) == pytest.approx(start.WIDTH**-0.5, rel=0.05)
    x = model.bind(params).embed(jnp.arange(500)[None, :60], model.bind(params).context(0, None, 0))
    assert float(jnp.square(x).mean()) == pytest.approx(1, rel=0.1)


@pytest.mark.slow
def test_deepnorms_first_update_is_that_of_any_depth():
    claim = start.first_update(depths=(6, 24, 96))
    assert claim.holds, claim.verdict


@pytest.mark.slow
def test_the_streams_variance_grows_as_the_placement_lets_it():
    claim = start.stream_variance(n_layer=24)
    assert claim.holds, claim.verdict


def test_gains_are_those_of_the_product_of_all_mixings():
    """Matrices set by hand: r = 2 I and then a sum of streams 0 and 1."""
    config = trained.small_config("hyper_connections_static", 1, 1e-3, 1, 0)
    model = structure(config.model)
    params = model.init(jax.random.key(0))
    mixing = np.eye(4, dtype=np.float32)
    mixing[1, 0] = 3.0  # from 1 to 0
    connection = params["blocks"]["connection"]
    connection["attn"]["mix"] = jnp.asarray(2 * np.eye(4, dtype=np.float32))[None]
    connection["mlp"]["mix"] = jnp.asarray(mixing)[None]
    got = trained.gains(model, params, jnp.zeros((2, 5), jnp.int32))
    np.testing.assert_allclose(got, [2.0, 2 * (1 + 3)])


def test_the_largest_rate_is_one_at_which_every_run_learns(monkeypatch):
    monkeypatch.setattr(trained, "guessing", lambda: 3.0)
    results, rates = np.array([2.5, 2.0, 2.4, 2.9, 3.1, np.nan]), (1, 2, 4, 8, 16, 32)
    assert trained.largest(results, 0.0, rates) == 8
    assert trained.largest(results, 0.5, rates) == 4
    assert trained.largest(np.array([np.nan, 3.5]), 0.5, (1, 2)) == 0


def test_exponents_and_lines():
    assert slope([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert slope([1, 4, 16], [8, 4, 2]) == pytest.approx(-0.5)
    assert linearity(np.array([1.0, 3.0, 5.0])) == pytest.approx(1)
    assert linearity(np.array([1.0, -1.0, 1.0, -1.0])) < 0.3


def test_a_claim_says_whether_it_holds():
    facts = ("t", "s", "says", "setup", ("a", "b"), [("x", 0.12345)])
    assert "| x | 0.123 |" in Claim(*facts, True, "v").render()
    assert Claim(*facts, True, "v").render().endswith("**Holds**: v")
    assert Claim(*facts, False, "v").render().endswith("**Does not hold as stated**: v")


def test_an_unknown_claim_is_one_line(tmp_path):
    done = run("-m", "gpt2_jax.ablate.papers", "--only=first_updates", tmp=tmp_path)
    assert "--only has 'first_updates'; did you mean 'first_update'?" in one_line_error(done)
