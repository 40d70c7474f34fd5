"""The axes: what each does, what is refused, and random combinations of them."""

import dataclasses
import subprocess
import sys
from collections import deque
from functools import cache
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gpt2_jax import config as configs
from gpt2_jax.config_check import check
from gpt2_jax.errors import UserError
from gpt2_jax.model import residual
from gpt2_jax.model.placements import AXES, PRESETS
from gpt2_jax.model.placements.axes import CONNECTIONS, GATED, NORMS
from gpt2_jax.model.placements.resolve import has_final_norm, resolve, segments
from gpt2_jax.model.placements.rules import Rule, pair, rule, scale
from gpt2_jax.model.placements.validity import find_fault
from gpt2_jax.model.profile import profile
from gpt2_jax.model.structure import structure
from tests.placements import FAMILIES
from tests.tools import ROOT, noisy, tiny

TOKENS = np.random.default_rng(7).integers(0, 11, (3, 12))
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))

# -- rules


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
def test_a_rule_has_the_value_it_spells(text, value):
    values = {"l": 3.0, "L": 12.0, "s": 5.0, "S": 24.0, "d": 64.0, "t": 1500.0, "std": 0.02}
    assert rule(text)(values) == pytest.approx(value)
    traced = jax.jit(lambda v: rule(text)(v, jnp))({k: jnp.float32(x) for k, x in values.items()})
    assert float(traced) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("l +", "'l +' is no arithmetic"),
        ("m*2", "'m' is no name of a rule; there are l, L, s, S, d, t, std"),
        ("sin(l)", "'sin' is no function; there are minimum"),
        ("__import__('os')", "'__import__' is no function"),
        ("l.real", "'l.real' has no place in a rule"),
        ("[1][0]", "has no place in a rule"),
        ("'a'", "has no place in a rule"),
        ("True", "True has no place in a rule"),
        ("1 < l < 2", "has no place in a rule"),
        ("lambda: 1", "has no place in a rule"),
    ],
)
def test_what_is_no_rule_is_said(text, line):
    with pytest.raises(ValueError) as error:
        rule(text)
    assert line in str(error.value)


def test_scales_and_pairs():
    assert scale("learned_vector(l**-1)").kind == "learned_vector"
    assert scale("learned_vector(l**-1)").rule == Rule("l**-1")
    assert scale("2").kind == "constant" and scale("1").is_one and not scale("2").is_one
    assert not scale("learned_scalar(1)").is_one
    assert pair("a") == ("a", "a") and pair("a | b") == ("a", "b")
    with pytest.raises(ValueError, match="lacks the value"):
        scale("learned_scalar")
    with pytest.raises(ValueError, match="starts from a value in t"):
        scale("learned_scalar(t)")


# -- presets, exceptions, segments


def model(**changes):
    return tiny(**{f"model__{name}": value for name, value in changes.items()}).model


def test_every_connection_is_there_and_declared():
    assert set(CONNECTIONS) == set(residual.CONNECTIONS)


def test_the_norms_are_those_of_the_config():
    from gpt2_jax.model.norm import NORMS as CLASSES
    from gpt2_jax.model.parts import GATED as GATES

    assert {*CLASSES, "none"} == {*NORMS}
    assert {*GATES} == {*GATED}


def test_an_override_reaches_the_exceptions_of_a_preset():
    assert resolve(model(placement="mix_ln", n_layer=8)).exceptions == "l <= floor(L/4): norms=post"
    assert resolve(model(placement="mix_ln", n_layer=8, norms="out")).exceptions == ""
    kept = resolve(model(placement="keel", n_layer=8, skip_scale="2"))
    assert kept.exceptions == "l == 1: norms=pre | pre+post"
    said = model(placement="keel", norms="post", exceptions="l == 2: norms=pre")
    assert resolve(said).exceptions == "l == 2: norms=pre"


