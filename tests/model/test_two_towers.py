"""Parameters, published constants, decoding and diagnostics of encoder-decoders."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gpt2_jax.config.capacity import least_parameters
from gpt2_jax.data.batch import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.model.data_dependent_init import data_dependent_init
from gpt2_jax.model.decode import (
    bind_unstacked,
    decode,
    empty_caches,
    read_source,
    unstack_params,
)
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.diagnostics import by_tower, figures, gradient_norms, logits_without
from gpt2_jax.nn.loss import cross_entropy
from gpt2_jax.train.distributed.mesh import FSDP, make_mesh, manual_axes
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.optim.param_patterns import lr_factors
from tests.model.architectures import (
    SOURCE,
    STEP,
    TARGET,
    TWO,
    encoder,
    logits,
    names,
    padded,
    tower_params,
    translator,
)
from tests.model.oracles.towers import Tower
from tests.tools import tiny, tiny_model

# -- parameters


def test_an_encoder_has_the_parameters_of_a_decoder():
    """So a checkpoint of one can start the other."""
    decoder = tiny_model()[0]
    assert jax.tree.map(np.shape, encoder()[0].shapes) == jax.tree.map(np.shape, decoder.shapes)
    assert {"wte", "wpe", "ln_f.gain"} <= names(decoder)


def test_the_token_table_is_shared_unless_it_is_not():
    shared, params = translator()
    assert "encoder.wte" in names(shared) and "decoder.wte" not in names(shared)
    own, own_params = translator(model__share_embeddings=False)
    assert names(own) - names(shared) == {"decoder.wte"}
    untied = translator(model__tie_head=False)[0]
    assert names(untied) - names(shared) == {"decoder.head"}
    # With the same table on both sides, the two are the same function.
    copied = jax.tree.map(lambda x: x, own_params)
    copied["encoder"] = params["encoder"]
    table = params["encoder"]["embedding"]["wte"]
    embedding = {**params["decoder"]["embedding"], "wte": table}
    copied["decoder"] = {**params["decoder"], "embedding": embedding}
    want = logits(shared, params, TARGET, SOURCE)
    np.testing.assert_allclose(logits(own, copied, TARGET, SOURCE), want, atol=1e-6)
    embedding = {**embedding, "wte": 2 * table}
    copied["decoder"] = {**copied["decoder"], "embedding": embedding}
    assert np.abs(logits(own, copied, TARGET, SOURCE) - want).max() > 1e-2


def test_towers_have_different_initial_values():
    config = tiny(model__architecture="encoder_decoder")
    params = define_model(config.model, config.placement).init(jax.random.key(0))
    kernel = lambda tower: params[tower]["blocks"]["all"]["attn"]["sublayer"]["qkv"]["kernel"]
    assert np.abs(kernel("encoder") - kernel("decoder")).max() > 0.01


def test_parameters_and_flops_count_both_towers():
    model_def = translator()[0]
    d, n_in = 16, 64
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * n_in + n_in + d, 2 * d
    blocks = 3 * (attention + mlp + 2 * norm) + 2 * (2 * attention + mlp + 3 * norm)
    total = blocks + 2 * norm + 11 * d + 2 * 12 * d
    assert model_def.n_params() == total
    least = least_parameters(tiny(**TWO))
    assert 0.9 * total < least <= total
    assert model_def.flops_per_token(12) == 6 * (total - 24 * d) + 12 * (3 + 2 * 2) * d * 12


def test_shared_blocks_are_shared_within_a_tower():
    model_def, params = translator("universal")
    rows = {
        tower: params[tower]["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"].shape[0]
        for tower in ("encoder", "decoder")
    }
    assert rows == {"encoder": 1, "decoder": 1}
    assert model_def.n_blocks == 5


def test_parts_of_both_towers_are_gathered_from_the_devices():
    config = tiny(**TWO, mesh__fsdp=4, mesh__data=1)
    model_def, params = translator()
    mesh = make_mesh(config.train, config.mesh, devices=jax.devices()[:4])
    layout = make_layout(model_def, mesh)
    gathered = jax.shard_map(
        lambda params: layout.on_device.bind(params)(TARGET, step=STEP, source=SOURCE),
        mesh=mesh,
        axis_names=manual_axes(mesh),
        in_specs=(layout.specs_of(params, FSDP),),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    on_mesh = jax.device_put(params, layout.shardings(params))
    for tower in ("encoder", "decoder"):
        kernel = on_mesh[tower]["blocks"]["all"]["attn"]["sublayer"]["qkv"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 4
    got = jax.jit(gathered)(on_mesh)[..., :11]
    np.testing.assert_allclose(got, logits(model_def, params, TARGET, SOURCE), atol=1e-5)


def test_patterns_name_the_blocks_of_a_tower():
    model_def = translator()[0]
    config = tiny(**TWO, optimizer__frozen=("encoder",), optimizer__lr_multipliers=("wte=2",))
    with pytest.raises(UserError, match="the pattern 'wte=2' matches no parameter"):
        lr_factors(config.optimizer, model_def)
    config = tiny(**TWO, optimizer__frozen=("encoder", "decoder.blocks.1.cross"))
    factors = lr_factors(config.optimizer, model_def)
    assert not any(x.any() for x in jax.tree.leaves(factors["encoder"]))
    kernel = factors["decoder"]["blocks"]["all"]["cross"]["sublayer"]["out"]["kernel"]
    np.testing.assert_array_equal(kernel.ravel(), [1, 0])


# -- published constants: encoder of N = 3 blocks, decoder of M = 2, and each alone

N, M = 3, 2
BETA = {
    "deepnorm": (0.87 * (N**4 * M) ** (-1 / 16), (12 * M) ** -0.25, (12 * M) ** -0.25),
    "sub_ln": (np.sqrt(np.log(3 * M) * np.log(2 * N) / 3), np.sqrt(np.log(3 * M)), 1.0),
    "t_fixup": (0.67 * N**-0.25, (9 * M) ** -0.25, (9 * M) ** -0.25),
    "b2t": (N**-0.5, M**-0.5, M**-0.5),
}


@pytest.mark.parametrize(("name", "factors"), BETA.items())
def test_initial_output_matrices_have_the_published_factors(name, factors):
    """W_O of the encoder's attention, and of the decoder's self- and cross-attention."""
    d = 64
    config = tiny(placement__preset=name, model__n_embd=d, **TWO)
    params = define_model(config.model, config.placement).init(jax.random.key(0))
    for (tower, sublayer), factor in zip(
        [("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross")], factors, strict=True
    ):
        kernel = params[tower]["blocks"]["all"][sublayer]["sublayer"]["out"]["kernel"]
        assert np.std(kernel) == pytest.approx(factor * d**-0.5, rel=0.05), (tower, sublayer)


def test_fixup_counts_the_sublayers_of_the_whole_model():
    d = 64
    config = tiny(placement__preset="fixup", model__n_embd=d, **TWO)
    params = define_model(config.model, config.placement).init(jax.random.key(0))
    xavier = (2 / (5 * d)) ** 0.5
    for tower in ("encoder", "decoder"):
        kernel = params[tower]["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"]
        assert np.std(kernel) == pytest.approx((2 * N + 3 * M) ** -0.5 * xavier, rel=0.05)


def test_t_fixup_scales_each_embedding_by_its_tower():
    config = tiny(placement__preset="t_fixup", model__n_embd=64, **TWO)
    params = define_model(config.model, config.placement).init(jax.random.key(0))
    for tower, blocks in (("encoder", N), ("decoder", M)):
        std = np.std(params[tower]["embedding"]["wpe"])
        assert std == pytest.approx(64**-0.5 * (9 * blocks) ** -0.25, rel=0.1)


def test_rezero_has_one_factor_for_the_three_sublayers_of_a_block():
    found = [name for name in names(translator("rezero")[0]) if name.endswith("branch_scale.value")]
    assert sorted(found) == [
        "decoder.blocks.all.attn.branch_scale.value",
        "encoder.blocks.all.attn.branch_scale.value",
    ]


def test_admin_measures_one_tower_after_the_other():
    """Each begins with 1, padding does not count, and cross-attention has a factor of its own."""
    model_def, params = translator("admin")
    measure = jax.jit(partial(data_dependent_init, model_def))
    measured = measure(params, TARGET, SOURCE)
    factors = {
        (tower, name): np.asarray(side["skip_scale"]["value"][:, 0])
        for tower in ("encoder", "decoder")
        for name, side in measured[tower]["blocks"]["all"]["connection"].items()
    }
    assert len(factors) == 5
    assert factors["encoder", "attn"][0] == factors["decoder", "attn"][0] == 1.0
    assert len({round(float(x), 3) for values in factors.values() for x in values}) == 11
    # The first factor that is not 1, from its definition.
    first = model_def.specs[0]
    tower = Tower(*tower_params(measured, first), *SOURCE[:2], causal=False)
    x, real = tower.embed(4.0), SOURCE.segments_BT != 0
    y = tower.F("attn", x, tower.blocks[0])
    want = np.sqrt(x[real].var() + y[real].var())
    assert factors["encoder", "mlp"][0] == pytest.approx(want, rel=1e-5)
    again = measure(params, padded(TARGET, 2), padded(SOURCE, 2))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), again, measured)


# -- decoding


def written(model_def, params, source):
    """Returns logits of TARGET's ids, written token by token."""
    return _written(model_def, unstack_params(model_def, params, STEP), source)


