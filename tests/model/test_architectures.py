"""Encoders and encoder-decoders: oracles under padding, masks, modes, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config import resolve
from gpt2_jax.data.batch import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.encoder_decoder import tower_keys
from gpt2_jax.placements import PRESETS
from gpt2_jax.placements.registry import supports_cross
from tests.model.architectures import (
    REAL,
    RNG,
    SOURCE,
    STEP,
    TARGET,
    TWO,
    encoder,
    logits,
    oracle,
    padded,
    translator,
)
from tests.model.oracles import ORACLES, Model, visible
from tests.model.oracles.compare import parts
from tests.model.oracles.towers import TOWERS, places
from tests.placements import EVERY_AT_LENGTH, depth
from tests.tools import tiny, tiny_model

WEIGHTS = jnp.asarray(RNG.standard_normal((2, 9, 11)), jnp.float32)


def assert_near(ours, theirs, real):
    ours, theirs = np.asarray(ours)[real], theirs[real]
    rms = np.sqrt((theirs**2).mean())
    assert rms > 0.1
    assert np.abs(ours - theirs).max() < 1e-5 * rms


# -- oracles


@pytest.mark.parametrize("name", EVERY_AT_LENGTH)
def test_an_encoder_is_its_placement_without_a_causal_mask(name):
    """Packed and padded rows, compared with the oracles of decoders whose mask is replaced."""
    model_def, params = encoder(name)
    ids, segments = SOURCE.ids_BT, SOURCE.segments_BT
    same = segments[:, :, None] == segments[:, None, :]
    model = Model(*parts(model_def, params), ids, 11, STEP, places(segments))
    with visible(same):
        theirs = ORACLES[name](model)
    ours = logits(model_def, params, SOURCE)
    assert_near(ours, theirs, segments != 0)
    causal = ORACLES[name](Model(*parts(model_def, params), ids, 11, STEP, places(segments)))
    assert np.abs(causal - theirs)[segments != 0].max() > 1e-3  # ReZero has small branches


FAST = ("b2t", "residual_dual")
FAMILIES = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TOWERS]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_decoder_matches_its_oracle(name):
    """Three and two blocks, with padding and packing on both sides."""
    changes = {"model__n_encoder_layer": 2} if name == "x0_lambda" else {}
    model_def, params = translator(name, **changes)
    assert_near(
        logits(model_def, params, TARGET, SOURCE), oracle(name, model_def, params)[-1], REAL
    )


SUPPORTED = [name for name, placement in PRESETS.items() if supports_cross(placement)]


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SUPPORTED]
)
def test_every_preset_reads_the_source_and_earlier_tokens(name):
    """The gradient of each target's logits reaches what it should see, and nothing else."""
    layers = {"model__n_layer": depth(name), "model__n_encoder_layer": depth(name)}
    model_def, params = translator(name, **layers)
    bound = model_def.bind(params)
    from_encoder = bound.encoder.hidden(SOURCE, None, STEP)

    def out(x_BSD, x_BTD):
        memory = bound.memory(x_BSD, SOURCE, TARGET)
        context = bound.decoder.context_of(TARGET, None, STEP, memory)
        blocks = bound.decoder.blocks
        hidden = bound.decoder.head_input(blocks(blocks.begin(x_BTD), context)[0])
        return (bound.logits(hidden)[0, :, :11] * WEIGHTS[0, :8]).sum(-1)

    context = bound.decoder.context_of(TARGET, None, STEP)
    embedded = bound.decoder.embed(TARGET, context)
    jacobians = jax.jit(jax.jacrev(out, (0, 1)))(from_encoder, embedded)
    seen = [np.asarray(jnp.abs(x[:, 0]).sum(-1)) > 0 for x in jacobians]
    target, source = TARGET.segments_BT[0], SOURCE.segments_BT[0]
    real = target != 0
    np.testing.assert_array_equal(seen[0][real], (target[:, None] == source)[real])
    same = np.tril(target[:, None] == target)
    np.testing.assert_array_equal(seen[1][real], same[real])


