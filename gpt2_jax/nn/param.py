"""Parameters: what each one is, what its axes mean, and where its initial values come from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import jax
from flax import nnx

# Axes along which independent matrices lie side by side.
BATCH_AXES = frozenset({"qkv", "maps"})


class Role(StrEnum):
    """What a parameter is. Stored as metadata: once stacked, its ndim says nothing."""

    MATRIX = "matrix"
    MAP = "map"  # a connection's own small matrix, from the width to a few numbers
    EMBEDDING = "embedding"
    POSITION = "position"
    HEAD = "head"
    GAIN = "gain"
    BIAS = "bias"
    SCALAR = "scalar"  # a learned factor, one number or one per channel


Axes = tuple[str | None, ...]


def param(value: Any, role: Role, axes: Axes = (), n_in: int = 0) -> nnx.Param[jax.Array]:
    """Returns a parameter with its metadata.

    Args:
      axes: a name for each axis of the value: `embed` (the residual stream's width), `heads`,
        `head_dim`, `qkv`, `mlp`, `vocab`, `position`, `maps`; None for others. A stack of layers
        adds an axis in front, which has no name.
      n_in: of a matrix, how many of the leading axes are contracted with its input.

    Raises:
      ValueError: if the names do not match the value's axes.
    """
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} names for {value.ndim} axes")
    return nnx.Param(value, role=role, axes=axes, n_in=n_in)


class HyperScales(NamedTuple):
    """Factors on a parameter's learning rate, weight decay and Adam's epsilon."""

    lr: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True)
class ParamInfo:
    """Static parameter metadata.

    Attributes:
      axes, n_in: as of `param`. scales: asked for by the parametrization.
    """

    role: Role
    axes: Axes = ()
    n_in: int = 0
    scales: HyperScales = field(default_factory=HyperScales)

    @property
    def in_axes(self) -> tuple[int, ...]:
        """The axes that a matrix contracts, counted from the last one (-1)."""
        n = len(self.axes)
        return tuple(range(-n, self.n_in - n))

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The axes that a matrix produces, counted from the last one, without batch axes."""
        n = len(self.axes)
        return tuple(i - n for i in range(self.n_in, n) if self.axes[i] not in BATCH_AXES)

    @property
    def width_axis(self) -> int | None:
        """The axis along the residual stream's width, of a matrix that has one such axis."""
        directed = self.role in (Role.MATRIX, Role.EMBEDDING, Role.HEAD)
        if not directed or self.axes.count("embed") != 1:
            return None
        return self.axes.index("embed") - len(self.axes)


@dataclass(frozen=True)
class Init:
    """Initial values of one layer: a key per site, so that models share what they have in common.

    Attributes:
      key: the run's key for initial weights.
      layer: 0-based index of the block (may be traced); 0 outside the blocks.
    """

    key: jax.Array
    layer: jax.Array | int = 0

    def normal(self, site: str, shape: tuple[int, ...], std: jax.Array | float) -> jax.Array:
        """Returns float32 normal values of std `std`, the same for the same site and layer."""
        site_key = jax.random.fold_in(self.key, zlib.crc32(site.encode()))
        return std * jax.random.normal(jax.random.fold_in(site_key, self.layer), shape)
