"""The blocks of a model: stacked parameters, applied by a scan or unrolled.

The parameters of consecutive blocks with the same spec are stacked along a leading axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.block import Block, build_block
from gpt2_jax.model.gather import Gather
from gpt2_jax.model.residual import CONNECTIONS
from gpt2_jax.model.residual.base import Aux, NormFn
from gpt2_jax.model.residual.cross_layer import CrossLayer
from gpt2_jax.nn.attention_kernels import SPLASH_RESULTS
from gpt2_jax.nn.context import Context
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import StackSpec, TowerSpec

Params = dict[str, Any]  # nested dict of arrays, keyed by the modules' attribute names


class Carry(NamedTuple):
    """What is passed from block to block.

    Attributes:
      stream: the residual stream (B, T, D), or several, as the connection keeps them.
      memory: of the cross-layer skips.
      first_values: attention values of block 1, if later blocks use them.
    """

    stream: Any
    memory: tuple[Any, ...]
    first_values: jax.Array | None = None


class Stack(nnx.Module):
    """All blocks, in stacks of parameters."""

    def __init__(self, cfg: ModelConfig, spec: TowerSpec, target: Target, key: jax.Array):
        self.cfg, self.stacks, self.sublayers = cfg, spec.stacks, spec.tower.sublayers
        for stack in spec.stacks:
            build = partial(build_block, cfg, spec, target, stack, key)
            first = jnp.arange(stack.start, stack.stop, stack.repeats)
            setattr(self, stack.name, nnx.vmap(build)(first))
        self.cross_layer = CrossLayer(cfg, spec)
        self.adapter = CONNECTIONS[spec.connection.name].adapter(cfg, spec)
        self.grows = self.cross_layer.grows or self.adapter.grows
        self.gather: Gather | None = None  # set by `ModelDef.bind`

    def unstacked(self) -> list[Block]:
        """Returns a module per block."""
        blocks = []
        for stack in self.stacks:
            graphdef, params = nnx.split(getattr(self, stack.name))
            blocks += [nnx.merge(graphdef, row) for row in unstack(params, stack)]
        return blocks

    def begin(self, x_BTD: jax.Array) -> Carry:
        """Returns the carry before the first block."""
        return Carry(self.adapter.expand(x_BTD), self.cross_layer.start(x_BTD))

    def finish(self, carry: Carry, norm: NormFn) -> jax.Array:
        """Returns the head's input (B, T, D) from the carry after the last block."""
        stream = self.cross_layer.finish(carry.stream, carry.memory)
        return self.adapter.head_input(stream, norm)

    def apply(self, block: Block, carry: Carry, context: Context) -> tuple[Carry, Aux]:
        """Returns the carry after a block, and the auxiliary outputs of its sublayers."""
        stream = self.cross_layer.enter(carry.stream, carry.memory, context)
        stream, auxes = block(stream, context)
        stream, memory = self.cross_layer.leave(stream, carry.memory, context)
        values = auxes[0].values if block.is_source else carry.first_values
        return Carry(stream, memory, values), auxes

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Any]:
        """Applies all blocks, each stack by a scan over its layers.

        If the carry grows with depth, blocks are unrolled instead: for the gradient, a scan would
        save the whole carry of each block.

        Returns the carry after the last block, and the results of `context.observe` stacked by
        layer (None without `observe`).
        """
        collected = []
        for stack in self.stacks:
            carry, observed = self._run(stack, carry, context)
            collected.append(observed)
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *collected)

    def _run(self, stack: StackSpec, carry: Carry, context: Context) -> tuple[Carry, Any]:
        graphdef, params = nnx.split(getattr(self, stack.name))
        layers = jnp.arange(stack.start, stack.stop)

        def apply(carry: Carry, params: nnx.State, layer: jax.Array | int) -> tuple[Carry, Any]:
            gather = self.gather
            whole = gather.block(stack.name, nnx.to_pure_dict(params)) if gather else params
            block = nnx.merge(graphdef, whole)
            after, auxes = self.apply(block, carry, context.at(layer, carry.first_values))
            observe = context.observe
            return after, observe and observe(carry.stream, after.stream, auxes)

        if self.grows:
            return self._unroll(apply, stack, params, carry)
        body = self._remat(apply)
        scan = partial(lax.scan, unroll=self.cfg.unroll)
        if len(layers) == 1:  # block 1 may change the structure of the carry, which a scan cannot
            carry, observed = body(carry, jax.tree.map(lambda x: x[0], params), layers[0])
            return carry, jax.tree.map(lambda x: x[None], observed)
        if stack.repeats == 1:
            return scan(lambda c, x: body(c, *x), carry, (params, layers))
        layers_GR = layers.reshape(stack.n_rows, stack.repeats)

        def group(carry: Carry, x: tuple[nnx.State, jax.Array]) -> tuple[Carry, Any]:
            return scan(lambda c, layer: body(c, x[0], layer), carry, x[1])

        carry, observed = scan(group, carry, (params, layers_GR))
        return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observed)

    def _unroll(
        self, apply: Callable[..., Any], stack: StackSpec, params: nnx.State, carry: Carry
    ) -> tuple[Carry, Any]:
        collected = []
        for layer, row in enumerate(unstack(params, stack), stack.start):
            carry, observed = self._remat(partial(apply, layer=layer))(carry, row)
            collected.append(observed)
        return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *collected)

    def _remat(self, body: Callable[..., Any]) -> Callable[..., Any]:
        if self.cfg.remat == "none":
            return body
        policy = {
            "elementwise": saves_products,
            "block": jax.checkpoint_policies.nothing_saveable,
        }[self.cfg.remat]
        # In unrolled blocks, XLA would otherwise merge the recomputation with the forward pass.
        return jax.checkpoint(body, policy=policy, prevent_cse=self.cfg.unroll or self.grows)


def saves_products(primitive: jax.extend.core.Primitive, *args: Any, **params: Any) -> Any:
    """Policy of `model.remat=elementwise`: keeps the results of matmuls and of fused attention.

    jax's own policy only recognizes `dot_general`.
    """
    if primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN
        return True
    if params.get("name") == SPLASH_RESULTS:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


def unstack(params: Any, stack: StackSpec) -> list[Any]:
    """Returns the parameters of each block of a stack.

    The gradient of `split` is one concatenation; that of indexing would be a sum of as many
    stack-sized arrays as there are blocks.
    """
    parts = jax.tree.map(lambda x: lax.split(x, [1] * stack.n_rows), params)
    row = lambda i: jax.tree.map(
        lambda part: part[i][0], parts, is_leaf=lambda x: isinstance(x, (tuple, list))
    )
    return [layer for i in range(stack.n_rows) for layer in [row(i)] * stack.repeats]


def layers_of(stacks: Sequence[StackSpec], params: Params) -> tuple[Params, ...]:
    """Returns the parameters of each block of a model, copied.

    For decoding: a scan over stacked blocks copies each block's matrices out of the stack for every
    token, 27 instead of 17 ms per token at 124M on two cores.
    """
    row_of = lambda stack, row: jax.tree.map(lambda x: x[row], stack)
    rows_of = jax.jit(lambda stack, n: tuple(row_of(stack, i) for i in range(n)), static_argnums=1)
    layers: list[Params] = []
    for stack in stacks:
        for row in rows_of(params[stack.name], stack.n_rows):
            layers += [row] * stack.repeats
    return tuple(layers)
