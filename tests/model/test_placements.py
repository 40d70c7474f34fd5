"""The axes: their effects, invalid values, and random combinations."""

import dataclasses
from collections import deque
from functools import cache
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gpt2_jax.config import Config, replace, resolve
from gpt2_jax.config.check import check
from gpt2_jax.errors import UserError
from gpt2_jax.model import residual
from gpt2_jax.model.data_dependent_init import data_dependent_init
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.residual.cross_layer import SKIPS
from gpt2_jax.nn.norm_types import NORM_TYPES
from gpt2_jax.placements import AXES, PRESETS
from gpt2_jax.placements.axes import GATED
from gpt2_jax.placements.expressions import Expression, pair, parse_expression, parse_scale, sides
from gpt2_jax.placements.registry import SUPPORTS
from gpt2_jax.placements.resolve import CROSS_LAYER, has_final_norm, stacks
from gpt2_jax.placements.towers import decoder
from gpt2_jax.placements.validate import find_fault
from tests.placements import FAMILIES
from tests.tools import noisy, run, tiny

TOKENS = np.random.default_rng(7).integers(0, 11, (3, 12))
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))

# -- expressions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(2*L)**0.25", 24**0.25),
        ("l**-0.5", 3**-0.5),
        ("minimum(t/(1000*l), 1)", 0.5),
        ("where(s <= 2, 1, S)", 24.0),
        ("where(l == 3, -d, 0)", -64.0),
        ("sqrt(log(2*L)) + exp(0) - floor(7/2)", np.sqrt(np.log(24)) - 2),
        ("l//2 + l%2 + std", 2.02),
        ("1e-4", 1e-4),
    ],
)
def test_expressions_have_the_expected_values(text, value):
    values = {"l": 3.0, "L": 12.0, "s": 5.0, "S": 24.0, "d": 64.0, "t": 1500.0, "std": 0.02}
    assert parse_expression(text)(values) == pytest.approx(value)
    traced = jax.jit(lambda v: parse_expression(text)(v, jnp))(
        {k: jnp.float32(x) for k, x in values.items()}
    )
    assert float(traced) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("l +", "'l +' is not arithmetic"),
        ("m*2", "'m' is not a known name; choose one of l, L, s, S, d, t, M, P, std"),
        ("sin(l)", "'sin' is not a known function; choose one of minimum"),
        ("__import__('os')", "'__import__' is not a known function"),
        ("l.real", "'l.real' is not allowed in an expression"),
        ("[1][0]", "is not allowed in an expression"),
        ("'a'", "is not allowed in an expression"),
        ("True", "True is not allowed in an expression"),
        ("1 < l < 2", "is not allowed in an expression"),
        ("lambda: 1", "is not allowed in an expression"),
    ],
)
def test_invalid_expression_is_refused(text, line):
    with pytest.raises(ValueError) as error:
        parse_expression(text)
    assert line in str(error.value)


def test_scales_and_pairs():
    assert parse_scale("learned_vector(l**-1)").kind == "learned_vector"
    assert parse_scale("learned_vector(l**-1)").first == Expression("l**-1")
    assert (
        parse_scale("2").kind == "constant"
        and parse_scale("1").is_one
        and not parse_scale("2").is_one
    )
    assert not parse_scale("learned_scalar(1)").is_one
    self_mlp, whole = ("attn", "mlp"), ("attn", "cross", "mlp")
    assert sides("a", self_mlp) == ("a", "a") and sides("a", whole) == ("a", "a", "a")
    assert sides("a | b", self_mlp) == ("a", "b") and sides("a | b", whole) == ("a", "a", "b")
    assert sides("a | b | c", self_mlp) == ("a", "c")
    assert sides("a | b | c", whole) == ("a", "b", "c")
    assert pair("a") == ("a", "a") and pair("a | b") == ("a", "b")
    with pytest.raises(ValueError, match="lacks its initial value"):
        parse_scale("learned_scalar")
    with pytest.raises(ValueError, match="must not depend on the step t"):
        parse_scale("learned_scalar(t)")


