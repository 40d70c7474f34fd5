"""Products of rounded inputs with float32 results, and their gradients."""

import platform
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.model import builder
from gpt2_jax.model.builder import product_dtype
from gpt2_jax.nn import products
from gpt2_jax.nn.products import has_fast_bfloat16, product
from gpt2_jax.nn.target import Target
from gpt2_jax.train.loss import mean_loss
from tests.model.test_fused_kernels import TOKENS
from tests.tools import tiny, tiny_model

EQUATIONS = {  # with the shapes of the inputs
    "NI,IO->NO": ((6, 8), (8, 4)),
    "ND,VD->NV": ((6, 8), (5, 8)),
    "BHTK,BHSK->BHTS": ((2, 3, 5, 4), (2, 3, 7, 4)),
    "BHTS,BHSK->BHTK": ((2, 3, 5, 7), (2, 3, 7, 4)),
}


def inputs(equation, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 2)
    return [
        jax.random.normal(k, s).astype(dtype)
        for k, s in zip(keys, EQUATIONS[equation], strict=True)
    ]


def rounded(x):
    return np.float64(x.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_and_its_gradients_are_those_of_rounded_inputs(equation):
    a, b = inputs(equation)
    y, pullback = jax.vjp(lambda a, b: product(equation, a, b, "bfloat16"), a, b)
    g = jax.random.normal(jax.random.key(1), y.shape)
    names, out = equation.split("->")
    left, right = names.split(",")
    ra, rb, rg = rounded(a), rounded(b), rounded(g)
    expected = (
        np.einsum(equation, ra, rb),
        np.einsum(f"{out},{right}->{left}", rg, rb),
        np.einsum(f"{left},{out}->{right}", ra, rg),
    )
    for got, wanted in zip((y, *pullback(g)), expected, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    exact = np.einsum(equation, np.float64(a), np.float64(b))
    assert np.abs(exact - expected[0]).max() > 1e-3  # or rounding is not tested


@pytest.mark.parametrize("equation", EQUATIONS)
def test_gradients_have_the_dtypes_of_the_inputs(equation):
    a, b = inputs(equation, "bfloat16")
    y, pullback = jax.vjp(lambda a, b: product(equation, a, b, "bfloat16"), a, b)
    assert y.dtype == jnp.float32
    assert {x.dtype for x in pullback(y)} == {jnp.dtype("bfloat16")}


def test_products_can_be_mapped_and_scanned():
    a, b = inputs("NI,IO->NO")
    gradients = jax.grad(lambda a, b: jnp.square(product("NI,IO->NO", a, b, "bfloat16")).sum())
    each = jax.jit(gradients)
    stacked = jnp.stack([a, 2 * a]), jnp.stack([b, b + 1])
    expected = jnp.stack([each(*pair) for pair in zip(*stacked, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(gradients))(*stacked), expected, rtol=1e-5)
    mapped = jax.jit(lambda xs: jax.lax.map(lambda x: gradients(*x), xs))(stacked)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)


def dots(hlo):
    """Returns the input dtypes and first contracting axis of each dot in a compiled program."""
    types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", hlo))
    found = re.findall(r" dot\(%([\w.-]+), %([\w.-]+)\).*lhs_contracting_dims={(\d)}", hlo)
    return [(types[a], types[b], int(axis)) for a, b, axis in found]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="depends on XLA's kernels for x86")
@pytest.mark.parametrize("equation", ["NI,IO->NO", "ND,VD->NV", "BHTK,BHSK->BHTS"])
def test_a_cpu_computes_no_product_in_float32(equation):
    """Even if inputs, results and gradients are transposed, which XLA likes to merge into them."""
    a, b = (jnp.concatenate([x] * 8, -1) for x in inputs(equation))
    if equation == "NI,IO->NO":
        b = jnp.concatenate([b] * 8, 0)
    swapped = lambda x: x.swapaxes(-1, -2)

    def loss(multiply, a, b):
        return jnp.square(swapped(multiply(swapped(a), swapped(b)))).sum()

    def compiled(multiply):
        gradients = jax.jit(jax.grad(partial(loss, multiply), (0, 1)))
        jax.block_until_ready(gradients(swapped(a), swapped(b)))
        return dots(gradients.lower(swapped(a), swapped(b)).compile().as_text())

    last = a.ndim - 1
    assert (
        compiled(lambda a, b: product(equation, a, b, "bfloat16")) == [("bf16", "bf16", last)] * 3
    )
    plain = compiled(partial(jnp.einsum, equation))
    assert {found[:2] for found in plain} == {("f32", "f32")} and plain[-1][2] != last


@pytest.mark.parametrize("changes", [{}, {"model__tie_head": False}])
def test_every_product_of_a_model_has_rounded_inputs(changes):
    def forward_products(**more):
        model, params = tiny_model(**changes, **more)
        text = str(jax.make_jaxpr(lambda p: model.bind(p)(TOKENS.inputs_BT))(params))
        names = dict(re.findall(r"(\w+):(\w+)\[", text))
        return [
            {names[a], names[b]} for a, b in re.findall(r"(?s)dot_general\[.*?\] (\w+) (\w+)", text)
        ]

    assert all(found == {"f32"} for found in forward_products())
    rounded = forward_products(model__matmul_dtype="bfloat16")
    assert len(rounded) == 7 and all(found == {"bf16"} for found in rounded)


def test_a_model_with_rounded_products_has_nearly_the_same_loss_and_gradients():
    def value(**changes):
        model, params = tiny_model(**changes)
        return jax.jit(jax.value_and_grad(lambda p: mean_loss(p, model, TOKENS, None, 0)))(params)

    (exact, exact_grads), (loss, grads) = value(), value(model__matmul_dtype="bfloat16")
    assert loss != exact and float(loss) == pytest.approx(float(exact), abs=5e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(b).max()) + 1e-4),
        grads,
        exact_grads,
    )


@pytest.mark.parametrize(
    ("platform", "dtype", "matmul_dtype", "fast", "expected"),
    [
        ("cpu", "float32", None, True, None),
        ("cpu", "float32", "float32", True, None),
        ("cpu", "float32", "bfloat16", False, "bfloat16"),
        ("cpu", "float32", "auto", True, "bfloat16"),
        ("cpu", "float32", "auto", False, None),
        ("gpu", "float32", "auto", True, None),
        ("gpu", "float32", "bfloat16", True, "bfloat16"),
        ("cpu", "bfloat16", None, False, "bfloat16"),
        ("gpu", "bfloat16", None, True, None),
    ],
)
def test_where_products_are_rounded(platform, dtype, matmul_dtype, fast, expected, monkeypatch):
    cfg = tiny(model__dtype=dtype, model__matmul_dtype=matmul_dtype).model
    monkeypatch.setattr(builder, "has_fast_bfloat16", lambda: fast)
    assert product_dtype(cfg, Target(platform)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags : fpu avx512f avx512_bf16 sse\n", True),
        ("flags : amx_bf16\n", True),
        ("flags : fpu avx512f\n", False),
        ("Features : asimd bf16\n", False),
        (None, False),
    ],
)
def test_fast_products_are_found_in_the_processors_flags(text, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(products, "CPUINFO", path)
    assert has_fast_bfloat16.__wrapped__() == expected
