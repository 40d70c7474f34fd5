"""A block: its sublayers, and the connection that combines them with the residual stream."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.errors import UserError
from gpt2_jax.model.builder import BlockBuilder
from gpt2_jax.model.residual import CONNECTIONS
from gpt2_jax.model.residual.base import Aux
from gpt2_jax.model.sublayer import Sublayer
from gpt2_jax.nn.context import Context
from gpt2_jax.nn.param import Init
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import StackSpec, TowerSpec


class Block(nnx.Module):
    """Sublayers, as attributes with their names, and a connection.

    Raises:
      UserError: if the connection declares a norm site or scale that it does not use.
    """

    def __init__(self, build: BlockBuilder):
        name = build.spec.connection.name
        connection = CONNECTIONS[name]
        self.is_source = build.block.values == "source"
        self.names = tuple(spec.name for spec in build.sublayers)
        for spec in build.sublayers:
            setattr(self, spec.name, Sublayer(build, spec, connection.owned_sites))
        self.connection = connection(build)
        if ignored := build.ignored():
            raise UserError(
                f"the connection {name!r} declares that it supports {ignored!r} but never builds "
                "it: remove it from its Supports, or call build.norm or build.scale in its class"
            )

    def __call__(self, stream: Any, context: Context) -> tuple[Any, Aux]:
        """Returns the stream after the block, and the auxiliary outputs of its sublayers."""
        sublayers = [getattr(self, name) for name in self.names]
        return self.connection(stream, sublayers, context)


def build_block(
    cfg: ModelConfig,
    spec: TowerSpec,
    target: Target,
    stack: StackSpec,
    key: jax.Array,
    layer: jax.Array,
) -> Block:
    """Returns a block with its initial values; `layer` is its 0-based index (may be traced)."""
    return Block(BlockBuilder(cfg, spec, stack, Init(key, layer), target))
