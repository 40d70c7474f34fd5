"""Properties derived from a parameter's role and axis names."""

import jax.numpy as jnp
import pytest

from gpt2_jax.nn.param import ParamInfo, Role, param


@pytest.mark.parametrize(
    ("role", "axes", "n_in", "contracted", "produced", "width"),
    [
        (Role.MATRIX, ("embed", "qkv", "heads", "head_dim"), 1, (-4,), (-2, -1), -4),
        (Role.MATRIX, ("heads", "head_dim", "embed"), 2, (-3, -2), (-1,), -1),
        (Role.MATRIX, ("embed", "mlp"), 1, (-2,), (-1,), -2),
        (Role.MATRIX, ("embed", "maps", "embed"), 1, (-3,), (-1,), None),
        (Role.MAP, ("embed", None), 1, (-2,), (-1,), None),
        (Role.EMBEDDING, ("vocab", "embed"), 0, (), (-2, -1), -1),
        (Role.HEAD, ("vocab", "embed"), 0, (), (-2, -1), -1),
        (Role.POSITION, ("position", "embed"), 0, (), (-2, -1), None),
        (Role.GAIN, ("embed",), 0, (), (-1,), None),
        (Role.SCALAR, (), 0, (), (), None),
    ],
)
def test_axes_are_derived_from_their_names(role, axes, n_in, contracted, produced, width):
    info = ParamInfo(role, axes, n_in)
    assert (info.in_axes, info.out_axes, info.width_axis) == (contracted, produced, width)


def test_each_axis_needs_a_name():
    with pytest.raises(ValueError, match="1 names for 2 axes"):
        param(jnp.zeros((2, 3)), Role.MATRIX, ("embed",))
