"""A model without values: its graph, and the shape and metadata of each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig, PlacementConfig
from gpt2_jax.model.embedding import padded_vocab
from gpt2_jax.model.gather import Gather
from gpt2_jax.model.parametrization import hyper_scales
from gpt2_jax.model.stack import Params
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.norms import UNIT_EPS
from gpt2_jax.nn.param import ParamInfo, Role
from gpt2_jax.nn.target import Target, local_target
from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.resolve import specify
from gpt2_jax.placements.spec import Inserts, ModelSpec


@dataclass(frozen=True, eq=False)  # compared by identity, so it can be a static argument of jit
class ModelDef:
    """The definition of a model.

    Attributes:
      cfg: sizes, dtypes and kernels. placement: with the config's overrides. spec: as parsed.
      target: the devices that the model is for, on which its kernels depend.
      graphdef: rebuilds the module from parameters (`bind`).
      shapes: nested dict of `jax.ShapeDtypeStruct`.
      infos: nested dict of `ParamInfo` with the same structure.
      gather: if set, `bind` takes one device's parts of the parameters, inside a `shard_map`.
      trained: whether a parameter is trained, by its name (see `row_names`) and its info; None if
        all are, except those that the config freezes.
    """

    cfg: ModelConfig
    placement: Placement
    spec: ModelSpec
    target: Target
    graphdef: nnx.GraphDef[Transformer]
    shapes: Params
    infos: dict[str, Any]
    gather: Gather | None = None
    trained: Callable[[str, ParamInfo], bool] | None = None

    def bind(self, params: Params) -> Transformer:
        """Returns the module with these parameters; cheap, and usable under a trace.

        Raises:
          ValueError: if their names or shapes differ; `nnx.merge` matches them by order alone.
        """
        gather = self.gather
        whole = jax.tree.map(lambda s: s.shape, self.shapes)
        if jax.tree.map(jnp.shape, params) != (gather.shapes(self.shapes) if gather else whole):
            raise ValueError("these parameters do not fit this model")
        if gather is not None:
            params = gather.outside(params, {stack.name for stack in self.spec.stacks})
        model = nnx.merge(self.graphdef, params)
        model.blocks.gather = gather
        return model

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters, float32; pure, so it can be jitted onto a mesh."""
        model = Transformer(self.cfg, self.spec, self.target, key)
        return self.project(nnx.to_pure_dict(nnx.state(model)))

    def project(self, params: Params) -> Params:
        """Returns parameters normalized as the placement requires after each step.

        With `unit_weights`, vectors along the width get length 1 in every matrix and embedding
        (Loshchilov et al. 2024, nGPT, section 2.6). Parameters that are None stay None.
        """
        if not self.spec.unit_weights:
            return params

        def unit(info: ParamInfo, x: jax.Array | None) -> jax.Array | None:
            if x is None or info.width_axis is None:
                return x
            length = jnp.sqrt(jnp.square(x).sum(info.width_axis, keepdims=True))
            return x / jnp.maximum(length, UNIT_EPS)

        return jax.tree.map(unit, self.infos, params, is_leaf=is_info)

    def with_weights(self, params: Params, weights: Params) -> Params:
        """Returns initial parameters with the weights of a trained model of the same config.

        Args:
          params: from `init`. weights: those of the model without what `tuning` adds to it.
        """

        def overlaid(params: Any, weights: Any) -> Any:
            if not isinstance(weights, dict):
                return weights
            return params | {key: overlaid(params[key], x) for key, x in weights.items()}

        return overlaid(params, weights)

    def merged(self, params: Params) -> tuple[ModelDef, Params]:
        """Returns an equivalent model, and its parameters, without low-rank updates of matrices."""
        return self, params

    def restored(self, params: Params) -> Params:
        """Returns parameters, or a part of them, as the modules use them."""
        return params

    def row_names(self, name: str) -> Iterator[tuple[int, str]]:
        """Yields (row, name) for each block in a stacked parameter; row 0 if it is not stacked.

        Names are paths with the number of the block. A row shared by several blocks is yielded with
        the name of each.
        """
        first, second, rest = [*name.split(".", 2), "", ""][:3]
        stack = {f"blocks.{stack.name}": stack for stack in self.spec.stacks}.get(
            f"{first}.{second}"
        )
        if stack is None:
            yield 0, name
            return
        for block in range(stack.start, stack.stop):
            yield (block - stack.start) // stack.repeats, f"blocks.{block}.{rest}"

    def n_params(self, *, positions: bool = True) -> int:
        """Returns the number of parameters without vocabulary padding.

        Args:
          positions: whether to count position embeddings; formulas for FLOPs do not.
        """
        return self._count({}, positions)

    def flops_per_token(self, seq_len: int) -> int:
        """Returns training FLOPs per token: 6 N + 12 L D T, N without position embeddings.

        The formula of Chowdhery et al. 2022 (PaLM, appendix B), which does not halve attention for
        causality. Parameters shared by several blocks count once per block.
        """
        repeats = {stack.name: stack.repeats for stack in self.spec.stacks}
        n_used = self._count(repeats, positions=False)
        return 6 * n_used + 12 * self.cfg.n_layer * self.cfg.n_embd * seq_len

    def _count(self, uses: dict[str, int], positions: bool) -> int:
        """Counts parameters, those of a stack `uses[stack]` times (default 1)."""
        pad = padded_vocab(self.cfg) - self.cfg.vocab_size
        infos = jax.tree.leaves(self.infos, is_leaf=is_info)
        shapes = jax.tree_util.tree_leaves_with_path(self.shapes)
        total = 0
        for info, (path, shape) in zip(infos, shapes, strict=True):
            if info.role == Role.POSITION and not positions:
                continue
            n = math.prod(shape.shape)
            if info.role in (Role.EMBEDDING, Role.HEAD):
                n -= pad * shape.shape[-1]
            stack = path[1].key if path[0].key == "blocks" else ""
            total += n * uses.get(stack, 1)
        return total


