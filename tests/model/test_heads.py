"""Heads, token types and BERT's arrangement, against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.heads import HeadSpec
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.nn.param import Role
from tests.model.oracles.base import gelu, ln, namespace
from tests.tools import noisy, tiny

SEGMENTS = np.array([[1] * 5 + [0] * 2, [1] * 7], np.int32)
IDS = np.random.default_rng(3).integers(0, 11, SEGMENTS.shape).astype(np.int32)
TYPES = np.array([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]], np.int32)
INPUTS = Tokens(IDS, SEGMENTS, TYPES)
BERT = {
    "model__architecture": "encoder",
    "model__token_types": 2,
    "placement__preset": "post_ln",
    "placement__embedding_norm": True,
    "placement__norm_eps": 1e-12,
    "placement__init": "normal",
    "placement__embedding_std": "std",
    "placement__embedding_multiplier": "1",
}


def built(head, **changes):
    config = tiny(**{**BERT, **changes})
    model_def = define_model(config.model, config.placement, head=head)
    return model_def, noisy(model_def.init(jax.random.key(0)))


def hidden_and_logits(head, **changes):
    model_def, params = built(head, **changes)
    bound = model_def.bind(params)
    x_BTD = bound.hidden(INPUTS)
    return params, np.asarray(x_BTD, np.float64), bound


def test_token_types_are_added_to_the_embedding():
    """x_0 = N(W[token] + P[position] + T[type])."""
    model_def, params = built(HeadSpec("mlm"))
    bound, e = model_def.bind(params), namespace(params["embedding"])
    got = bound.embed(INPUTS, bound.context_of(INPUTS, None, 0))
    places = np.array([[0, 1, 2, 3, 4, 0, 1], range(7)])
    want = ln(e.wte[IDS] + e.wpe[places] + e.wtt[TYPES], e.embedding_norm, eps=1e-12)
    np.testing.assert_allclose(got, want, atol=1e-5)
    without = INPUTS._replace(types_BT=None)
    zeros = INPUTS._replace(types_BT=0 * TYPES)
    np.testing.assert_array_equal(bound.hidden(without), bound.hidden(zeros))
    assert np.abs(bound.hidden(without) - bound.hidden(INPUTS)).max() > 1e-2


def test_the_head_for_masked_tokens_is_berts():
    """Dense, activation, norm, the token table, and a bias per token."""
    params, x, bound = hidden_and_logits(HeadSpec("mlm"))
    p, table = namespace(params["mlm"]), np.asarray(params["embedding"]["wte"], np.float64)
    want = ln(gelu(x @ p.dense.kernel + p.dense.bias), p.norm, eps=1e-12) @ table[:11].T + p.bias
    logits = bound.logits(x.astype(np.float32))
    np.testing.assert_allclose(logits[..., :11], want, atol=1e-4)
    assert (logits[..., 11:] == jnp.finfo(jnp.float32).min).all()
    nll = bound.nll(x.astype(np.float32), jnp.asarray(IDS))
    np.testing.assert_allclose(nll, cross_entropy(logits, jnp.asarray(IDS)), rtol=1e-6)


def test_the_transform_for_masked_tokens_can_be_left_out():
    params, x, bound = hidden_and_logits(HeadSpec("mlm", transform=False))
    assert set(params["mlm"]) == {"bias"}
    want = x @ np.asarray(params["embedding"]["wte"][:11], np.float64).T + params["mlm"]["bias"]
    np.testing.assert_allclose(bound.logits(x.astype(np.float32))[..., :11], want, atol=1e-4)


def test_labels_of_tokens_have_a_linear_head():
    params, x, bound = hidden_and_logits(HeadSpec("tokens", 5))
    head = namespace(params["head"])
    got = bound.logits(x.astype(np.float32), SEGMENTS)
    assert got.shape == (2, 7, 5)
    np.testing.assert_allclose(got, x @ head.kernel + head.bias, atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "transform"), [("cls", None), ("mean", None), ("cls", False), ("mean", True)]
)
def test_a_label_of_a_sequence_is_read_from_its_tokens(pool, transform):
    params, x, bound = hidden_and_logits(HeadSpec("sequence", 3, pool, transform))
    head, real = namespace(params["head"]), (SEGMENTS != 0)[..., None]
    pooled = x[:, 0] if pool == "cls" else (x * real).sum(1) / real.sum(1)
    dense = transform or (transform is None and pool == "cls")
    assert hasattr(head, "dense") == dense
    if dense:
        pooled = np.tanh(pooled @ head.dense.kernel + head.dense.bias)
    got = bound.logits(x.astype(np.float32), SEGMENTS)
    np.testing.assert_allclose(got, pooled @ head.kernel + head.bias, atol=1e-5)


@pytest.mark.parametrize("transform", [True, False])
def test_pooled_vectors_are_what_labels_are_read_from(transform):
    params, x, bound = hidden_and_logits(HeadSpec("pooled", transform=transform))
    want = x[:, 0]
    if transform:
        dense = namespace(params["head"]["dense"])
        want = np.tanh(want @ dense.kernel + dense.bias)
        assert list(params["head"]) == ["dense"]
    else:
        assert "head" not in params
    np.testing.assert_allclose(bound.logits(x.astype(np.float32), SEGMENTS), want, atol=1e-5)


def test_a_span_never_begins_at_padding():
    params, x, bound = hidden_and_logits(HeadSpec("span"))
    head, lowest = namespace(params["head"]), np.finfo(np.float32).min
    got = np.asarray(bound.logits(x.astype(np.float32), SEGMENTS))
    want = x @ head.kernel + head.bias
    np.testing.assert_allclose(got[SEGMENTS != 0], want[SEGMENTS != 0], atol=1e-5)
    assert (got[SEGMENTS == 0] == lowest).all()


@pytest.mark.parametrize("kind", ["tokens", "sequence"])
def test_dropout_acts_before_the_output_matrix(kind):
    _, x, bound = hidden_and_logits(HeadSpec(kind, 3), model__dropout=0.5)
    x, keys = x.astype(np.float32), jax.random.split(jax.random.key(0), 2)
    assert np.abs(bound.logits(x, SEGMENTS, keys) - bound.logits(x, SEGMENTS)).max() > 1e-3


def test_a_row_of_padding_alone_has_finite_labels_and_gradients():
    """Such rows fill up the last batch of an evaluation."""
    model_def, params = built(HeadSpec("sequence", 3, "mean"))
    empty = Tokens(IDS, 0 * SEGMENTS)

    def loss(params):
        bound = model_def.bind(params)
        return bound.logits(bound.hidden(empty), empty.segments_BT).sum()

    value, grads = jax.value_and_grad(loss)(params)
    assert math.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_heads_are_counted_without_padding_of_the_vocabulary():
    """And their matrices have the role of a head, so Muon leaves them to AdamW."""
    plain = built(HeadSpec("lm"))[0]
    tagger = built(HeadSpec("tokens", 5))[0]
    assert tagger.n_params() - plain.n_params() == 16 * 5 + 5
    assert tagger.infos["head"]["kernel"].role == Role.HEAD


def test_a_label_head_is_for_models_of_one_tower():
    config = tiny(model__architecture="encoder_decoder")
    with pytest.raises(ValueError, match="needs a model of one tower"):
        define_model(config.model, config.placement, head=HeadSpec("tokens", 5))