def test_blocks_that_are_alike_stand_in_one_segment():
    def cut(**changes):
        config = model(**changes)
        return [(s.start, s.stop, s.name) for s in segments(resolve(config), config.n_layer)]

    assert cut(n_layer=12) == [(0, 12, "blocks")]
    assert cut(placement="mix_ln", n_layer=12) == [(0, 3, "blocks_1_3"), (3, 12, "blocks_4_12")]
    assert cut(placement="keel", n_layer=6) == [(0, 1, "blocks_1_1"), (1, 6, "blocks_2_6")]
    middle = cut(n_layer=6, exceptions="l == 3: norms=post, skip_scale=minimum(l, 2)")
    assert [s[:2] for s in middle] == [(0, 2), (2, 3), (3, 6)]
    assert cut(n_layer=6, values="half") == [(0, 1, "blocks_1_1"), (1, 6, "blocks_2_6")]


# -- each axis does something

# Values unlike those of any preset, with what they need to have an effect.
OTHER = {
    "connection": ["parallel", "parallel_shared", "b2t", "gpas", "gru", "highway", "plain"],
    "norms": ["pre", "post", "pre+qkv | pre+inner", "stream", "skip", "out", "qk_full | inner"],
    "norm": [n for n in NORMS if n != "none"],
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
    "exceptions": ["l == 1: norms=out", "l > 1: branch_scale=0.3, skip_scale=0.9"],
    "init": ["normal", "xavier", "small"],
    "residual_init": ["0.3*l**-0.5"],
    "value_init": ["0.31*l"],
    "query_init": ["0.32"],
    "key_init": ["0.34"],
    "shaped_attention": [True, False],
    "identity_values": [True, False],
    "embedding_std": ["0.33*d**-0.5"],
    "embedding_multiplier": ["0.9*d**0.5", "learned_vector(3)"],
    "multiplied": ["sum", "tokens"],
    "fixnorm": [True, False],
    "positions": ["learned", "sinusoidal", "rotary", "none"],
    "positions_at": ["mlp", "block", "embedding"],
    "activation": ["gelu_new", "gelu", "relu", "relu2", "silu", "tanh", "swiglu"],
    "profiled": [True, False],
    "unit_weights": [True, False],
    "hidden_scale": [True, False],
    "logit_scale": [True, False],
    "scalar_bias": [True, False],
    "head_scale": [True, False],
    "values": ["half", "learned", "first"],
    "across": ["x0", "unet", "backout", "unet+x0+backout", "dense"],
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
    """Initial parameters, and a training forward pass with noise on them."""
    built = structure(model(**dict(changes), n_inner=24))
    params = jax.device_get(profile(built, built.init(jax.random.key(0)), TOKENS))
    forward = jax.jit(lambda p: built.bind(p)(TOKENS, KEYS, 700)[..., :11])
    # Much noise, so that activations leave the straight part of what they go through.
    return params, np.asarray(forward(noisy(params, 0.3)))


def same(one, other):
    (p, y), (q, z) = one, other
    if jax.tree.map(np.shape, p) != jax.tree.map(np.shape, q):
        return False
    equal = all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), p, q)))
    return equal and np.allclose(y, z, atol=1e-6)


def meant(config):
    """What a config says of blocks and ends; `final_norm=auto` is one of the two others."""
    placement = resolve(config)
    ends = "yes" if has_final_norm(placement, config.n_layer) else "no"
    return dataclasses.replace(placement, final_norm=ends)


def variations(name, axis):
    """Changes of one axis of a preset that the config accepts and that are none of its own."""
    base = {"placement": name, "n_layer": 4, "unroll": False}
    own = model(**base)
    for value in OTHER[axis]:
        changes = base | {axis: value}
        try:
            other = model(**changes)
        except UserError:
            continue
        if meant(other) != meant(own):
            yield tuple(sorted(base.items())), tuple(sorted(changes.items()))


def test_every_axis_has_other_values():
    assert set(OTHER) == set(AXES)


# Where an axis acts, besides on GPT-2.
ACTS_ON = {
    "norm_alpha": "dyt",
    "gate_bias": "gtrxl",
    "x0_scales": "x0_lambda",
    "multiplied": "dyt",
    "depth_groups": "attention_residuals",
    "n_streams": "hyper_connections",
    "rank": "laurel_lr",
    "base_n_layer": "completep",
    "base_n_embd": "completep",
    "profiled": "admin",
}


