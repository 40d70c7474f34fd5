"""Base classes of connections, and their registration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.builder import BlockBuilder
from gpt2_jax.nn.context import Context, SublayerAux
from gpt2_jax.nn.linear import Linear
from gpt2_jax.nn.param import Axes, Role, param
from gpt2_jax.placements.expressions import parse_expression
from gpt2_jax.placements.registry import SUPPORTS, Supports, declare
from gpt2_jax.placements.spec import SublayerSpec, TowerSpec

# u -> (b N_out(F(c N_pre(u))), aux); attention also accepts a tuple of inputs for q, k and v.
SublayerFn = Callable[[Any, Context], tuple[jax.Array, SublayerAux]]
Aux = tuple[SublayerAux, ...]  # of a block's sublayers
NormFn = Callable[[jax.Array], jax.Array]
ONE = parse_expression("1")


class StreamAdapter(nnx.Module):
    """Converts between the embedding, a connection's stream and the head's input.

    The base class is for a single stream.

    Attributes:
      grows: whether the stream has more parts after a block than before it.
    """

    grows = False

    def __init__(self, cfg: ModelConfig, spec: TowerSpec):
        del cfg
        self.n_streams = spec.connection.n_streams

    def expand(self, x_BTD: jax.Array) -> Any:
        """Returns the stream before the first block, given the embedding."""
        return x_BTD

    def reduce(self, stream: Any) -> jax.Array:
        """Returns a single stream (B, T, D), for diagnostics and the final norm."""
        return stream

    def head_input(self, stream: Any, norm: NormFn) -> jax.Array:
        """Returns the head's input (B, T, D); `norm` is the final norm or the identity."""
        return norm(self.reduce(stream))


class Connection(nnx.Module):
    """Computes the stream after a block from the stream before it and the block's sublayers.

    Attributes:
      owned_sites: norm sites that the connection implements instead of the sublayers.
      adapter: how its stream begins and ends.
    """

    owned_sites: frozenset[str] = frozenset()
    adapter: type[StreamAdapter] = StreamAdapter

    def __init__(self, build: BlockBuilder):
        raise NotImplementedError

    def __call__(
        self, stream: Any, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[Any, Aux]:
        """Returns the stream after the block, and the auxiliary outputs of the sublayers."""
        raise NotImplementedError


class Combine(nnx.Module):
    """One sublayer's part of a connection: x' = combine(x, u, F(u)) with u = read(x).

    The simplest way to write a connection; each sublayer gets its own instance.

    Attributes:
      owned_sites, adapter: as in `Connection`.
    """

    owned_sites: frozenset[str] = frozenset()
    adapter: type[StreamAdapter] = StreamAdapter

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        del build, spec

    def read(self, x: Any, context: Context) -> Any:
        """Returns u, the sublayer's input."""
        del context
        return x

    def __call__(self, x: Any, u: Any, y: jax.Array, context: Context) -> Any:
        """Returns x' for y = F(u)."""
        raise NotImplementedError


class Sequential(Connection):
    """Applies sublayers in order; for each, a module combines its output with the stream.

    Attributes:
      part: the class of these modules: a `Combine`, unless `step` is overridden.
    """

    part: Callable[[BlockBuilder, SublayerSpec], nnx.Module]

    def __init__(self, build: BlockBuilder):
        for spec in build.sublayers:
            setattr(self, spec.name, self.part(build, spec))
        self.names = tuple(spec.name for spec in build.sublayers)

    def __call__(
        self, stream: Any, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[Any, Aux]:
        auxes = []
        for name, f in zip(self.names, sublayers, strict=True):
            stream, aux = self.step(getattr(self, name), stream, f, context)
            auxes.append(aux)
        return stream, tuple(auxes)

    def step(
        self, part: Any, stream: Any, f: SublayerFn, context: Context
    ) -> tuple[Any, SublayerAux]:
        """Returns the stream after one sublayer, and the sublayer's auxiliary output."""
        u = part.read(stream, context)
        y, aux = f(u, context)
        return part(stream, u, y, context), aux


CONNECTIONS: dict[str, type[Connection]] = {}  # by registered name
T = TypeVar("T", bound=type[Connection] | type[Combine])


def register(name: str, supports: Supports | None = None) -> Callable[[T], T]:
    """Registers a `Connection` or a `Combine` as `placement.connection=name`.

    Args:
      supports: what it supports; None if `placements.registry` declares it.

    Raises:
      ValueError: if the name is taken, or what it supports is not declared.
    """

    def add(cls: T) -> T:
        if supports is not None:
            declare(name, supports)
        if name in CONNECTIONS or name not in SUPPORTS:
            raise ValueError(f"connection {name!r} is registered twice, or needs `supports`")
        CONNECTIONS[name] = cls if issubclass(cls, Connection) else _sequential(cls)
        return cls

    return add


def _sequential(cls: type[Combine]) -> type[Connection]:
    members = {"part": cls, "owned_sites": cls.owned_sites, "adapter": cls.adapter}
    return type(cls.__name__, (Sequential,), {"__doc__": cls.__doc__, **members})


def matrix(value: jax.Array, axes: Axes) -> nnx.Param[jax.Array]:
    """Returns a small matrix parameter that maps its second-to-last axis to its last."""
    return param(value, Role.MAP, axes, n_in=1)


def square_matrices(build: BlockBuilder, site: str, n: int) -> Linear:
    """Returns a layer of n matrices (D, D) without bias, with output (B, T, n, D)."""
    d = build.cfg.n_embd
    return Linear(
        (d,),
        (n, d),
        axes=("embed", "maps", "embed"),
        site=site,
        std=build.std(ONE, d, d, build.sublayers[0]),
        init=build.init,
        dtype=build.cfg.dtype,
        product_dtype=build.product_dtype,
        bias=False,
    )