@partial(jax.jit, static_argnums=0)
def _written(model_def, unstacked, source):
    n_rows, length = TARGET.ids_BT.shape
    bound = bind_unstacked(model_def, unstacked)
    read, caches = read_source(bound, source), empty_caches(model_def.cfg, n_rows, length)
    first_B, found = jnp.zeros(n_rows, jnp.int32), []
    for i in range(length):
        ids_B1 = jnp.asarray(TARGET.ids_BT[:, i : i + 1])
        x_B1D, caches, first_B = decode(bound, ids_B1, caches, i, first_B, read)
        found.append(bound.model.logits(x_B1D)[:, 0, :11])
    return jnp.stack(found, 1)


FIRST = Tokens(SOURCE.ids_BT, (SOURCE.segments_BT == [[1], [1]]).astype(np.int32))


@pytest.mark.parametrize(
    "name", ["b2t", "residual_dual", pytest.param("swin_v2", marks=pytest.mark.slow)]
)
def test_writing_token_by_token_equals_the_full_pass(name):
    """With a norm of keys, and for every kind of stream; the source is read once."""
    model_def, params = translator(name)
    want = logits(model_def, params, jnp.asarray(TARGET.ids_BT), FIRST)
    np.testing.assert_allclose(written(model_def, params, FIRST), want, rtol=1e-4, atol=2e-5)
    other = Tokens(FIRST.ids_BT[:, ::-1].copy(), FIRST.segments_BT)
    assert np.abs(written(model_def, params, other) - want).max() > 1e-2


