"""Initial values and parameter counts of each preset, as in its source."""

import math
from functools import cache

import jax
import numpy as np
import pytest

from gpt2_jax.model.decode import bind_unstacked, unstack_params
from gpt2_jax.model.definition import define_model, is_info
from gpt2_jax.nn.context import Context
from gpt2_jax.placements import PRESETS
from gpt2_jax.placements.expressions import Sizes, parse_scale
from gpt2_jax.placements.towers import decoder
from tests.placements import EVERY
from tests.tools import tiny

L, D, V, T, H = 8, 64, 257, 96, 4
STD = 0.02
XAVIER = math.sqrt(2 / (D + D))
XAVIER_MLP = math.sqrt(2 / (D + 4 * D))
UNIT = D**-0.5
GPT2 = STD / math.sqrt(2 * L)


def plain(out=STD, wte=STD):
    """Stds of (W_Q and W_K, W_V, W_O, W_1, W_2, token embedding), GPT-2's except W_O and W_2."""
    return STD, STD, out, STD, out, wte


def xavier(qk=1.0, rest=1.0, wte=UNIT, v=None):
    value = rest if v is None else v
    return XAVIER * qk, XAVIER * value, XAVIER * rest, XAVIER_MLP * rest, XAVIER_MLP * rest, wte


def fairseq_2020(factor=1.0):
    """W_Q, W_K, W_V with gain 1/sqrt(2), W_O with gain 1, the MLP with torch's Linear default."""
    qkv, torch_linear = XAVIER / math.sqrt(2), lambda fan_in: 1 / math.sqrt(3 * fan_in)
    stds = (qkv, qkv, XAVIER, torch_linear(D), torch_linear(4 * D))
    return (*[std * factor for std in stds], UNIT)


BETA = (8 * L) ** -0.25
T_FIXUP = 0.67 * L**-0.25
MAGNETO = math.sqrt(math.log(2 * L))
DEEP = (2 * L) ** -0.5
SMALL = math.sqrt(2 / (5 * D))
MEGATRON = (SMALL, SMALL, SMALL * DEEP, XAVIER_MLP, XAVIER_MLP * DEEP, SMALL)
STDS = {
    "pre_ln": plain(GPT2),
    "pre_ln_xavier": xavier(),
    "post_ln": xavier(),
    "sandwich_ln": plain(GPT2),
    "peri_ln": plain(GPT2),
    "gemma2": plain(GPT2),
    "olmo2": plain(),
    "swin_v2": plain(),
    "sub_ln": xavier(rest=MAGNETO),
    "normformer": fairseq_2020(),
    "stream_norm": plain(GPT2),
    "pre_post_ln": plain(GPT2),
    "b2t": fairseq_2020(L**-0.5),
    "mix_ln": plain(),
    "hybridnorm": MEGATRON,
    "hybridnorm_star": MEGATRON,
    "parallel_gptj": plain(2 / (L * math.sqrt(D))),
    "parallel_neox": (
        SMALL,
        SMALL,
        2 / (L * math.sqrt(D)),
        XAVIER_MLP,
        2 / (L * math.sqrt(D)),
        SMALL,
    ),
    "dyt": plain(GPT2),
    "derf": plain(GPT2),
    "scalenorm_fixnorm": (SMALL, SMALL, SMALL, XAVIER_MLP, XAVIER_MLP, UNIT),
    "albert": plain(),
    "universal": xavier(),
    "summed_residual": plain(GPT2),
    "normed_skip": plain(GPT2),
    "normed_stream_mlp": plain(GPT2),
    "deepnorm": xavier(rest=BETA),
    "admin": xavier(qk=2**-0.5, v=2**-0.5),
    "rezero": plain(),
    "skipinit": plain(),
    "layerscale": plain(),
    "keel": plain(),
    "lns": plain(),
    "gpas": plain(),
    "prores": plain(),
    "t_fixup": xavier(qk=2**-0.5, rest=T_FIXUP, wte=UNIT * (9 * L) ** -0.25),
    "fixup": (
        XAVIER / math.sqrt(2) * (2 * L) ** (-1 / 6),
        XAVIER / math.sqrt(2) * (2 * L) ** (-1 / 6),
        0.0,
        XAVIER_MLP * (2 * L) ** -0.5,
        0.0,
        UNIT,
    ),
    "ds_init": xavier(),  # of block 1; a separate test covers the others
    "scaled_init": plain(GPT2),
    # CompleteP: the variance of hidden matrices falls with the width over 256.
    "completep": (*[STD / math.sqrt(D / 256)] * 5, STD),
    "gtrxl": plain(),
    "highway": plain(),
    "x0_lambda": plain(),
    "laurel_rw": plain(GPT2),
    "laurel_lr": plain(GPT2),
    "laurel_pa": plain(GPT2),
    # Matrices of nGPT have length 1 along the width.
    "ngpt": (UNIT,) * 6,
    "ddl": plain(GPT2),
    "orthogonal_residual": plain(GPT2),
    "residual_dual": fairseq_2020(),
    "siamesenorm": plain(GPT2),
    "hyper_connections": plain(GPT2),
    "hyper_connections_static": plain(GPT2),
    "frac_connections": plain(GPT2),
    "mhc": plain(GPT2),
    "mhc_lite": plain(GPT2),
    "denseformer": plain(GPT2),
    "attention_residuals": plain(GPT2),
    "attention_residuals_block": plain(GPT2),
    "muddformer": plain(GPT2),
    "unet_skips": plain(GPT2),
    "value_residual": plain(GPT2),
    "svformer": plain(GPT2),
}