# -- presets, exceptions, stacks


def config_of(**changes):
    """Returns a tiny config with these fields of the model and axes of the placement."""
    return tiny(**{field(name): value for name, value in changes.items()})


def field(name):
    return f"placement.{name}" if name in {"preset", *AXES} else f"model.{name}"


def define(**changes):
    config = config_of(**changes)
    return define_model(config.model, config.placement)


def placement_of(**changes):
    return config_of(**changes).placement.resolve()


def test_every_connection_is_registered_and_declared():
    assert set(SUPPORTS) == set(residual.CONNECTIONS)


@pytest.mark.parametrize("name", SUPPORTS)
def test_every_connection_uses_what_it_declares(name):
    scales = dict.fromkeys(SUPPORTS[name].scales, "2")
    define(connection=name, norm_sites="+".join(SUPPORTS[name].sites), **scales)


def test_every_skip_across_layers_has_a_class():
    assert set(SKIPS) == set(CROSS_LAYER)


def test_every_norm_of_the_config_is_registered():
    from gpt2_jax.nn.activations import GATED as GATES
    from gpt2_jax.nn.norms import NORMS as CLASSES

    assert {*CLASSES, "none"} == {*NORM_TYPES}
    assert {*GATES} == {*GATED}


def test_override_applies_to_the_layer_overrides_of_a_preset():
    mixed = placement_of(preset="mix_ln", n_layer=8)
    assert mixed.layer_overrides == "l <= floor(L/4): norm_sites=post"
    assert placement_of(preset="mix_ln", n_layer=8, norm_sites="out").layer_overrides == ""
    kept = placement_of(preset="keel", n_layer=8, skip_scale="2")
    assert kept.layer_overrides == "l == 1: norm_sites=pre | pre+post | pre+post"
    own = placement_of(preset="keel", norm_sites="post", layer_overrides="l == 2: norm_sites=pre")
    assert own.layer_overrides == "l == 2: norm_sites=pre"


def test_equal_blocks_share_a_stack():
    def cut(**changes):
        found = stacks(placement_of(**changes), decoder(changes["n_layer"]))
        return [(s.start, s.stop, s.name) for s in found]

    assert cut(n_layer=12) == [(0, 12, "all")]
    assert cut(preset="mix_ln", n_layer=12) == [(0, 3, "l1_3"), (3, 12, "l4_12")]
    assert cut(preset="keel", n_layer=6) == [(0, 1, "l1_1"), (1, 6, "l2_6")]
    middle = cut(n_layer=6, layer_overrides="l == 3: norm_sites=post, skip_scale=minimum(l, 2)")
    assert [s[:2] for s in middle] == [(0, 2), (2, 3), (3, 6)]
    assert cut(n_layer=6, value_residual="half") == [(0, 1, "l1_1"), (1, 6, "l2_6")]


# -- each axis has an effect