@pytest.mark.parametrize("axis", AXES)
def test_changing_an_axis_changes_the_output_or_the_start(axis):
    pairs = list(variations(ACTS_ON.get(axis, "pre_ln"), axis))
    assert pairs
    _assert_each_acts(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_changing_any_axis_with_any_connection_changes_something(connection):
    """In up to three presets that accept the change; each axis begins with another preset."""
    names = [name for name, preset in PRESETS.items() if preset.connection == connection]
    for i, axis in enumerate(AXES):
        order = deque(names)
        order.rotate(-i)
        firsts = (next(variations(name, axis), None) for name in order)
        _assert_each_acts(list(islice(filter(None, firsts), 3)))


def _assert_each_acts(pairs):
    for base, changed in pairs:
        assert not same(outcome(base), outcome(changed)), changed


def test_the_same_config_has_the_same_outcome():
    """So that a difference above is that of the axis."""
    changes = (("placement", "deepnorm"), ("unroll", False))
    first = outcome(changes)
    outcome.cache_clear()
    assert same(first, outcome(changes))


# -- what makes no sense


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"norms": "before"}, "model.norms='before': 'before' is no site of attention: stream"),
        ({"norms": "pre | qk"}, "model.norms='pre | qk': 'qk' is no site of the MLP"),
        ({"norms": "pre|out|post"}, "model.norms='pre|out|post' has more than one bar"),
        ({"norms": "qk+qkv"}, "choose one of qk, qk_full, qkv, cosine"),
        ({"placement": "b2t", "norms": "pre"}, "connection=b2t needs 'post' in both sublayers"),
        ({"placement": "gtrxl", "norms": "post"}, "connection=gru has no place for 'post'"),
        (
            {"placement": "b2t", "skip_scale": "2"},
            "model.skip_scale='2' has no place in connection=b2t",
        ),
        (
            {"placement": "parallel_neox", "norms": "post | pre"},
            "connection=parallel meets the stream once; drop the bar",
        ),
        ({"connection": "plane"}, "model.connection='plane' is unknown; there are plain, parallel"),
        ({"gate_bias": 1.0}, "model.gate_bias=1.0 has no place in connection=plain"),
        (
            {"norm": "none"},
            "model.norms='pre', but norm=none: choose a kind of norm, or norms=none",
        ),
        ({"placement": "rezero", "norms": "pre"}, "model.norms='pre', but norm=none: choose"),
        (
            {"placement": "rezero", "final_norm": "yes"},
            "norm=none leaves no norm for embedding_norm",
        ),
        (
            {"norm": "rmsnorm", "norm_bias": True},
            "model.norm_bias=True has no place in norm=rmsnorm",
        ),
        ({"norm_alpha": "1"}, "model.norm_alpha='1' has no place in norm=layernorm"),
        ({"norm": "l2", "norm_gain": "2"}, "model.norm_gain='2' has nothing to act on"),
        ({"skip_scale": "k"}, "model.skip_scale='k': 'k' is no name of a rule"),
        ({"skip_scale": "1/(l-1)"}, "it has no finite value in block 1 of 2"),
        ({"skip_scale": "1 | 2 | 3"}, "'1 | 2 | 3' has more than one bar"),
        ({"branch_scale": "learned_block(1) | 1"}, "learned_block is one factor for both"),
        ({"query_init": "1 | 2"}, "model.query_init='1 | 2': it has no two sides"),
        ({"residual_init": "learned_scalar(1)"}, "'learned_scalar' is no function"),
        ({"residual_init": "t"}, "model.residual_init='t': t has no meaning here"),
        ({"embedding_std": "l"}, "model.embedding_std='l': l has no meaning here"),
        ({"embedding_std": "-1"}, "it is -1 in block 1 of 2, and must not be negative"),
        ({"drop_path": "1"}, "model.drop_path='1': it is 1 in block 1 of 2"),
        ({"exceptions": "norms=post"}, "is no `condition on l and L: axis=value"),
        ({"exceptions": "l == 1: norm=l2"}, "'norm=l2' changes none of norms, skip_scale"),
        ({"exceptions": "L/(l-1) > 1: norms=post"}, "'L/(l-1) > 1' has no finite value"),
        ({"exceptions": "l == 9: norms=post"}, "none of 2 blocks has l == 9; raise n_layer"),
        ({"placement": "mix_ln"}, "none of 2 blocks has l <= floor(L/4); raise n_layer"),
        ({"exceptions": "l == 1: norms=here"}, "'here' is no site of attention"),
        (
            {"positions": "rotary", "positions_at": "mlp"},
            "has nothing to add with positions=rotary",
        ),
        (
            {"placement": "b2t", "positions_at": "mlp"},
            "positions_at=mlp has no place in connection",
        ),
        (
            {"placement": "ngpt", "branch_scale": "2"},
            "model.branch_scale='2' has no place in connection=slerp",
        ),
        (
            {"placement": "admin", "exceptions": "l == 1: skip_scale=1"},
            "model.profiled=True needs connection=plain and a learned skip_scale",
        ),
        ({"multiplied": "sum"}, "model.multiplied=sum has nothing to multiply by"),
        ({"fixnorm": True, "embedding_std": "1"}, "model.embedding_std has no effect with fixnorm"),
        ({"across": "x1"}, "model.across='x1': 'x1' is unknown; there are x0, unet, dense"),
        ({"x0_scales": "2 | 1"}, "model.x0_scales='2 | 1' needs across=x0"),
        ({"across": "unet", "n_layer": 3}, "across=unet pairs blocks: n_layer=3 must be even"),
        ({"share_blocks": 3, "n_layer": 4}, "model.share_blocks=3 must divide n_layer=4"),
        (
            {"placement": "keel", "share_blocks": 1},
            "model.share_blocks=1 needs blocks that are alike",
        ),
        ({"values": "half", "n_layer": 1}, "model.values=half needs a second block"),
        ({"base_n_embd": 8}, "model.base_n_embd=8 has no effect with parametrization=standard"),
        ({"norm": "batchnorm"}, "model.norm='batchnorm' is unknown; there are"),
        (
            {"placement": "attention_residuals", "depth_groups": 3},
            "model.depth_groups=3: 4 sublayers in equal groups make 2; set that",
        ),
        (
            {"placement": "mhc_lite", "n_streams": 7},
            "model.n_streams=7 has too many permutations for connection=mhc_lite; take at most 6",
        ),
        (
            {"identity_values": True, "value_init": "2 | 1"},
            "model.value_init='2 | 1': identity_values=True leaves attention no W_V",
        ),
        (
            {"placement": "ngpt", "parametrization": "completep"},
            "model.parametrization=completep: connection=slerp scales no branches",
        ),
        (
            {"norms": "pre+cosine | pre", "scale_attn_weights": False},
            "model.scale_attn_weights=False has no effect with norms='pre+cosine | pre'",
        ),
        (
            {"placement": "ngpt", "scale_attn_by_inverse_layer_idx": True},
            "model.scale_attn_by_inverse_layer_idx=True has no effect with norms=",
        ),
        (
            {"placement": "ngpt", "residual_init": "1"},
            "model.residual_init='1' has no effect: unit_weights=True makes lengths 1",
        ),
        (
            {"placement": "ngpt", "final_norm": "yes"},
            "model.final_norm=yes has no effect: connection=slerp ends in a stream of length 1",
        ),
        (
            {"placement": "ngpt", "embedding_norm": True},
            "model.embedding_norm=True has no effect: connection=slerp norms the stream itself",
        ),
        (
            {"placement": "ngpt", "embedding_multiplier": "3"},
            "model.embedding_multiplier='3' has no effect: connection=slerp norms the stream",
        ),
        (
            {"placement": "admin", "skip_scale": "learned_vector(0.5)"},
            "model.profiled=True measures where skip_scale='learned_vector(0.5)' starts",
        ),
        ({"placement": "ngpt", "norm": "layernorm"}, "model.norm=layernorm has nothing to act on"),
        (
            {"placement": "post_ln", "init_std": 0.05},
            "model.init_std=0.05 has no effect: init=xavier, and embedding_std=",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(changes, line):
    with pytest.raises(UserError) as error:
        model(**changes)
    assert line in str(error.value)
    assert str(error.value).startswith("model.") and "\n" not in str(error.value)


def test_values_of_block_1_are_normed_once():
    """With norms on q, k and v, blocks that use those of block 1 have no gain for them."""
    built = structure(model(norms="pre+qkv | pre", norm="rmsnorm", values="first", n_layer=3))
    shaped = [built.shapes[name]["attn"]["sublayer"]["shaped"] for name in built_names(built)]
    assert [sorted(part) for part in shaped] == [
        ["k_norm", "q_norm", "v_norm"],
        ["k_norm", "q_norm"],
    ]


def built_names(built):
    return [segment.name for segment in built.segments]


def test_what_depends_on_updates_does_not_begin_again_from_other_weights():
    fields = {"model__placement": "prores", "train__init_from": "runs/a"}
    with pytest.raises(UserError, match=r"^model\.branch_scale changes with the updates t, which"):
        tiny(**fields)
    assert tiny(**fields, model__branch_scale="1").model.branch_scale == "1"


def test_a_path_that_is_always_dropped_has_gradients():
    """A rule in t may come to 1."""
    built = structure(model(drop_path="minimum(t/100, 1)"))
    params = noisy(built.init(jax.random.key(0)))
    loss = lambda p: jnp.square(built.bind(p)(TOKENS, KEYS, 100)[..., :11]).mean()
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_muon_has_no_rule_for_completep():
    with pytest.raises(UserError, match=r"set optimizer\.name=adamw"):
        tiny(model__placement="completep", optimizer__name="muon")


def test_a_step_that_nobody_said_is_asked_for():
    built = structure(model(placement="prores"))
    params = built.init(jax.random.key(0))
    with pytest.raises(ValueError, match="needs the step"):
        built.bind(params)(TOKENS)


def test_completep_at_its_base_is_pre_ln_with_scores_over_the_head_width():
    sizes = {"n_layer": 2, "n_embd": 256, "n_head": 2}
    base, other = (structure(model(placement=name, **sizes)) for name in ("pre_ln", "completep"))
    params = other.init(jax.random.key(0))
    qkv = params["blocks"]["attn"]["sublayer"]["qkv"]
    shrunk = jax.tree.map(lambda x: x, params)
    head_width = 256 // 2
    shrunk["blocks"]["attn"]["sublayer"]["qkv"] = {
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
    """A preset with up to five of its axes changed, and a depth."""
    changes = {
        "placement": draw(st.sampled_from(list(PRESETS))),
        "n_layer": draw(st.integers(1, 5)),
    }
    axes = draw(st.lists(st.sampled_from(list(AXES)), max_size=5, unique=True))
    return changes | {axis: draw(TEXTS[axis]) for axis in axes}


def accepted(changes):
    """The model config of a draw, or None where it is refused, in one line."""
    config = configs.default()
    sizes = {"n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 11, "unroll": False}
    for name, value in (sizes | changes).items():
        config.model[name] = value
    config.data.seq_len = 12
    try:
        check(config)
    except UserError as error:
        assert str(error).startswith("model.") and "\n" not in str(error)
        return None
    return configs.resolve(config, 11).model


def assert_sound(changes):
    resolved = accepted(changes)
    if resolved is None:
        return
    assert find_fault(resolved) is None
    built = structure(resolved)
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
def test_a_random_combination_is_sound_or_refused(changes):
    assert_sound(changes)


@pytest.mark.slow
@settings(max_examples=250, **HOW)
@given(draws())
def test_many_random_combinations_are_sound_or_refused(changes):
    assert_sound(changes)


# -- the catalogue


def catalogue(*flags):
    command = [sys.executable, "-m", "gpt2_jax.model.placements", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_page_is_current():
    assert catalogue("--page").stdout == (ROOT / "docs/placements.md").read_text()


def test_the_list_has_every_preset_in_one_line():
    lines = catalogue().stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    (deepnorm,) = (line.split(maxsplit=1)[1] for line in lines if line.startswith("deepnorm "))
    assert deepnorm.startswith("x' = N(a x + F(x)), a = (2 L)^1/4")


def test_one_preset_in_full():
    shown = catalogue("--show=keel").stdout
    for part in ("x' = N2(S x + F(N1(x)))", "Keel, 2601.19895", "skip_scale=where(s <= 2, 1, S)"):
        assert part in shown
    assert "final norm  no" in shown
    assert "124,437,504 at 124M (-2,304 beside pre_ln)" in shown
    done = catalogue("--show=kel")
    assert done.returncode == 2
    assert done.stderr == "error: --show=kel is no preset; did you mean 'keel'?\n"


def test_every_preset_says_where_it_is_from():
    for name, placement in PRESETS.items():
        assert placement.equation and placement.citation, name
    assert {*FAMILIES} <= {*PRESETS}
