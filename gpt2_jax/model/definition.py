"""A model without values: its graph, and the shape and metadata of each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig, PlacementConfig
from gpt2_jax.model.embedding import padded_vocab
from gpt2_jax.model.encoder_decoder import EncoderDecoder
from gpt2_jax.model.gather import Gather
from gpt2_jax.model.heads import LABEL_KINDS, LM, HeadSpec, LabelModel
from gpt2_jax.model.parametrization import hyper_scales
from gpt2_jax.model.stack import Params
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.norms import UNIT_EPS
from gpt2_jax.nn.param import ParamInfo, Role
from gpt2_jax.nn.target import Target, local_target
from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.resolve import specify
from gpt2_jax.placements.spec import Inserts, StackSpec, TowerSpec
from gpt2_jax.placements.towers import ARCHITECTURES

TOWER_NAMES = {kind.name for kinds in ARCHITECTURES.values() for kind in kinds if kind.name}


@dataclass(frozen=True, eq=False)  # compared by identity, so it can be a static argument of jit
class ModelDef:
    """The definition of a model.

    Attributes:
      cfg: sizes, dtypes and kernels. placement: with the config's overrides.
      specs: the placement as parsed, for each tower, in the order in which they are applied.
      head: what the model predicts.
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
    specs: tuple[TowerSpec, ...]
    head: HeadSpec
    target: Target
    graphdef: nnx.GraphDef[Any]
    shapes: Params
    infos: dict[str, Any]
    gather: Gather | None = None
    trained: Callable[[str, ParamInfo], bool] | None = None

    @property
    def spec(self) -> TowerSpec:
        """The spec of the tower that has the head."""
        return self.specs[-1]

    @property
    def n_blocks(self) -> int:
        """The number of blocks of all towers."""
        return sum(spec.tower.n_layer for spec in self.specs)

    @cached_property
    def stacks(self) -> dict[tuple[str, ...], StackSpec]:
        """The stacks of blocks, by the path of their parameters."""
        return {
            (*tower_path(spec), "blocks", stack.name): stack
            for spec in self.specs
            for stack in spec.stacks
        }

    def bind(self, params: Params) -> Any:
        """Returns the module with these parameters; cheap, and usable under a trace.

        It is a `Transformer`, an `EncoderDecoder` or a `LabelModel`.

        Raises:
          ValueError: if their names or shapes differ; `nnx.merge` matches them by order alone.
        """
        gather = self.gather
        whole = jax.tree.map(lambda s: s.shape, self.shapes)
        if jax.tree.map(jnp.shape, params) != (gather.shapes(self.shapes) if gather else whole):
            raise ValueError("these parameters do not fit this model")
        if gather is not None:
            params = self._gathered(params, gather)
        model = nnx.merge(self.graphdef, params)
        for spec in self.specs:
            tower = at_path(model, tower_path(spec), getattr)
            tower.blocks.gather = gather and gather.at(tower_path(spec))
        if isinstance(model, EncoderDecoder):
            model.link()
        return model

    def _gathered(self, params: Params, gather: Gather) -> Params:
        """Returns the parameters with those outside blocks gathered."""
        for spec in self.specs:
            path, stacks = tower_path(spec), {stack.name for stack in spec.stacks}
            whole = gather.at(path).outside(at_path(params, path), stacks)
            params = {**params, path[0]: whole} if path else whole
        return params

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters, float32; pure, so it can be jitted onto a mesh."""
        model = make_module(self.cfg, self.specs, self.target, key, self.head)
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
        stacks = {".".join(path): stack for path, stack in self.stacks.items()}
        path = next((path for path in stacks if name.startswith(f"{path}.")), None)
        if path is None:
            yield 0, name
            return
        stack, rest = stacks[path], name.removeprefix(f"{path}.")
        blocks = path.rpartition(".")[0]
        for block in range(stack.start, stack.stop):
            yield (block - stack.start) // stack.repeats, f"{blocks}.{block}.{rest}"

    def n_params(self, *, positions: bool = True) -> int:
        """Returns the number of parameters without vocabulary padding.

        Args:
          positions: whether to count position embeddings; formulas for FLOPs do not.
        """
        return self._count({}, positions)

    def flops_per_token(self, seq_len: int) -> int:
        """Returns training FLOPs per token: 6 N + 12 L D T, N without position embeddings.

        The formula of Chowdhery et al. 2022 (PaLM, appendix B), which does not halve attention for
        causality. Parameters shared by several blocks count once per block. With an encoder and a
        decoder, L counts all attention layers, and a token is one of the source and one of the
        target.
        """
        repeats = {path: stack.repeats for path, stack in self.stacks.items()}
        n_used = self._count(repeats, positions=False)
        towers = [spec.tower for spec in self.specs]
        n_attention = sum(tower.n_sublayers - tower.n_layer for tower in towers)
        return 6 * n_used + 12 * n_attention * self.cfg.n_embd * seq_len

    def stack_path(self, path: jax.tree_util.KeyPath) -> tuple[str, ...] | None:
        """Returns the path of the stack that a parameter is in; None for those outside blocks."""
        keys = tuple(key.key for key in path)
        return next((keys[:n] for n in (2, 3) if keys[:n] in self.stacks), None)

    def _count(self, uses: dict[tuple[str, ...], int], positions: bool) -> int:
        """Counts parameters, those of a stack `uses[its path]` times (default 1)."""
        pad = padded_vocab(self.cfg) - self.cfg.vocab_size
        infos = jax.tree.leaves(self.infos, is_leaf=is_info)
        shapes = jax.tree_util.tree_leaves_with_path(self.shapes)
        total = 0
        for info, (path, shape) in zip(infos, shapes, strict=True):
            if info.role == Role.POSITION and not positions:
                continue
            n = math.prod(shape.shape)
            if info.axes == ("vocab", "embed"):
                n -= pad * shape.shape[-1]
            stack = self.stack_path(path)
            total += n * (uses.get(stack, 1) if stack else 1)
        return total


def param_name(path: jax.tree_util.KeyPath) -> str:
    """Returns a parameter's name: its path, with GPT-2's names for embeddings (`wte`, `wpe`)."""
    words = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    in_tower = int(words[0] in TOWER_NAMES)
    if words[in_tower] == "embedding":
        del words[in_tower]
    return ".".join(words)


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
    head: HeadSpec = LM,
    inserts: Inserts | None = None,
) -> ModelDef:
    """Returns the model that the sections `model` and `placement` of a resolved config define.

    Args:
      target: the devices that it is for; None for this machine's.
      head: what it predicts.
      inserts: what tuning adds to each tower; None for nothing.

    Raises:
      ValueError: if the head is for models of one tower and this one has two.
    """
    target = target or local_target()
    placement = placement_config.resolve()
    added = inserts or Inserts()
    specs = tuple(replace(specify(placement, tower), inserts=added) for tower in cfg.towers)
    abstract = nnx.eval_shape(lambda: make_module(cfg, specs, target, jax.random.key(0), head))
    graphdef, state = nnx.split(abstract)
    shapes = nnx.to_pure_dict(state)
    model_def = ModelDef(cfg, placement, specs, head, target, graphdef, shapes, {})
    by_path = {tower_path(spec): spec for spec in specs}

    def info(path: jax.tree_util.KeyPath, variable: nnx.Variable) -> ParamInfo:
        meta = variable.get_metadata()
        role = Role(meta["role"])
        spec = by_path.get((path[0].key,)) or specs[-1]
        scales = hyper_scales(cfg, spec, role, model_def.stack_path(path) is not None)
        return ParamInfo(role, meta["axes"], meta["n_in"], scales)

    is_leaf = lambda x: isinstance(x, nnx.Variable)
    infos = jax.tree_util.tree_map_with_path(info, state, is_leaf=is_leaf)
    return replace(model_def, infos=nnx.to_pure_dict(infos))


def make_module(
    cfg: ModelConfig,
    specs: tuple[TowerSpec, ...],
    target: Target,
    key: jax.Array,
    head: HeadSpec,
) -> Transformer | EncoderDecoder | LabelModel:
    """Returns a model with its initial values.

    Raises:
      ValueError: as in `define_model`.
    """
    if len(specs) > 1:
        if head != LM:
            raise ValueError(f"a head of kind {head.kind!r} needs a model of one tower")
        return EncoderDecoder(cfg, specs, target, key)
    if head.kind in LABEL_KINDS:
        return LabelModel(cfg, specs[0], target, key, head)
    return Transformer(cfg, specs[0], target, key, head)


def tower_path(spec: TowerSpec) -> tuple[str, ...]:
    """Returns the path of a tower's parameters: empty for a model's only tower."""
    name = spec.tower.kind.name
    return (name,) if name else ()


def at_path(tree: Any, path: tuple[str, ...], get: Callable[..., Any] = getitem) -> Any:
    """Returns the part of a tree of parameters, or with `getattr` of a module, at a path."""
    return reduce(get, path, tree)
