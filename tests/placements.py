"""Presets to test: one of each family in `make test`, all of them in `make test-slow`."""

import pytest

from gpt2_jax.placements import PRESETS

FAMILIES = (
    "hybridnorm_star",  # several stacks, norms on q, k, v and on the stream
    "b2t",  # a connection of the whole block, ending in a norm
    "parallel_gptj",
    "universal",  # shared blocks, positions added in each
    "rezero",  # learned scalars at zero, no norm
    "prores",  # the step
    "gtrxl",  # gates
    "x0_lambda",  # a memory across layers
    "residual_dual",  # two streams
    "hyper_connections",  # several, mixed by token
    "attention_residuals_block",  # a mixture over depth
    "svformer",  # the values of block 1
)
# For long tests: presets that differ most for the compiler and for checkpoints.
FEW = ("universal", "hyper_connections")


def _slow_but(fast, names=PRESETS):
    slow = pytest.mark.slow
    return [name if name in fast else pytest.param(name, marks=slow) for name in names]


EVERY = _slow_but(FAMILIES)
EVERY_AT_LENGTH = _slow_but(FEW)
# One preset per connection, which matters most for training and checkpoints.
REPRESENTATIVES = {
    *{PRESETS[name].connection: name for name in [*reversed(PRESETS), *FEW]}.values()
}
EVERY_CONNECTION = _slow_but(FEW, sorted(REPRESENTATIVES))


def depth(name):
    """Returns enough blocks for a preset to be distinctive."""
    if PRESETS[name].depth_groups:
        return 5  # ten sublayers, so that a group has two
    one = PRESETS[name]
    alike = not one.layer_overrides and one.value_residual == one.cross_layer == "none"
    return 2 if alike else 4  # Mix-LN has no Post-LN below four, and a U-net no order to pop in
