"""Parameters with a role and named axes, and their initial random values."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import jax
from flax import nnx

# Axes along which independent matrices are stored side by side.
BATCH_AXES = frozenset({"qkv", "maps"})


class Role(StrEnum):
    """What a parameter is; metadata, because `ndim` is ambiguous once layers are stacked."""

    MATRIX = "matrix"
    MAP = "map"  # a connection's own small matrix
    EMBEDDING = "embedding"
    POSITION = "position"
    HEAD = "head"
    GAIN = "gain"
    BIAS = "bias"
    SCALAR = "scalar"  # a learned factor, one number or one per channel
    ADAPTER = "adapter"  # a small matrix or vector added to a trained model by `tuning`


Axes = tuple[str | None, ...]


def param(value: Any, role: Role, axes: Axes = (), n_in: int = 0) -> nnx.Param[jax.Array]:
    """Returns a parameter with its metadata.

    Args:
      axes: a name for each axis of the value: `embed` (width of the residual stream), `heads`,
        `head_dim`, `qkv`, `mlp`, `vocab`, `position`, `maps`, or None. Stacking layers adds a
        leading axis without a name.
      n_in: for a matrix, the number of leading axes that are contracted with its input.

    Raises:
      ValueError: if the number of names is not that of the value's axes.
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
      axes, n_in: as in `param`. scales: set by the parametrization.
    """

    role: Role
    axes: Axes = ()
    n_in: int = 0
    scales: HyperScales = field(default_factory=HyperScales)

    @property
    def in_axes(self) -> tuple[int, ...]:
        """The contracted axes of a matrix, as negative indices."""
        n = len(self.axes)
        return tuple(range(-n, self.n_in - n))

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The output axes of a matrix, as negative indices, without `BATCH_AXES`."""
        n = len(self.axes)
        return tuple(i - n for i in range(self.n_in, n) if self.axes[i] not in BATCH_AXES)

    @property
    def width_axis(self) -> int | None:
        """The `embed` axis of a matrix or embedding that has exactly one, as a negative index."""
        has_width = self.role in (Role.MATRIX, Role.EMBEDDING, Role.HEAD)
        if not has_width or self.axes.count("embed") != 1:
            return None
        return self.axes.index("embed") - len(self.axes)


@dataclass(frozen=True)
class Init:
    """Random initial values of one layer.

    Each site has its own key, so models that share a site share its initial values.

    Attributes:
      key: the run's key for initial values.
      layer: 0-based index of the block (may be traced); 0 outside blocks.
    """

    key: jax.Array
    layer: jax.Array | int = 0

    def normal(self, site: str, shape: tuple[int, ...], std: jax.Array | float) -> jax.Array:
        """Returns normal float32 values with std `std`, the same for the same site and layer."""
        site_key = jax.random.fold_in(self.key, zlib.crc32(site.encode()))
        return std * jax.random.normal(jax.random.fold_in(site_key, self.layer), shape)
