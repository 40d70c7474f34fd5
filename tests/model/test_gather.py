"""Parameters gathered from the parts of eight devices, and the parts of their gradients."""

import jax
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType

from gpt2_jax.model.gather import Part, gathered

SHAPES = [
    ((16, 3, 4, 8), -4, (None, None, "tensor", None)),
    ((4, 8, 16), -1, ("tensor", None, None)),
    ((16, 64), -1, (None, None)),
    ((64, 16), -2, (None, "tensor")),
]


@pytest.mark.parametrize(("shape", "axis", "tensor"), SHAPES)
def test_whole_value_is_gathered_and_its_gradient_is_summed_over_devices(shape, axis, tensor):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    part = Part(axis, 4, "float32", P(*tensor))
    spec = P(*("fsdp" if i == len(shape) + axis else None for i in range(len(shape))))
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape).astype(np.float32)
    weights = rng.normal(size=(4, *shape)).astype(np.float32)  # of each device's loss

    def local(w, weights):
        loss = lambda w: (gathered(w, part, "fsdp") * weights[0]).sum()
        return gathered(w, part, "fsdp"), jax.grad(loss)(w)

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec, P("fsdp")),
        out_specs=(P(), spec),
        axis_names={"fsdp"},
        check_vma=False,
    )
    whole, gradient = jax.jit(sharded)(w, weights)
    np.testing.assert_array_equal(whole, w)
    np.testing.assert_allclose(gradient, weights.sum(0), rtol=1e-5, atol=1e-6)


def test_value_is_gathered_in_its_dtype_and_its_gradient_summed_in_float32():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    part = Part(-1, 8, "bfloat16", P(None, None))
    loss = lambda w: gathered(w, part, "fsdp").astype("float32").sum()
    sharded = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=P(None, "fsdp"), out_specs=P(None, "fsdp")
    )
    jaxpr = str(jax.make_jaxpr(sharded)(np.ones((3, 8), np.float32)))
    lines = [line for line in jaxpr.splitlines() if "all_gather[" in line or "scatter[" in line]
    assert [":bf16[" in lines[0], ":f32[" in lines[-1], len(lines)] == [True, True, 2]