HIDDEN = 8 * round(D / 3)  # of a gated MLP
BASE = V * D + T * D + L * (12 * D * D + 9 * D)  # no norm anywhere
NORM, FINAL = 2 * D, 2 * D  # LayerNorm's gain and bias
# After block l, each of four ways (one after the last) has l + 1 weights, from a two-layer map.
MUDD = [D * n + n * n + n for n in [*[4 * (l + 1) for l in range(1, L)], L + 1]]
PRE = BASE + L * 2 * NORM + FINAL
SIZES = {
    "pre_ln": PRE,
    "pre_ln_xavier": PRE,
    "post_ln": BASE + L * 2 * NORM,
    "sandwich_ln": BASE + L * 4 * NORM + FINAL,
    "peri_ln": BASE + L * 4 * D + 2 * D,
    "gemma2": BASE + L * 4 * D + D,
    "olmo2": BASE + L * 4 * D + D,
    "swin_v2": BASE + L * (2 * NORM + H) + FINAL,
    "sub_ln": BASE + L * (3 * NORM + 2 * 4 * D) + FINAL,
    "normformer": BASE + L * (3 * NORM + 2 * 4 * D + H + D) + FINAL,
    "stream_norm": BASE + L * 2 * NORM + FINAL,
    "pre_post_ln": BASE + L * 4 * NORM,
    "b2t": BASE + L * 2 * NORM,
    "mix_ln": BASE + L * 2 * NORM + FINAL,
    "hybridnorm": BASE + L * (3 * D // H + D) + D,
    "hybridnorm_star": BASE + L * (3 * D // H + D) + D + D,
    "parallel_gptj": BASE + L * NORM + FINAL,
    "parallel_neox": BASE + L * 2 * NORM + FINAL,
    "dyt": BASE + L * 2 * (D + 1) + D + 1 + 1,
    "derf": BASE + L * 2 * (2 * D + 2) + 2 * D + 2 + 1,
    "scalenorm_fixnorm": BASE + L * 2 + 1,
    "albert": V * D + T * D + 12 * D * D + 9 * D + 3 * NORM,
    "universal": V * D + 12 * D * D + 9 * D + 2 * NORM,
    "summed_residual": BASE + FINAL,
    "normed_skip": BASE + L * NORM + FINAL,
    "normed_stream_mlp": BASE + L * 2 * NORM + FINAL,
    "deepnorm": BASE + L * 2 * NORM,
    "admin": BASE + L * (2 * NORM + 2 * D),
    "rezero": BASE + L,
    "skipinit": BASE + L * 2,
    "layerscale": BASE + L * (2 * NORM + 2 * D) + FINAL,
    "keel": BASE + L * 4 * D - D,
    "lns": BASE + L * 2 * NORM + FINAL,
    "gpas": BASE + L * (2 * NORM + 1) + FINAL,
    "prores": BASE + L * 2 * NORM + FINAL,
    "t_fixup": BASE,
    "fixup": BASE + L * 6 + 1,
    "ds_init": BASE + L * 2 * NORM,
    "scaled_init": BASE + L * 2 * NORM + FINAL,
    "completep": BASE + L * 2 * NORM + FINAL,
    "gtrxl": BASE + L * (2 * NORM + 2 * (6 * D * D + D)) + FINAL,
    "highway": BASE + L * 2 * (D * D + D) + FINAL,
    "x0_lambda": BASE + 2 * L,
    "laurel_rw": PRE + L * 4,
    "laurel_lr": PRE + L * 2 * 2 * 32 * D,
    "laurel_pa": PRE + L * 2 * 3,
    "ngpt": V * D
    + L * ((4 * D * D + 4 * D) + D + 3 * D * HIDDEN + 2 * HIDDEN + D + 2 * HIDDEN + 2 * D)
    + V,
    "ddl": BASE + L * 2 * (3 * D + 1) + D,
    "orthogonal_residual": PRE,
    "residual_dual": PRE,
    "siamesenorm": PRE + L * 4 * NORM,
    "hyper_connections": PRE + L * 2 * (4 * 6 + NORM + D * 5 + D + 2),
    "hyper_connections_static": PRE + L * 2 * 4 * 6,
    "frac_connections": PRE + L * 2 * (4 * 9 + D // 4 * (2 + 9) + 2),
    "mhc": PRE + L * 2 * (4 * D * (1 + 4 + 4 + 16) + 3 + 24),
    "mhc_lite": PRE + L * 2 * (4 * D * (1 + 4 + 4 + 24) + 3 + 32),
    "denseformer": PRE + L * (L + 3) // 2,
    "attention_residuals": BASE + L * 2 * D + D + (2 * L + 1) * 2 * D,
    "attention_residuals_block": BASE + L * 2 * D + D + (2 * L + 1) * 2 * D,
    "muddformer": PRE + L * 2 * NORM + sum(MUDD),
    "simplified_skipless": BASE - L * (2 * D * D + 2 * D) + L * (2 * D + 3 * H + 3) + D,
    "unet_skips": PRE + L // 2,
    "value_residual": PRE,
    "svformer": PRE - (L - 1) * (D * D + D),
}


@cache
def defined(name):
    sizes = {"n_layer": L, "n_embd": D, "n_positions": T, "vocab_size": V, "n_head": H}
    config = tiny(placement__preset=name, **{f"model__{k}": v for k, v in sizes.items()})
    return define_model(config.model, config.placement)


@cache
def initial(name):
    built = defined(name)
    return built, jax.device_get(built.init(jax.random.key(0)))


def stacks(built, params):
    return [params["blocks"][stack.name] for stack in built.spec.stacks]


def test_every_preset_has_expected_values():
    assert {*STDS, "simplified_skipless"} == set(SIZES) == set(PRESETS)


@pytest.mark.parametrize("name", [p for p in EVERY if "skipless" not in str(p)])
def test_initial_matrices_have_the_size_of_the_source(name):
    built, params = initial(name)
    block = 0 if name == "ds_init" else slice(None)
    cut = lambda *path: np.concatenate([_at(s, path)[block].ravel() for s in stacks(built, params)])
    kernels = [_at(s, ("attn", "sublayer", "qkv", "kernel"))[block] for s in stacks(built, params)]

    def qkv(i):  # (..., D, 3, H, K), or 2 instead of 3 if block 1's values are used
        return np.concatenate([k[..., i, :, :].ravel() for k in kernels if i < k.shape[-3]])

    got = (
        np.concatenate([qkv(0), qkv(1)]),
        qkv(2),
        cut("attn", "sublayer", "out", "kernel"),
        cut("mlp", "sublayer", "up", "kernel"),
        cut("mlp", "sublayer", "down", "kernel"),
        params["embedding"]["wte"],
    )
    for values, std in zip(got, STDS[name], strict=True):
        assert np.std(values) == pytest.approx(std, rel=0.05)
        assert abs(np.mean(values)) <= 0.05 * std


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def test_skipless_attention_is_initially_the_identity():
    built, params = initial("simplified_skipless")
    attn = params["blocks"]["all"]["attn"]["sublayer"]
    assert "out" not in attn and attn["qkv"]["kernel"].shape == (L, D, 2, H, D // H)
    assert (attn["qkv"]["kernel"][:, :, 0] == 0).all()
    assert attn["qkv"]["kernel"][:, :, 1].std() == pytest.approx(STD, rel=0.05)
    block = bind_unstacked(built, unstack_params(built, params, 0)).blocks[0]
    x = np.random.default_rng(0).standard_normal((2, 12, D)).astype(np.float32)
    got, _ = block.attn.sublayer(x, Context(np.arange(12)))
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_ds_init_shrinks_with_the_block_index():
    _, params = initial("ds_init")
    up = params["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"]
    want = [XAVIER_MLP / math.sqrt(l) for l in range(1, L + 1)]
    np.testing.assert_allclose(up.std((1, 2)), want, rtol=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_matches_the_formula(name):
    assert defined(name).n_params() == SIZES[name]


@pytest.mark.parametrize("name", PRESETS)
def test_axis_lengths_match_their_names(name):
    """A stack of layers has an additional leading axis."""
    hidden = HIDDEN if name == "ngpt" else 4 * D
    sizes = {"embed": D, "heads": H, "head_dim": D // H, "mlp": hidden, "position": T}
    built, seen = defined(name), set()
    infos = jax.tree.leaves(built.infos, is_leaf=is_info)
    for info, shape in zip(infos, jax.tree.leaves(built.shapes), strict=True):
        own = shape.shape[len(shape.shape) - len(info.axes) :]
        assert len(shape.shape) - len(info.axes) in (0, 1)
        for axis, size in zip(info.axes, own, strict=True):
            seen.add(axis)
            if axis == "vocab":
                assert size in (V, 264)  # logit factors, and padded
            elif axis == "qkv":
                assert size in (2, 3)
            elif axis in sizes:
                assert size == sizes[axis], (axis, shape)
    assert {"embed", "heads", "head_dim", "mlp", "vocab"} <= seen


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("swin_v2", "blocks.all.attn.out.gain", 0.0),
        ("swin_v2", "blocks.all.attn.out.bias", 0.0),
        ("swin_v2", "blocks.all.attn.sublayer.transform.cosine.logit_scale", math.log(10)),
        ("swin_v2", "ln_f.gain", 1.0),
        ("gemma2", "blocks.all.attn.pre.gain", 0.0),
        ("normformer", "blocks.all.attn.sublayer.heads.head_scale", 1.0),
        ("normformer", "blocks.all.connection.mlp.skip_scale.value", 1.0),
        ("rezero", "blocks.all.attn.branch_scale.value", 0.0),
        ("skipinit", "blocks.all.attn.branch_scale.value", 0.0),
        ("layerscale", "blocks.all.mlp.branch_scale.value", 0.1),
        ("gpas", "blocks.all.connection.gate", 0.0),
        ("gtrxl", "blocks.all.connection.attn.bias", 2.0),
        ("highway", "blocks.all.connection.mlp.bias", 2.0),
        ("x0_lambda", "blocks.cross_layer.x0.stream_L", 1.0),
        ("admin", "blocks.all.connection.mlp.skip_scale.value", 1.0),
        ("fixup", "blocks.all.mlp.branch_scale.value", 1.0),
        ("fixup", "blocks.all.mlp.sublayer.before.bias", 0.0),
        ("laurel_pa", "blocks.all.connection.mlp.weights", 0.0),
        ("ngpt", "blocks.all.connection.attn.rate", D**-0.5),
        ("ngpt", "blocks.all.attn.sublayer.transform.unit_qk.factor", D**-0.5),
        ("ngpt", "blocks.all.mlp.sublayer.up_scale", 1.0),
        ("ngpt", "logit_scale", D**-0.5),
        ("laurel_rw", "blocks.all.connection.attn.shares", 0.0),
        ("laurel_lr", "blocks.all.connection.attn.up", 0.0),
        ("hyper_connections", "blocks.all.connection.mlp.write", 1.0),
        ("hyper_connections", "blocks.all.connection.mlp.to_mix", 0.0),
        ("hyper_connections", "blocks.all.connection.mlp.mix_scale", 0.01),
        ("mhc", "blocks.all.connection.attn.scales", 0.01),
        ("attention_residuals", "blocks.adapter.attention.query", 0.0),
        ("unet_skips", "blocks.cross_layer.unet.weights", 1.0),
        ("x0_lambda", "blocks.cross_layer.x0.x0_L", 0.0),
        ("dyt", "blocks.all.attn.pre.alpha", 1.0),
        ("dyt", "embedding.embedding_multiplier.value", math.sqrt(D)),
        ("derf", "blocks.all.mlp.pre.shift", 0.0),
        ("scalenorm_fixnorm", "blocks.all.mlp.pre.gain", math.sqrt(D)),
    ],
)
def test_initial_constants_match_the_source(name, path, value):
    np.testing.assert_allclose(_at(initial(name)[1], path.split(".")), value, rtol=1e-6)


@pytest.mark.parametrize(("n_layer", "value"), [(18, 0.1), (24, 1e-5), (36, 1e-6)])
def test_layerscale_initial_value_depends_on_depth(n_layer, value):
    spec = parse_scale(PRESETS["layerscale"].branch_scale)
    assert spec.kind == "learned_vector"
    assert spec.first(Sizes(decoder(n_layer), D, STD).values(1)) == value


def test_presets_share_initial_values_of_common_parameters():
    """Two placements with the same seed have the same random draws, up to their scale."""
    one, other = (initial(name)[1]["blocks"]["all"] for name in ("pre_ln", "deepnorm"))
    for path in (("attn", "sublayer", "out", "kernel"), ("mlp", "sublayer", "down", "kernel")):
        a, b = _at(one, path), _at(other, path)
        np.testing.assert_allclose(a / a.std(), b / b.std(), rtol=1e-4)
