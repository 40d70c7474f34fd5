"""What a connection is, and how its residual stream begins and ends."""

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
from gpt2_jax.placements.spec import ModelSpec, SublayerSpec

# u -> (b N_out(F(c N_pre(u))), aux); attention may receive one input for each of q, k and v.
SublayerFn = Callable[[Any, Context], tuple[jax.Array, SublayerAux]]
Aux = tuple[SublayerAux, ...]  # of a block's sublayers
NormFn = Callable[[jax.Array], jax.Array]
ONE = parse_expression("1")


class StreamAdapter(nnx.Module):
    """How the residual stream begins and what the head reads of it: here, a single stream.

    Attributes:
      grows: whether the stream has more parts after a block than before it.
    """

    grows = False

    def __init__(self, cfg: ModelConfig, spec: ModelSpec):
        del cfg
        self.n_streams = spec.connection.n_streams

    def expand(self, x_BTD: jax.Array) -> Any:
        """Returns the stream before the first block, from the embedding."""
        return x_BTD

    def reduce(self, stream: Any) -> jax.Array:
        """Returns the single stream (B, T, D) that all of them amount to."""
        return stream

    def head_input(self, stream: Any, norm: NormFn) -> jax.Array:
        """Returns what the head reads, (B, T, D); `norm` is the final norm or the identity."""
        return norm(self.reduce(stream))


class Connection(nnx.Module):
    """A block's stream from the one before it and the block's sublayers.

    Attributes:
      owned_sites: norm sites of a sublayer that the connection has instead.
      adapter: how its stream begins and ends.
    """

    owned_sites: frozenset[str] = frozenset()
    adapter: type[StreamAdapter] = StreamAdapter

    def __init__(self, build: BlockBuilder):
        raise NotImplementedError

    def __call__(
        self, stream: Any, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[Any, Aux]:
        """Returns the stream after the block, and what the sublayers return besides."""
        raise NotImplementedError


class Combine(nnx.Module):
    """x' = combine(x, u, F(u)) with u = read(x), sublayer by sublayer.

    The simplest way to write a connection: each sublayer has a module of its own.

    Attributes:
      owned_sites, adapter: as of `Connection`.
    """

    owned_sites: frozenset[str] = frozenset()
    adapter: type[StreamAdapter] = StreamAdapter

    def __init__(self, build: BlockBuilder, spec: SublayerSpec):
        del build, spec

    def read(self, x: Any, context: Context) -> Any:
        """Returns u, which the sublayer reads."""
        del context
        return x

    def __call__(self, x: Any, u: Any, y: jax.Array, context: Context) -> Any:
        """Returns x' for y = F(u)."""
        raise NotImplementedError


class Sequential(Connection):
    """Combines the output of one sublayer after the other with the stream.

    Attributes:
      combine: class of the module that each sublayer has.
    """

    combine: type[Combine]

    def __init__(self, build: BlockBuilder):
        for spec in build.sublayers:
            setattr(self, spec.name, self.combine(build, spec))
        self.names = tuple(spec.name for spec in build.sublayers)

    def __call__(
        self, stream: Any, sublayers: Sequence[SublayerFn], context: Context
    ) -> tuple[Any, Aux]:
        auxes = []
        for name, f in zip(self.names, sublayers, strict=True):
            combine = getattr(self, name)
            u = combine.read(stream, context)
            y, aux = f(u, context)
            stream = combine(stream, u, y, context)
            auxes.append(aux)
        return stream, tuple(auxes)


CONNECTIONS: dict[str, type[Connection]] = {}  # by the name under which they are registered
T = TypeVar("T", bound=type[Connection] | type[Combine])


def register(name: str, supports: Supports | None = None) -> Callable[[T], T]:
    """Registers a connection, or what combines each sublayer, as `placement.connection=name`.

    Args:
      supports: what it makes use of; None for those that `placements.registry` declares.

    Raises:
      ValueError: if the name is taken, or nothing says what the connection supports.
    """

    def add(cls: T) -> T:
        if supports is not None:
            declare(name, supports)
        if name in CONNECTIONS or name not in SUPPORTS:
            raise ValueError(f"connection {name!r} is registered twice, or declares no support")
        CONNECTIONS[name] = cls if issubclass(cls, Connection) else _sequential(cls)
        return cls

    return add


def _sequential(cls: type[Combine]) -> type[Connection]:
    members = {"combine": cls, "owned_sites": cls.owned_sites, "adapter": cls.adapter}
    return type(cls.__name__, (Sequential,), {"__doc__": cls.__doc__, **members})


def matrix(value: jax.Array, axes: Axes) -> nnx.Param[jax.Array]:
    """Returns a small parameter that maps the last axis but one to the last."""
    return param(value, Role.MAP, axes, n_in=1)


def square(build: BlockBuilder, site: str, n: int) -> Linear:
    """Returns n matrices (D, D) side by side, without bias."""
    d = build.cfg.n_embd
    return Linear(
        (d,),
        (n, d),
        axes=("embed", "maps", "embed"),
        site=site,
        std=build.std(ONE, d, d, build.sublayers[0]),
        init=build.init,
        dtype=build.cfg.dtype,
        bias=False,
    )