# -- diagnostics


def test_diagnostics_of_two_towers_are_named_after_them():
    model_def, params = translator()
    found = jax.jit(lambda p: figures(model_def, p, TARGET, STEP, SOURCE))(params)
    sizes = {name: len(values) for name, values in found.items()}
    assert sizes["encoder/stream_rms"] == 3 and sizes["decoder/cross_ratio"] == 2
    assert "encoder/cross_ratio" not in sizes and len(sizes) == 13
    assert all(np.isfinite(x).all() and (np.asarray(x) != 0).all() for x in found.values())
    more = lambda p: figures(model_def, p, padded(TARGET, 2), STEP, padded(SOURCE, 2))
    again = jax.jit(more)(params)
    for name, values in found.items():  # padding does not count
        np.testing.assert_allclose(again[name], values, rtol=1e-4, err_msg=name)
    loss = lambda p: cross_entropy(
        model_def.bind(p)(TARGET, step=STEP, source=SOURCE), jnp.asarray(TARGET.ids_BT)
    ).mean()
    norms = gradient_norms(model_def, jax.jit(jax.grad(loss))(params))
    assert norms.shape == (5,) and (norms > 0).all()
    split = by_tower(model_def.cfg.towers, "grad_norm", norms)
    assert {name: len(x) for name, x in split.items()} == {
        "encoder/grad_norm": 3,
        "decoder/grad_norm": 2,
    }


def test_the_blocks_of_the_encoder_are_ablated_first():
    """A block whose outputs are 0 is the identity in Pre-LN."""
    model_def, params = translator()
    for layer, (tower, row) in {0: ("encoder", 0), 4: ("decoder", 1)}.items():
        without = jax.tree.map(lambda x: x, params)
        for sublayer in ("attn", "cross", "mlp"):
            if sublayer in without[tower]["blocks"]["all"]:
                inside = without[tower]["blocks"]["all"][sublayer]["sublayer"]
                last = "down" if sublayer == "mlp" else "out"
                inside[last] = jax.tree.map(lambda x, row=row: x.at[row].set(0), inside[last])
        got = logits_without(model_def, params, TARGET, STEP, layer, SOURCE)[..., :11]
        want = logits(model_def, without, TARGET, SOURCE)
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert np.abs(want - logits(model_def, params, TARGET, SOURCE)).max() > 1e-2