# -- masks


@pytest.mark.parametrize("name", ["post_ln", "universal"])
def test_an_encoder_attends_within_a_segment_and_not_across(name):
    model_def, params = encoder(name)
    bound = model_def.bind(params)
    context = bound.context_of(SOURCE, None, STEP)

    def out(x_BTD):
        hidden = bound.head_input(bound.blocks(bound.blocks.begin(x_BTD), context)[0])
        return (bound.logits(hidden)[0, :, :11] * WEIGHTS[0]).sum(-1)

    jacobian = jax.jit(jax.jacrev(out))(bound.embed(SOURCE, context))
    segments = SOURCE.segments_BT[0]
    want = segments[:, None] == segments
    np.testing.assert_array_equal(np.asarray(jnp.abs(jacobian)[:, 0].sum(-1)) > 0, want)


@pytest.mark.parametrize("name", ["pre_ln", "hyper_connections"])
def test_padding_further_changes_no_token(name):
    """Also with other ids at padding, and in an encoder alone."""
    model_def, params = translator(name)
    want = logits(model_def, params, TARGET, SOURCE)
    got = logits(model_def, params, padded(TARGET, 3), padded(SOURCE, 2))[:, :8]
    np.testing.assert_allclose(got[REAL], want[REAL], atol=1e-6)
    assert np.abs(got - want)[~REAL].max() > 1e-3  # the ids do differ
    alone, own = encoder(name)
    want, got = logits(alone, own, SOURCE), logits(alone, own, padded(SOURCE, 3))[:, :9]
    real = SOURCE.segments_BT != 0
    np.testing.assert_allclose(got[real], want[real], atol=1e-6)


def segment(inputs, row, number, length):
    """Returns one segment of a row, padded."""
    where = inputs.segments_BT[row] == number
    ids = np.zeros((1, length), np.int32)
    ids[0, : where.sum()] = inputs.ids_BT[row][where]
    return Tokens(ids, (np.arange(length) < where.sum()).astype(np.int32)[None])


@pytest.mark.parametrize("name", ["deepnorm", "svformer"])
def test_packed_examples_are_as_if_alone(name):
    """Positions restart in each segment, and cross-attention reads the segment's own source."""
    model_def, params = translator(name)
    packed = logits(model_def, params, TARGET, SOURCE)
    for number in (1, 2):
        inputs = segment(TARGET, 0, number, 8), segment(SOURCE, 0, number, 9)
        alone = logits(model_def, params, *inputs)[0]
        where = TARGET.segments_BT[0] == number
        np.testing.assert_allclose(packed[0][where], alone[: where.sum()], atol=1e-6)
    swapped = logits(model_def, params, segment(TARGET, 0, 1, 8), segment(SOURCE, 0, 2, 9))[0]
    first = TARGET.segments_BT[0] == 1
    assert np.abs(packed[0][first] - swapped[: first.sum()]).max() > 1e-2


def test_a_decoder_packs_examples_too():
    model_def, params = tiny_model()
    packed = logits(model_def, params, TARGET)
    alone = logits(model_def, params, jnp.asarray(segment(TARGET, 0, 2, 3).ids_BT))[0]
    np.testing.assert_allclose(packed[0, 4:7], alone, atol=1e-6)
    assert np.abs(packed - logits(model_def, params, TARGET.ids_BT))[0, 4:7].max() > 1e-2


# -- the same function in every mode


def gradients(name, **changes):
    """Returns the loss and its gradient, with parameters that do not depend on the mode."""
    _, params = translator(name)
    config = tiny(placement__preset=name, **TWO, **changes)
    built = define_model(config.model, config.placement)
    loss = lambda p: (
        built.bind(p)(TARGET, step=STEP, source=SOURCE)[..., :11] * WEIGHTS[:, :8]
    ).sum()
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("name", ["post_ln", pytest.param("mhc", marks=pytest.mark.slow)])
def test_scan_with_remat_equals_unrolled_without(name):
    want = gradients(name, model__unroll=True)
    got = gradients(name, model__unroll=False, model__remat="block")
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want[1]))
    near = partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6 * scale)
    jax.tree.map(near, got, want)


