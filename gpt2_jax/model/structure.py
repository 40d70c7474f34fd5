"""A model as plain data: its graph, its parameters as a nested dict, and what each of them is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from gpt2_jax.model.embedding import padded_vocab
from gpt2_jax.model.gpt2 import GPT2, Params
from gpt2_jax.model.norm import UNIT_EPS
from gpt2_jax.model.parametrization import rates
from gpt2_jax.model.parts import Rates, Role
from gpt2_jax.model.placements.axes import Placement
from gpt2_jax.model.placements.resolve import Segment, resolve, segments


@dataclass(frozen=True)
class Info:
    """What is known of a parameter besides its values.

    Attributes:
      role: what it is.
      in_axes, out_axes: for a matrix, the trailing axes that it contracts and that it gives,
        as negative numbers; axes in neither (layers, the 3 of q, k, v) hold separate matrices.
      width_axes: those that span the stream's width, where it makes sense to norm over them.
      rates: factors on its learning rate, decay and epsilon that the placement asks for.
    """

    role: Role
    in_axes: tuple[int, ...] = ()
    out_axes: tuple[int, ...] = ()
    width_axes: tuple[int, ...] = ()
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a static argument
class Structure:
    """A GPT-2 without values.

    Attributes:
      graphdef: rebuilds the module around parameters (`bind`).
      shapes: nested dict of `jax.ShapeDtypeStruct`.
      infos: nested dict of `Info`, of the same structure.
    """

    cfg: FrozenConfigDict
    graphdef: nnx.GraphDef[GPT2]
    shapes: Params
    infos: dict[str, Any]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The runs of blocks that are built alike, each with a stack among the parameters."""
        return segments(self.placement, self.cfg.n_layer)

    @property
    def placement(self) -> Placement:
        """What the config says of residual connections and norms, overrides included."""
        return resolve(self.cfg)

    def bind(self, params: Params) -> GPT2:
        """Returns the module with these parameters; cheap, and usable under a trace.

        Raises:
          ValueError: if they are another model's; `nnx.merge` itself goes by their order alone.
        """
        if jax.tree.map(jnp.shape, params) != jax.tree.map(lambda s: s.shape, self.shapes):
            raise ValueError("these parameters do not fit this model")
        return nnx.merge(self.graphdef, params)

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters, float32; pure, so that it can be jitted onto a mesh."""
        return self.project(nnx.to_pure_dict(nnx.state(GPT2(self.cfg, key))))

    def project(self, params: Params) -> Params:
        """Returns parameters brought back to where the placement keeps them after an update.

        With `unit_weights`, vectors along the width have length 1 in every matrix and embedding
        (Loshchilov et al. 2024, nGPT, section 2.6).
        """
        if not self.placement.unit_weights:
            return params

        def unit(info: Info, x: jax.Array) -> jax.Array:
            if not info.width_axes:
                return x
            length = jnp.sqrt(jnp.square(x).sum(info.width_axes, keepdims=True))
            return x / jnp.maximum(length, UNIT_EPS)

        return jax.tree.map(unit, self.infos, params, is_leaf=lambda x: isinstance(x, Info))

    def n_params(self, *, positions: bool = True) -> int:
        """Returns the number of parameters, vocabulary padding not counted.

        Args:
          positions: whether position embeddings count; formulas for FLOPs leave them out.
        """
        return self._count(lambda name: 1, positions)

    def flops_per_token(self, seq_len: int) -> int:
        """Returns training FLOPs a token: 6 N + 12 L D T, N without position embeddings.

        The formula of Chowdhery et al. 2022 (PaLM, appendix B), attention not halved for
        causality. Parameters that several blocks share count once for each of them.
        """
        repeats = {segment.name: segment.repeats for segment in self.segments}
        n_used = self._count(lambda name: repeats.get(name, 1), positions=False)
        return 6 * n_used + 12 * self.cfg.n_layer * self.cfg.n_embd * seq_len

    def _count(self, uses: Callable[[str], int], positions: bool) -> int:
        pad = padded_vocab(self.cfg) - self.cfg.vocab_size
        total = 0
        for name, part in self.shapes.items():
            infos = jax.tree.leaves(self.infos[name], is_leaf=lambda x: isinstance(x, Info))
            for info, shape in zip(infos, jax.tree.leaves(part), strict=True):
                if info.role == Role.POSITION and not positions:
                    continue
                n = math.prod(shape.shape)
                if info.role in (Role.EMBEDDING, Role.HEAD):
                    n -= pad * shape.shape[-1]
                total += n * uses(name)
        return total


def structure(model_config: ConfigDict) -> Structure:
    """Returns the structure of the model that a resolved `config.model` describes."""
    cfg = FrozenConfigDict(model_config)
    abstract = nnx.eval_shape(lambda: GPT2(cfg, jax.random.key(0)))
    graphdef, state = nnx.split(abstract)
    placement = resolve(cfg)
    stacks = {segment.name for segment in segments(placement, cfg.n_layer)}

    def info(path: Any, variable: nnx.Variable) -> Info:
        meta = variable.get_metadata()
        role = Role(meta["role"])
        asked = rates(cfg, placement, role, in_block=path[0].key in stacks)
        axes = {name: meta.get(name, ()) for name in ("in_axes", "out_axes", "width_axes")}
        return Info(role, **axes, rates=asked)

    is_leaf = lambda x: isinstance(x, nnx.Variable)
    infos = jax.tree_util.tree_map_with_path(info, state, is_leaf=is_leaf)
    return Structure(cfg, graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(infos))