# Values that no preset has, with other changes that they need to have an effect.
OTHER = {
    "connection": ["parallel", "parallel_shared", "b2t", "gpas", "gru", "highway", "plain"],
    "norm_sites": [
        "pre",
        "post",
        "pre+qkv | pre+inner",
        "stream",
        "skip",
        "out",
        "qk_full | inner",
    ],
    "norm_type": [n for n in NORM_TYPES if n != "none"],
    "norm_eps": [1.0],
    "norm_bias": [False, True],
    "norm_gain": ["0.7*l**-0.5"],
    "norm_alpha": ["0.3"],
    "embedding_norm": [True, False],
    "final_norm": ["no", "yes"],
    "skip_scale": ["0.9", "learned_vector(0.5)", "learned_block(0.8)", "l**-0.5 | S**-0.1"],
    "branch_scale": ["L**-1", "learned_scalar(0.1)", "minimum(t/1000, 1)"],
    "input_scale": ["l**-0.5 | 0.5", "learned_vector(1)"],
    "drop_path": ["0.4*l/L"],
    "gate_bias": [0.5],
    "layer_overrides": ["l == 1: norm_sites=out", "l > 1: branch_scale=0.3, skip_scale=0.9"],
    "init": ["normal", "xavier", "small"],
    "residual_init": ["0.3*l**-0.5"],
    "value_init": ["0.31*l"],
    "query_init": ["0.32"],
    "key_init": ["0.34"],
    "shaped_attention": [True, False],
    "identity_values": [True, False],
    "embedding_std": ["0.33*d**-0.5"],
    "embedding_multiplier": ["0.9*d**0.5", "learned_vector(3)"],
    "multiplier_target": ["sum", "tokens"],
    "fixnorm": [True, False],
    "positions": ["learned", "sinusoidal", "sinusoidal_halves", "rotary", "none"],
    "positions_at": ["mlp", "block", "embedding"],
    "activation": ["gelu_new", "gelu", "relu", "relu2", "silu", "tanh", "swiglu"],
    "data_dependent_init": [True, False],
    "unit_weights": [True, False],
    "hidden_scale": [True, False],
    "logit_scale": [True, False],
    "scalar_bias": [True, False],
    "head_scale": [True, False],
    "value_residual": ["half", "learned", "first"],
    "cross_layer": ["x0", "unet", "backout", "unet+x0+backout", "dense"],
    "x0_scales": ["1.1 | 0.2/l"],
    "share_blocks": [1],
    "parametrization": ["completep", "depth_mup", "standard"],
    "depth_groups": [2],
    "n_streams": [2],
    "rank": [3],
    "base_n_layer": [1],
    "base_n_embd": [8],
}


@cache
def outcome(changes):
    """Returns initial parameters, and the output of a training forward pass with noisy ones."""
    built = define(**dict(changes), n_inner=24)
    params = jax.device_get(data_dependent_init(built, built.init(jax.random.key(0)), TOKENS))
    forward = jax.jit(lambda p: built.bind(p)(TOKENS, KEYS, 700)[..., :11])
    # Much noise, so that activations leave the linear range of nonlinearities.
    return params, np.asarray(forward(noisy(params, 0.3)))


def same(one, other):
    (p, y), (q, z) = one, other
    if jax.tree.map(np.shape, p) != jax.tree.map(np.shape, q):
        return False
    equal = all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), p, q)))
    return equal and np.allclose(y, z, atol=1e-6)


def meant(config):
    """Returns the meaning of a config; `final_norm=auto` means one of the other two values."""
    placement = config.placement.resolve()
    ends = "yes" if has_final_norm(placement, config.model.n_layer) else "no"
    return dataclasses.replace(placement, final_norm=ends)


def variations(name, axis):
    """Returns changes of one axis of a preset that are valid and differ from the preset."""
    base = {"preset": name, "n_layer": 4, "unroll": False}
    own = config_of(**base)
    for value in OTHER[axis]:
        changes = base | {axis: value}
        try:
            other = config_of(**changes)
        except UserError:
            continue
        if meant(other) != meant(own):
            yield tuple(sorted(base.items())), tuple(sorted(changes.items()))


def test_every_axis_has_alternative_values():
    assert set(OTHER) == set(AXES)


# Presets on which an axis has an effect, other than GPT-2.
ACTS_ON = {
    "norm_alpha": "dyt",
    "gate_bias": "gtrxl",
    "x0_scales": "x0_lambda",
    "multiplier_target": "dyt",
    "depth_groups": "attention_residuals",
    "n_streams": "hyper_connections",
    "rank": "laurel_lr",
    "base_n_layer": "completep",
    "base_n_embd": "completep",
    "data_dependent_init": "admin",
}