def test_gradients_in_bfloat16_are_near_those_in_float32():
    """The gradient of the encoder is a sum over the blocks that read it."""
    want = gradients("pre_ln", model__unroll=False)[1]
    got = gradients("pre_ln", model__unroll=False, model__dtype="bfloat16")[1]
    for path, x in jax.tree_util.tree_leaves_with_path(want):
        y = got
        for key in path:
            y = y[key.key]
        assert y.dtype == jnp.float32
        assert jnp.linalg.norm(x - y) < 0.1 * jnp.linalg.norm(x) + 1e-3, path


def test_dropout_differs_between_the_towers():
    """Otherwise both would drop the same entries of the same ids."""
    model_def, params = translator(model__dropout=0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    bound = model_def.bind(params)
    read = bound.encode(SOURCE, TARGET, keys, STEP).x_BSD
    as_decoder = bound.encoder.output(SOURCE, tower_keys(keys, "decoder"), STEP)
    assert np.abs(read - as_decoder).max() > 1e-2
    memory = bound.encode(SOURCE, TARGET, None, STEP)
    written = bound.decoder.output(TARGET, tower_keys(keys, "decoder"), STEP, memory)
    assert np.abs(written - bound.hidden(TARGET, keys, STEP, SOURCE)).max() > 1e-2
    assert np.abs(written - bound.hidden(TARGET, None, STEP, SOURCE)).max() > 1e-2


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"placement__preset": "muddformer"},
            "placement.connection=muddformer does not support cross-attention: set "
            "model.architecture to decoder or encoder",
        ),
        (
            {"placement__preset": "simplified_skipless"},
            "placement.shaped_attention=True needs as many queries as keys",
        ),
        (
            {"placement__preset": "unet_skips", "model__n_layer": 4},
            "cross_layer=unet pairs blocks: model.n_encoder_layer=3 must be even",
        ),
        (
            {"placement__skip_scale": "1/(L-3)"},
            "it has no finite value in block 1 of 3 of the encoder",
        ),
        ({"model__token_types": 2}, "model.token_types=2 needs model.architecture=encoder, not"),
        (
            {"model__document_mask": True, "model__end_of_text": 1},
            "model.document_mask=True needs model.architecture=decoder",
        ),
        (
            {"model__attention": "splash"},
            "model.attention=splash does not support model.architecture=encoder_decoder",
        ),
    ],
)
def test_what_makes_no_sense_with_two_towers_is_refused_by_name(changes, line):
    with pytest.raises(UserError) as error:
        tiny(**TWO, **changes)
    assert line in str(error.value)


def test_fields_of_two_towers_are_refused_with_one():
    with pytest.raises(UserError, match="n_encoder_layer=2 needs"):
        tiny(model__n_encoder_layer=2)
    with pytest.raises(UserError, match="share_embeddings=False needs"):
        tiny(model__architecture="encoder", model__share_embeddings=False)


def test_depth_rules_know_the_reader():
    """M is the depth of the decoder that reads an encoder, P the sublayers of both."""
    config = tiny(**TWO, placement__branch_scale="1 + M", placement__input_scale="P")
    values = [config.model.sizes(tower).values(1) for tower in config.model.towers]
    assert [(v["M"], v["P"], v["S"]) for v in values] == [(2, 12, 6), (0, 12, 6)]
    alone = tiny().model
    assert alone.sizes(alone.towers[0]).values(1)["P"] == 4


def test_the_encoder_has_as_many_blocks_as_the_decoder_by_default():
    config = resolve(tiny(model__architecture="encoder_decoder", model__n_layer=2), 1)
    assert [tower.n_layer for tower in config.model.towers] == [2, 2]