def param_name(path: jax.tree_util.KeyPath) -> str:
    """Returns a parameter's name: its path, with GPT-2's names for embeddings (`wte`, `wpe`)."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removeprefix("embedding.")


def global_norm(tree: Params) -> jax.Array:
    """Returns the norm over all arrays of a tree of parameters or gradients.

    The sum is in the order of names, so that rounding does not depend on how modules nest.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    squares = {param_name(path): jnp.sum(jnp.square(x)) for path, x in leaves}
    return jnp.sqrt(sum(squares[name] for name in sorted(squares)))


def is_info(x: object) -> bool:
    """Returns whether x is a leaf of a tree of `ParamInfo`."""
    return isinstance(x, ParamInfo)


def define_model(
    cfg: ModelConfig,
    placement_config: PlacementConfig,
    target: Target | None = None,
    inserts: Inserts | None = None,
) -> ModelDef:
    """Returns the model that the sections `model` and `placement` of a resolved config define.

    Args:
      target: the devices that it is for; None for this machine's.
      inserts: what tuning adds to the model; None for nothing.
    """
    target = target or local_target()
    placement = placement_config.resolve()
    spec = replace(specify(placement, cfg.n_layer), inserts=inserts or Inserts())
    abstract = nnx.eval_shape(lambda: Transformer(cfg, spec, target, jax.random.key(0)))
    graphdef, state = nnx.split(abstract)
    stacks = {stack.name for stack in spec.stacks}

    def info(path: jax.tree_util.KeyPath, variable: nnx.Variable) -> ParamInfo:
        meta = variable.get_metadata()
        role = Role(meta["role"])
        in_block = path[0].key == "blocks" and path[1].key in stacks
        scales = hyper_scales(cfg, spec, role, in_block)
        return ParamInfo(role, meta["axes"], meta["n_in"], scales)

    is_leaf = lambda x: isinstance(x, nnx.Variable)
    infos = jax.tree_util.tree_map_with_path(info, state, is_leaf=is_leaf)
    shapes, infos = nnx.to_pure_dict(state), nnx.to_pure_dict(infos)
    return ModelDef(cfg, placement, spec, target, graphdef, shapes, infos)