@pytest.mark.parametrize("axis", AXES)
def test_changing_an_axis_changes_the_output_or_initial_values(axis):
    _assert_each_acts([next(variations(ACTS_ON.get(axis, "pre_ln"), axis))])


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_each_value_of_an_axis_changes_the_output_or_initial_values(axis):
    _assert_each_acts(list(variations(ACTS_ON.get(axis, "pre_ln"), axis)))


@pytest.mark.slow
@pytest.mark.parametrize("connection", SUPPORTS)
def test_changing_any_axis_with_any_connection_changes_something(connection):
    """In up to three presets that accept the change; each axis starts with another preset."""
    names = [name for name, preset in PRESETS.items() if preset.connection == connection]
    for i, axis in enumerate(AXES):
        order = deque(names)
        order.rotate(-i)
        firsts = (next(variations(name, axis), None) for name in order)
        _assert_each_acts(list(islice(filter(None, firsts), 3)))


def _assert_each_acts(pairs):
    for base, changed in pairs:
        assert not same(outcome(base), outcome(changed)), changed


def test_equal_configs_have_equal_outcomes():
    """Otherwise the differences above would not be due to the axis."""
    changes = (("preset", "deepnorm"), ("unroll", False))
    first = outcome(changes)
    outcome.cache_clear()
    assert same(first, outcome(changes))


