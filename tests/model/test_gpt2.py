"""Properties of the model, with two layers of width 16."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt2_jax.config import replace
from gpt2_jax.model.decode import bind_unstacked, decode, empty_caches, unstack_params
from gpt2_jax.model.definition import define_model, is_info
from gpt2_jax.model.sublayer import resolve_kernel
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.activations import ACTIVATIONS, GATED
from gpt2_jax.nn.dropout import dropout
from gpt2_jax.nn.param import Init, Role
from gpt2_jax.nn.products import product
from gpt2_jax.nn.target import Target, local_target
from gpt2_jax.placements.resolve import specify
from tests.tools import noisy, tiny, tiny_model

TOKENS = jax.random.randint(jax.random.key(5), (3, 12), 0, 11)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def logits(model):
    return jax.jit(lambda p: model[0].bind(p)(TOKENS))(model[1])


def test_no_position_depends_on_a_later_one(model):
    """Gradients of each position's logits with respect to every position's embedding."""
    bound = model[0].bind(model[1])
    context = bound.context(jnp.arange(12), None, None)
    x_BTD = bound.embedding(TOKENS[:1], context)

    def out(x_BTD):
        return bound.logits(bound.head_input(bound.blocks(bound.blocks.begin(x_BTD), context)[0]))[
            0
        ].sum(-1)

    jacobian = jnp.abs(jax.jit(jax.jacrev(out))(x_BTD))[:, 0].sum(-1)  # (to, from)
    reaches = np.asarray(jacobian > 0)
    np.testing.assert_array_equal(reaches, np.tril(np.ones((12, 12), bool)))


def test_changing_a_token_changes_its_own_logits(model, logits):
    changed = TOKENS.at[:, 7].set((TOKENS[:, 7] + 1) % 11)
    other = model[0].bind(model[1])(changed)
    np.testing.assert_allclose(other[:, :7], logits[:, :7], atol=1e-5)
    assert np.abs(other[:, 7:] - logits[:, 7:]).max() > 0.1


def gradient_jaxpr(model, params):
    loss = lambda p: model.bind(p)(TOKENS)[..., :11].sum()
    return str(jax.make_jaxpr(jax.grad(loss))(params))


def weighted_gradients(model, params):
    """Returns a sum of all logits with random weights, and its gradients."""
    weights = jax.random.normal(jax.random.key(9), (3, 12, 16))[..., :11]
    value = lambda p: (model.bind(p)(TOKENS)[..., :11] * weights).sum()
    return jax.jit(jax.value_and_grad(value))(params)


@pytest.fixture(scope="module")
def gradients(model):
    return weighted_gradients(*model)


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"model__unroll": False}, "unroll=1\n"),
        ({"model__remat": "block"}, "remat"),
        ({"model__remat": "elementwise"}, "remat"),
        ({"model__remat": "block", "model__unroll": False}, "remat"),
    ],
)
def test_scan_and_remat_change_the_program_but_not_the_result(model, gradients, change, mark):
    other, params = tiny_model(**change)
    jaxprs = [gradient_jaxpr(m, params) for m in (model[0], other)]
    assert mark not in jaxprs[0] and mark in jaxprs[1]
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    jax.tree.map(near, weighted_gradients(other, params), gradients)


def test_blocks_are_applied_in_order(model):
    """Compares the scan with a loop over unstacked modules, and with the reverse order."""
    bound = model[0].bind(model[1])
    graphdef, state = nnx.split(bound.blocks.all)
    blocks = [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(2)]
    context = bound.context(jnp.arange(12), None, None)
    x = bound.embedding(TOKENS, context)
    apply = lambda i, layer, x: blocks[i](x, context.at(layer, None))[0]
    forward = apply(1, 1, apply(0, 0, x))
    np.testing.assert_allclose(
        bound.blocks(bound.blocks.begin(x), context)[0].stream, forward, atol=1e-5
    )
    assert np.abs(forward - apply(0, 1, apply(1, 0, x))).max() > 0.1


def test_stacked_layers_have_the_initial_values_of_separate_ones():
    config = tiny()
    params = jax.jit(define_model(config.model, config.placement).init)(jax.random.key(3))
    kernel = params["blocks"]["all"]["mlp"]["sublayer"]["up"]["kernel"]
    for layer in range(2):
        alone = Init(jax.random.key(3), layer).normal("mlp.up", (16, 64), 0.02)
        np.testing.assert_allclose(kernel[layer], alone, rtol=1e-5)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_initial_values_are_gpt2s():
    config = tiny(
        model__n_layer=8, model__n_embd=64, model__n_positions=64, model__vocab_size=256,
        model__tie_head=False,
    )  # fmt: skip
    params = define_model(config.model, config.placement).init(jax.random.key(0))
    blocks, small = params["blocks"]["all"], 0.02 / 4  # 1/sqrt(2 * 8)
    stds = {
        "qkv": (blocks["attn"]["sublayer"]["qkv"]["kernel"], 0.02),
        "attn.out": (blocks["attn"]["sublayer"]["out"]["kernel"], small),
        "up": (blocks["mlp"]["sublayer"]["up"]["kernel"], 0.02),
        "down": (blocks["mlp"]["sublayer"]["down"]["kernel"], small),
        "wte": (params["embedding"]["wte"], 0.02),
        "wpe": (params["embedding"]["wpe"], 0.02),
        "head": (params["head"], 0.02),
    }
    for name, (values, std) in stds.items():
        assert np.std(values) == pytest.approx(std, rel=0.03), name
        assert abs(np.mean(values)) < 0.05 * std, name
    for info, value in zip(
        jax.tree.leaves(define_model(config.model, config.placement).infos, is_leaf=is_info),
        jax.tree.leaves(params),
        strict=True,
    ):
        constant = {Role.GAIN: 1.0, Role.BIAS: 0.0}.get(info.role)
        assert constant is None or (value == constant).all()


def test_padded_ids_have_no_probability_and_no_gradient(model, logits):
    assert logits.shape == (3, 12, 16)
    assert (logits[..., 11:] == np.finfo(np.float32).min).all()
    assert np.abs(logits[..., :11]).max() < 1e3

    def loss(params):
        return jax.nn.logsumexp(model[0].bind(params)(TOKENS), -1).mean()

    grads = jax.jit(jax.grad(loss))(model[1])["embedding"]["wte"]
    assert (grads[11:] == 0).all() and (grads[:11] != 0).all()


def test_vocabulary_padding_does_not_change_the_model(model, logits):
    exact, params = tiny_model(model__vocab_multiple=1)
    embedding = model[1]["embedding"]
    params = model[1] | {"embedding": embedding | {"wte": embedding["wte"][:11]}}
    np.testing.assert_allclose(exact.bind(params)(TOKENS), logits[..., :11], atol=1e-5)
    assert exact.n_params() == model[0].n_params()


@partial(jax.jit, static_argnums=0)
def decoded_span(model_def, apart, tokens, caches, at, first):
    bound = bind_unstacked(model_def, apart)
    x_BTD, caches, first = decode(bound, tokens, caches, at, first)
    return bound.model.logits(x_BTD), caches, first


def decoded(model_def, params, tokens, starts, padding, step=0):
    """Returns the logits of tokens decoded with a cache in spans that begin at `starts`."""
    apart = unstack_params(model_def, params, step)
    caches = empty_caches(model_def.cfg, *tokens.shape)
    outs, first = [], jnp.array(padding)
    for at, until in pairwise([*starts, tokens.shape[1]]):
        out, caches, first = decoded_span(model_def, apart, tokens[:, at:until], caches, at, first)
        outs.append(out)
    return jnp.concatenate(outs, 1)


@pytest.mark.parametrize("n_prompt", [1, 2, 7, 11])
def test_decoding_with_a_cache_equals_the_full_pass(model, logits, n_prompt):
    got = decoded(*model, TOKENS, [0, *range(n_prompt, 12)], (0, 0, 0))
    np.testing.assert_allclose(got, logits, atol=1e-5)


@pytest.mark.parametrize("padding", [(0, 1, 4), (3, 3, 3)])
def test_padded_sequences_decode_as_if_alone(model, logits, padding):
    """Rows that begin at different columns, after ids that must not matter."""
    width = 12 + max(padding)
    rows = np.random.default_rng(0).integers(0, 11, (3, width)).astype(np.int32)
    for row, pad in enumerate(padding):
        rows[row, pad : pad + 12] = TOKENS[row]
    got = decoded(*model, rows, [0, *range(7, width)], padding)
    for row, pad in enumerate(padding):
        np.testing.assert_allclose(got[row, pad : pad + 12], logits[row], atol=1e-5)
        if pad:
            assert np.abs(got[row, :12] - logits[row])[:, :11].max() > 0.1


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({"model__scale_attn_weights": False}, [8**0.5, 8**0.5]),
        ({"model__scale_attn_by_inverse_layer_idx": True}, [1.0, 0.5]),
    ],
)
def test_attention_scores_are_scaled_as_configured(model, logits, changes, factors):
    """Compared with the plain model with scaled queries."""
    params = jax.tree.map(lambda x: x, model[1])
    qkv = params["blocks"]["all"]["attn"]["sublayer"]["qkv"]
    scaled, _ = tiny_model(**changes)
    assert np.abs(scaled.bind(params)(TOKENS) - logits)[..., :11].max() > 1e-3
    for name, heads_axis in (("kernel", 2), ("bias", 1)):
        x = qkv[name]
        factor = jnp.array(factors).reshape(2, *[1] * (x.ndim - 1))
        is_q = jnp.arange(3).reshape(3, *[1] * (x.ndim - 1 - heads_axis)) == 0
        qkv[name] = jnp.where(is_q, x / factor, x)
    bound = scaled.bind(params)
    np.testing.assert_allclose(bound(TOKENS), logits, atol=1e-4)
    got = decoded(scaled, params, TOKENS, [0, 6], (0, 0, 0))
    np.testing.assert_allclose(got, logits, atol=1e-4)


def test_untied_head_is_a_separate_matrix(model):
    untied, params = tiny_model(model__tie_head=False)
    assert untied.n_params() == model[0].n_params() + 11 * 16
    tied = {k: v for k, v in params.items() if k != "head"}
    wte = params["head"] = params["embedding"]["wte"]
    np.testing.assert_allclose(untied.bind(params)(TOKENS), model[0].bind(tied)(TOKENS), atol=1e-6)
    params["head"] = noisy(wte)
    assert np.abs(untied.bind(params)(TOKENS) - model[0].bind(tied)(TOKENS))[..., :11].max() > 0.01


def test_parameters_of_another_model_are_refused(model):
    params = dict(model[1])
    params["lm_f"] = params.pop("ln_f")
    with pytest.raises(ValueError, match="do not fit"):
        model[0].bind(params)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    half, params = tiny_model(model__dtype="bfloat16")
    full, _ = tiny_model()
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(lambda p: half.bind(p)(TOKENS))(params))
    assert "bf16" in jaxpr and "bf16" not in str(
        jax.make_jaxpr(lambda p: full.bind(p)(TOKENS))(params)
    )
    a, b = half.bind(params)(TOKENS), full.bind(params)(TOKENS)
    assert a.dtype == jnp.float32
    error = np.abs(a - b)[..., :11].max()
    assert 1e-4 < error < 0.1 * np.abs(b[..., :11]).max()


@pytest.mark.parametrize("change", [{}, {"placement__identity_values": True}])
def test_separate_products_for_q_k_and_v_change_the_program_but_not_the_result(change):
    """On a GPU, slicing the result of a single product would copy it."""
    single, params = tiny_model(**change)
    separate, _ = tiny_model(Target("gpu"), **change)
    n_parts = 2 if change else 3
    joint = f"f32[36,{16 * n_parts}] = dot_general"
    jaxpr = lambda m: str(jax.make_jaxpr(lambda p: m.bind(p)(TOKENS))(params))
    assert joint in jaxpr(single) and joint not in jaxpr(separate)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(same, *(weighted_gradients(m, params) for m in (single, separate)))


def test_head_products_use_the_compute_dtype():
    x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((5, 8), jnp.bfloat16)
    head = lambda x, w: product("ND,VD->NV", x, w, x.dtype).sum()
    jaxpr = str(jax.make_jaxpr(jax.grad(head, (0, 1)))(x, w))
    products = [line for line in jaxpr.splitlines() if "dot_general" in line]
    assert sum("f32[4,5] = dot_general" in line for line in products) == 1
    # Those of a GPU. On a CPU, two more have float32 results.
    assert sum(":bf16[" in line for line in products) == 2


def test_head_gradient_equals_that_of_a_matrix_product():
    x, w = jax.random.normal(jax.random.key(0), (2, 6, 4))
    weights = jax.random.normal(jax.random.key(1), (6, 6))
    head = lambda x, w: product("ND,VD->NV", x, w, "float32")
    ours = jax.grad(lambda x, w: (head(x, w) * weights).sum(), (0, 1))(x, w)
    plain = jax.grad(lambda x, w: (x @ w.T * weights).sum(), (0, 1))(x, w)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


# -- activations and dropout


ORACLES = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", ORACLES)
def test_activations_match_their_definitions(name):
    x = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(x)), ORACLES[name](x), atol=1e-6)


def test_every_activation_of_the_config_is_implemented():
    from gpt2_jax.config import FIELDS

    assert set(FIELDS["placement.activation"].choices) == {*ACTIVATIONS, *GATED}
    assert set(ACTIVATIONS) == set(ORACLES)


def test_dropout_keeps_the_mean_and_drops_the_configured_fraction():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(16))
    x = jnp.ones((16, 64, 64))
    out = dropout(x, keys, 0.25, "here")
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert (out == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert out.mean() == pytest.approx(1.0, abs=0.01)
    assert (out[0] != out[1]).any()
    assert (out != dropout(x, keys, 0.25, "there")).any()
    np.testing.assert_array_equal(dropout(x, None, 0.25, "here"), x)


def test_dropout_mask_depends_only_on_its_sequence():
    """Half of a batch alone has the same masks as within the whole batch."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
    x = jnp.ones((4, 32))
    np.testing.assert_array_equal(
        dropout(x, keys, 0.5, "a")[2:], dropout(x[2:], keys[2:], 0.5, "a")
    )


