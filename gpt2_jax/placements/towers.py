"""Architectures as data: a model is one tower of blocks, or two of which one reads the other.

A block is a sequence of sublayers: self-attention and an MLP, with cross-attention between them in
a tower that reads another. Imports no jax.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTN, CROSS, MLP = "attn", "cross", "mlp"
SUBLAYERS = (ATTN, CROSS, MLP)  # in the order of a block


@dataclass(frozen=True)
class TowerKind:
    """A tower of an architecture.

    Attributes:
      name: prefix of its parameters and diagnostics; empty for a model's only tower.
      depth: the config field of `model` with its number of blocks.
      causal: whether tokens attend to themselves and earlier ones only.
      reads: name of the tower that its cross-attention reads; None without cross-attention.
    """

    name: str
    depth: str
    causal: bool
    reads: str | None = None

    @property
    def sublayers(self) -> tuple[str, ...]:
        """Names of the sublayers of a block, in order."""
        return SUBLAYERS if self.reads is not None else (ATTN, MLP)


# The last tower has the head.
ARCHITECTURES: dict[str, tuple[TowerKind, ...]] = {
    "decoder": (TowerKind("", "n_layer", causal=True),),
    "encoder": (TowerKind("", "n_layer", causal=False),),
    "encoder_decoder": (
        TowerKind("encoder", "n_encoder_layer", causal=False),
        TowerKind("decoder", "n_layer", causal=True, reads="encoder"),
    ),
}


@dataclass(frozen=True)
class TowerShape:
    """A tower of a model of a certain depth.

    Attributes:
      n_layer: its blocks. n_reader_layers: blocks of the tower whose cross-attention reads it, 0
        without one. n_model_sublayers: sublayers of all towers.
    """

    kind: TowerKind
    n_layer: int
    n_reader_layers: int
    n_model_sublayers: int

    @property
    def sublayers(self) -> tuple[str, ...]:
        """Names of the sublayers of a block, in order."""
        return self.kind.sublayers

    @property
    def n_sublayers(self) -> int:
        """Sublayers of all its blocks."""
        return len(self.sublayers) * self.n_layer

    @property
    def has_cross(self) -> bool:
        """Whether its blocks have cross-attention."""
        return CROSS in self.sublayers

    @property
    def label(self) -> str:
        """` of the encoder`, for messages; empty for a model's only tower."""
        return f" of the {self.kind.name}" if self.kind.name else ""


def make_towers(architecture: str, depths: dict[str, int]) -> tuple[TowerShape, ...]:
    """Returns the towers of a model, in the order in which they are applied.

    Args:
      depths: number of blocks by config field, as in `TowerKind.depth`.
    """
    kinds = ARCHITECTURES[architecture]
    total = sum(len(kind.sublayers) * depths[kind.depth] for kind in kinds)
    readers = {kind.reads: depths[kind.depth] for kind in kinds if kind.reads is not None}
    return tuple(
        TowerShape(kind, depths[kind.depth], readers.get(kind.name, 0), total) for kind in kinds
    )


def decoder(n_layer: int) -> TowerShape:
    """Returns the tower of a decoder."""
    return make_towers("decoder", {"n_layer": n_layer})[0]