# -- invalid placements


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"norm_sites": "before"},
            "norm_sites='before': 'before' is not a norm site of attention; choose one of stream",
        ),
        ({"norm_sites": "pre | qk"}, "norm_sites='pre | qk': 'qk' is not a norm site of the MLP"),
        ({"norm_sites": "pre|out|a|b"}, "norm_sites='pre|out|a|b' has more than two bars"),
        ({"norm_sites": "pre|out|post"}, "has a value for cross-attention, which model.arch"),
        ({"norm_sites": "qk+qkv"}, "choose one of qk, qk_full, qkv, cosine"),
        ({"preset": "b2t", "norm_sites": "pre"}, "connection=b2t needs 'post' in all sublayers"),
        ({"preset": "gtrxl", "norm_sites": "post"}, "connection=gru does not support 'post'"),
        (
            {"preset": "b2t", "skip_scale": "2"},
            "skip_scale='2' is not supported by connection=b2t",
        ),
        (
            {"preset": "parallel_neox", "norm_sites": "post | pre"},
            "connection=parallel has one residual add per block",
        ),
        ({"connection": "plane"}, "connection='plane' is unknown; choose one of plain, parallel"),
        ({"gate_bias": 1.0}, "gate_bias=1.0 is not supported by connection=plain"),
        (
            {"norm_type": "none"},
            "norm_type=none, but norm_sites='pre': choose a type, or set norm_sites=none",
        ),
        ({"preset": "rezero", "norm_sites": "pre"}, "norm_type=none, but norm_sites='pre'"),
        (
            {"preset": "rezero", "final_norm": "yes"},
            "norm_type=none excludes embedding_norm",
        ),
        (
            {"norm_type": "rmsnorm", "norm_bias": True},
            "norm_bias=True is not used by norm_type=rmsnorm",
        ),
        ({"norm_alpha": "1"}, "norm_alpha='1' is not used by norm_type=layernorm"),
        ({"norm_type": "l2", "norm_gain": "2"}, "norm_gain='2' has no effect"),
        ({"skip_scale": "k"}, "skip_scale='k': 'k' is not a known name"),
        ({"skip_scale": "1/(l-1)"}, "it has no finite value in block 1 of 2"),
        ({"skip_scale": "1 | 2 | 3 | 4"}, "'1 | 2 | 3 | 4' has more than two bars"),
        (
            {"skip_scale": "1 | 2 | 3"},
            "skip_scale='1 | 2 | 3' has a value for cross-attention, which "
            "model.architecture=decoder lacks; remove it",
        ),
        ({"cross_layer": "x0", "x0_scales": "1 | 2 | 3"}, "'1 | 2 | 3' has more than one bar"),
        ({"branch_scale": "learned_block(1) | 1"}, "learned_block is one factor for all"),
        ({"query_init": "1 | 2"}, "query_init='1 | 2': this axis has one value"),
        ({"residual_init": "learned_scalar(1)"}, "'learned_scalar' is not a known function"),
        ({"residual_init": "t"}, "residual_init='t': t cannot be used here"),
        ({"embedding_std": "l"}, "embedding_std='l': l cannot be used here"),
        ({"embedding_std": "-1"}, "it is -1 in block 1 of 2; it must not be negative"),
        ({"drop_path": "1"}, "drop_path='1': it is 1 in block 1 of 2"),
        ({"layer_overrides": "norm_sites=post"}, "is not a `condition on l and L: axis=value"),
        (
            {"layer_overrides": "l == 1: norm_type=l2"},
            "'norm_type=l2' does not set one of norm_sites, skip_scale",
        ),
        ({"layer_overrides": "L/(l-1) > 1: norm_sites=post"}, "'L/(l-1) > 1' has no finite value"),
        (
            {"layer_overrides": "l == 9: norm_sites=post"},
            "l == 9 holds in none of 2 blocks; raise model.n_layer",
        ),
        ({"preset": "mix_ln"}, "l <= floor(L/4) holds in none of 2 blocks; raise model.n_layer"),
        ({"layer_overrides": "l == 1: norm_sites=here"}, "'here' is not a norm site of attention"),
        (
            {"positions": "rotary", "positions_at": "mlp"},
            "positions_at=mlp has no effect: positions=rotary",
        ),
        (
            {"preset": "b2t", "positions_at": "mlp"},
            "positions_at=mlp is not supported by connection",
        ),
        (
            {"preset": "ngpt", "branch_scale": "2"},
            "branch_scale='2' is not supported by connection=slerp",
        ),
        (
            {"preset": "admin", "layer_overrides": "l == 1: skip_scale=1"},
            "data_dependent_init=True needs a learned skip_scale",
        ),
        (
            {"multiplier_target": "sum"},
            "multiplier_target=sum has no effect",
        ),
        ({"fixnorm": True, "embedding_std": "1"}, "embedding_std has no effect: fixnorm=True"),
        ({"cross_layer": "x1"}, "cross_layer='x1': 'x1' is unknown; choose one of unet, x0, dense"),
        ({"x0_scales": "2 | 1"}, "x0_scales='2 | 1' needs cross_layer=x0"),
        (
            {"cross_layer": "unet", "n_layer": 3},
            "cross_layer=unet pairs blocks: model.n_layer=3 must be even",
        ),
        ({"share_blocks": 3, "n_layer": 4}, "share_blocks=3 must divide model.n_layer=4"),
        (
            {"preset": "muddformer", "share_blocks": 1},
            "share_blocks=1 is not supported by connection=muddformer",
        ),
        (
            {"preset": "keel", "share_blocks": 1},
            "share_blocks=1 needs value_residual=none and empty layer_overrides",
        ),
        ({"value_residual": "half", "n_layer": 1}, "value_residual=half needs a second block"),
        ({"base_n_embd": 8}, "base_n_embd=8 has no effect with parametrization=standard"),
        ({"norm_type": "batchnorm"}, "norm_type='batchnorm' is unknown; choose one of"),
        (
            {"preset": "attention_residuals", "depth_groups": 3},
            "depth_groups=3 is impossible with the 4 sublayers: groups of 2 make 2; set it to 2",
        ),
        (
            {"preset": "mhc_lite", "n_streams": 7},
            "n_streams=7: connection=mhc_lite supports at most 6",
        ),
        (
            {"identity_values": True, "value_init": "2 | 1"},
            "value_init='2 | 1': identity_values=True removes W_V",
        ),
        (
            {"preset": "ngpt", "parametrization": "completep"},
            "parametrization=completep: connection=slerp does not scale sublayer outputs",
        ),
        (
            {"norm_sites": "pre+cosine | pre", "scale_attn_weights": False},
            "'pre+cosine | pre' sets the scale of the scores: model.scale_attn_weights=False",
        ),
        (
            {"preset": "ngpt", "scale_attn_by_inverse_layer_idx": True},
            "model.scale_attn_by_inverse_layer_idx=True has no effect",
        ),
        (
            {"preset": "ngpt", "residual_init": "1"},
            "residual_init='1' has no effect: unit_weights=True",
        ),
        (
            {"preset": "ngpt", "final_norm": "yes"},
            "final_norm=yes has no effect: connection=slerp ends in a stream of length 1",
        ),
        (
            {"preset": "ngpt", "embedding_norm": True},
            "embedding_norm=True has no effect: connection=slerp",
        ),
        (
            {"preset": "ngpt", "embedding_multiplier": "3"},
            "embedding_multiplier='3' has no effect: connection=slerp",
        ),
        (
            {"preset": "admin", "skip_scale": "learned_vector(0.5)"},
            "data_dependent_init=True replaces the initial value in skip_scale=",
        ),
        ({"preset": "ngpt", "norm_type": "layernorm"}, "norm_type=layernorm has no effect"),
        (
            {"preset": "post_ln", "init_std": 0.05},
            "do not use std: model.init_std=0.05 has no effect",
        ),
    ],
)
def test_invalid_placement_is_a_one_line_error(changes, line):
    with pytest.raises(UserError) as error:
        config_of(**changes)
    assert line in str(error.value)
    assert str(error.value).startswith("placement.") and "\n" not in str(error.value)