@pytest.mark.parametrize("zeroed", ["embedding", "attn.weights", "attn.residual", "mlp.residual"])
def test_dropout_acts_at_each_of_its_sites(monkeypatch, zeroed):
    """With only one active site, the output still changes."""
    model, params = tiny_model(model__dropout=0.5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))

    def only(x, keys_B, rate, site):
        return dropout(x, keys_B if site == zeroed else None, rate, site)

    for module in ("model.embedding", "nn.attention", "model.sublayer"):
        monkeypatch.setattr(f"gpt2_jax.{module}.dropout", only)
    changed = model.bind(params)(TOKENS, keys)
    assert np.abs(changed - model.bind(params)(TOKENS))[..., :11].max() > 0.01


def test_layers_have_different_dropout_masks():
    """In two equal layers with the same mask, swapping their keys would change nothing."""
    model, params = tiny_model(model__dropout=0.5)
    seen = []
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
    bound = model.bind(params)
    block = type(bound.blocks.all)
    original = block.__call__

    def spy(self, x_BTD, context):
        seen.append(context.keys_B)
        return original(self, x_BTD, context)

    block.__call__ = spy
    try:
        with jax.disable_jit():
            bound(TOKENS, keys)
    finally:
        block.__call__ = original
    drawn = [np.asarray(jax.random.key_data(k)) for k in seen]
    assert len(drawn) == 2 and (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    ("attention", "dtype", "rate", "platform", "kernel"),
    [
        ("auto", "bfloat16", 0.0, "gpu", "cudnn"),
        ("auto", "float32", 0.0, "gpu", "xla"),
        ("auto", "bfloat16", 0.1, "gpu", "xla"),
        ("auto", "bfloat16", 0.0, "cpu", "xla"),
        ("auto", "bfloat16", 0.0, "tpu", "splash"),
        ("auto", "bfloat16", 0.1, "tpu", "xla"),
        ("auto", "float32", 0.0, "tpu", "xla"),
        ("xla", "bfloat16", 0.0, "gpu", "xla"),
        ("cudnn", "bfloat16", 0.0, "cpu", "cudnn"),
    ],
)
def test_attention_field_selects_the_kernel(attention, dtype, rate, platform, kernel):
    config = tiny(model__dtype=dtype, model__dropout=rate)
    config = replace(config, {"model.attention": attention})  # without checks for this machine
    spec = define_model(config.model, config.placement).spec
    assert resolve_kernel(config.model, spec, platform) == kernel


@pytest.mark.parametrize(
    ("n_embd", "n_head", "kernel"),
    [(64, 1, "cudnn"), (1600, 25, "cudnn"), (128, 1, "cudnn"), (24, 2, "xla"), (136, 1, "xla")],
)
def test_auto_uses_xla_for_head_widths_that_cudnn_does_not_support(n_embd, n_head, kernel):
    config = tiny(model__dtype="bfloat16", model__n_embd=n_embd, model__n_head=n_head)
    spec = specify(config.placement.resolve(), config.model.towers[0])
    assert resolve_kernel(config.model, spec, "gpu") == kernel


def test_module_can_be_called_directly():
    """It is an ordinary NNX module."""
    config = tiny()
    spec = specify(config.placement.resolve(), config.model.towers[0])
    module = Transformer(config.model, spec, local_target(), jax.random.key(0))
    assert module(TOKENS).shape == (3, 12, 16)
