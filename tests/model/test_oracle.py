"""Every preset compared with its independent implementation in `oracles/`."""

from functools import cache
from itertools import combinations

import jax
import numpy as np
import pytest

from gpt2_jax.model.data_dependent_init import data_dependent_init
from gpt2_jax.placements import PRESETS
from tests.model.oracles import ORACLES, Model, admin_profile
from tests.model.oracles.compare import TOKENS, logits, parts
from tests.placements import EVERY, depth
from tests.tools import tiny_model

STEP = 700  # in the middle of ProRes's ramp


@cache
def built(name):
    return tiny_model(placement__preset=name, model__n_layer=depth(name), model__unroll=False)


def ours_and_theirs(name):
    return logits(ORACLES[name], *built(name), STEP)


def test_every_preset_has_an_oracle():
    assert set(ORACLES) == set(PRESETS)


@pytest.mark.parametrize("name", EVERY)
def test_logits_match_the_oracle(name):
    """With noise of 0.1 added to all initial values, so that zeros hide nothing."""
    ours, theirs = ours_and_theirs(name)
    rms = np.sqrt((theirs**2).mean())
    assert rms > 0.1
    assert np.abs(ours - theirs).max() < 1e-5 * rms


def test_admin_initial_factors_match_the_measured_variances():
    model_def, params = built("admin")
    measured = jax.jit(lambda p: data_dependent_init(model_def, p, TOKENS))(params)
    want = admin_profile(Model(*parts(model_def, params), TOKENS, 11, 0))
    assert want[0] == 1.0 and np.abs(np.diff(want)).min() > 0.02
    connection = measured["blocks"]["all"]["connection"]
    for i, name in enumerate(("attn", "mlp")):
        got = np.asarray(connection[name]["skip_scale"]["value"])
        np.testing.assert_allclose(got, np.array(want[i::2])[:, None] * np.ones(16), rtol=1e-5)
    assert data_dependent_init(*built("post_ln"), TOKENS) is built("post_ln")[1]


# Presets that are the same function and differ only in their initial values.
SAME = {frozenset(("pre_ln", "scaled_init")), frozenset(("post_ln", "ds_init"))}


@pytest.mark.slow
def test_presets_with_the_same_parameters_are_different_functions():
    """Presets with equal parameter shapes have different logits with the same weights."""
    models = {name: built(name) for name in PRESETS}
    compared = 0
    for one, other in combinations(models, 2):
        (a, params), (b, _) = models[one], models[other]
        if jax.tree.map(np.shape, a.shapes) == jax.tree.map(np.shape, b.shapes):
            theirs = [ORACLES[n](Model(*parts(a, params), TOKENS, 11, STEP)) for n in (one, other)]
            same = np.abs(theirs[0] - theirs[1]).max() < 1e-5
            assert same == (frozenset((one, other)) in SAME), (one, other)
            compared += 1
    assert compared > 10