def test_values_of_block_1_are_normalized_once():
    """With norms on q, k and v, blocks that use block 1's values have no gain for them."""
    changes = {"norm_sites": "pre+qkv | pre", "norm_type": "rmsnorm", "value_residual": "first"}
    built = define(n_layer=3, **changes)
    shaped = [
        built.shapes["blocks"][name]["attn"]["sublayer"]["transform"] for name in built_names(built)
    ]
    assert [sorted(part) for part in shaped] == [
        ["k_norm", "q_norm", "v_norm"],
        ["k_norm", "q_norm"],
    ]


def built_names(built):
    return [stack.name for stack in built.spec.stacks]


def test_step_dependent_placement_cannot_start_from_pretrained_weights():
    fields = {"placement__preset": "prores", "train__init_from": "runs/a"}
    with pytest.raises(UserError, match=r"^placement\.branch_scale depends on the step t, which"):
        tiny(**fields)
    assert tiny(**fields, placement__branch_scale="1").placement.branch_scale == "1"


def test_path_that_is_always_dropped_has_finite_gradients():
    """An expression in t may reach 1."""
    built = define(drop_path="minimum(t/100, 1)")
    params = noisy(built.init(jax.random.key(0)))
    loss = lambda p: jnp.square(built.bind(p)(TOKENS, KEYS, 100)[..., :11]).mean()
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_muon_does_not_support_completep():
    with pytest.raises(UserError, match=r"set optimizer\.name=adamw"):
        tiny(placement__preset="completep", optimizer__name="muon")


def test_missing_step_is_an_error():
    built = define(preset="prores")
    params = built.init(jax.random.key(0))
    with pytest.raises(ValueError, match="needs the step"):
        built.bind(params)(TOKENS)


def test_completep_at_its_base_is_pre_ln_with_scores_divided_by_the_head_width():
    sizes = {"n_layer": 2, "n_embd": 256, "n_head": 2}
    base, other = (define(preset=name, **sizes) for name in ("pre_ln", "completep"))
    params = other.init(jax.random.key(0))
    qkv = params["blocks"]["all"]["attn"]["sublayer"]["qkv"]
    shrunk = jax.tree.map(lambda x: x, params)
    head_width = 256 // 2
    shrunk["blocks"]["all"]["attn"]["sublayer"]["qkv"] = {
        "kernel": qkv["kernel"].at[:, :, 0].divide(head_width**0.5),
        "bias": qkv["bias"].at[:, 0].divide(head_width**0.5),
    }
    want = other.bind(params)(TOKENS)
    plain, same = base.bind(params)(TOKENS), base.bind(shrunk)(TOKENS)
    assert abs(plain - want).max() > 1e-3 * abs(want[..., :11]).max()
    np.testing.assert_allclose(same[..., :11], want[..., :11], atol=1e-5)


# -- random combinations

TEXTS = {name: st.sampled_from(values) for name, values in OTHER.items()}


@st.composite
def draws(draw):
    """Draws a preset with up to five axes changed, and a depth."""
    changes = {
        "preset": draw(st.sampled_from(list(PRESETS))),
        "n_layer": draw(st.integers(1, 5)),
    }
    axes = draw(st.lists(st.sampled_from(list(AXES)), max_size=5, unique=True))
    return changes | {axis: draw(TEXTS[axis]) for axis in axes}


def accepted(changes):
    """Returns the config of a draw, None if it is refused with a one-line error."""
    sizes = {"n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 11, "unroll": False}
    given = {field(name): value for name, value in (sizes | changes).items()}
    config = replace(Config(), given | {"data.seq_len": 12})
    try:
        check(config)
    except UserError as error:
        assert str(error).startswith("placement.") and "\n" not in str(error)
        return None
    return resolve(config, 11)


def assert_sound(changes):
    config = accepted(changes)
    if config is None:
        return
    assert find_fault(config.model, config.placement.preset, config.placement.overrides) is None
    built = define_model(config.model, config.placement)
    params = noisy(jax.device_get(built.init(jax.random.key(0))))
    bound = built.bind(params)
    logits = bound(TOKENS, step=700)
    assert logits.shape == (3, 12, 128) and logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    later = bound(np.where(np.arange(12) == 7, (TOKENS + 1) % 11, TOKENS), step=700)
    np.testing.assert_allclose(later[:, :7], logits[:, :7], rtol=1e-4, atol=1e-4)
    assert np.abs(later[:, 7] - logits[:, 7]).max() > 1e-4


HOW = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],
}


@settings(max_examples=12, **HOW)
@given(draws())
def test_random_combination_is_sound_or_refused(changes):
    assert_sound(changes)


@pytest.mark.slow
@settings(max_examples=250, **HOW)
@given(draws())
def test_many_random_combinations_are_sound_or_refused(changes):
    assert_sound(changes)


# -- the catalogue


def catalogue(tmp, *flags):
    return run("-m", "gpt2_jax", "placements", *flags, tmp=tmp)


def test_list_has_one_line_per_preset(tmp_path):
    lines = catalogue(tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    (deepnorm,) = (line.split(maxsplit=1)[1] for line in lines if line.startswith("deepnorm "))
    assert deepnorm.startswith("x' = N(a x + F(x)), a = (2 L)^1/4")


def test_show_describes_one_preset(tmp_path):
    shown = catalogue(tmp_path, "--show=keel").stdout
    for part in ("x' = N2(S x + F(N1(x)))", "Keel, 2601.19895", "skip_scale=where(s <= S/L, 1, S)"):
        assert part in shown
    assert "final norm  no" in shown
    assert "124,437,504 at 124M (-2,304 compared with pre_ln)" in shown
    done = catalogue(tmp_path, "--show=kel")
    assert done.returncode == 2
    assert done.stderr == "error: --show=kel is not a known preset; did you mean 'keel'?\n"
    assert (
        ", or add the --module that registers it\n"
        in catalogue(tmp_path, "--show=tanh_gate").stderr
    )


def test_every_preset_has_a_citation():
    for name, placement in PRESETS.items():
        assert placement.equation and placement.citation, name
    assert {*FAMILIES} <= {*PRESETS}
