"""What a placement means, as immutable values: ModelSpec > StackSpec > BlockSpec > SublayerSpec.

`resolve.specify` makes them of the strings of a `Placement`. Nothing below parses a string again.
One sublayer is `x' = N_post(a N_skip(x̂) + b N_out(F(c N_pre(x̂))))` with `x̂ = N_stream(x)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.placements.expressions import Expression, ScaleSpec


@dataclass(frozen=True)
class SublayerSpec:
    """One sublayer F of a block, and the norms and scales around it.

    Attributes:
      name: `attn` or `mlp`, which is also the name of its parameters.
      index: its position in the block, from 0.
      norm_sites: where it has a norm.
      skip_scale, branch_scale, input_scale: a, b and c.
      drop_path: probability that a sequence skips F.
      norm_alpha: initial slope of dyt and derf.
      input_init: factor on the initial std of W_V, or of the MLP's first matrix.
      output_init: factor on the initial std of W_O, or of the MLP's last matrix.
    """

    name: str
    index: int
    norm_sites: frozenset[str]
    skip_scale: ScaleSpec
    branch_scale: ScaleSpec
    input_scale: ScaleSpec
    drop_path: Expression
    norm_alpha: Expression
    input_init: Expression
    output_init: Expression


@dataclass(frozen=True)
class BlockSpec:
    """A block: its sublayers, in order.

    Attributes:
      values: how attention gets its values: `none` (its own), `source` (its own, which later blocks
        also use), `half` or `learned` (mixed with those of block 1), or `first` (those of block 1).
    """

    sublayers: tuple[SublayerSpec, ...]
    values: str


@dataclass(frozen=True)
class StackSpec:
    """Consecutive blocks that are built alike and share one stack of parameters.

    Attributes:
      start, stop: 0-based, as for `range`.
      n_rows: number of different blocks in the stack.
      name: of the stack among the model's parameters.
    """

    start: int
    stop: int
    block: BlockSpec
    n_rows: int
    name: str

    @property
    def repeats(self) -> int:
        """How many times in a row each of the stack's blocks is applied."""
        return (self.stop - self.start) // self.n_rows


@dataclass(frozen=True)
class NormKind:
    """The kind of norm used throughout; `gain` is the initial gain of the blocks' norms."""

    kind: str
    eps: float
    bias: bool
    gain: Expression


@dataclass(frozen=True)
class EmbeddingSpec:
    """x_0 = N(m (W[token] + P[position])), or N(m W[token] + P[position]).

    Attributes:
      multiplier: m. multiplies_sum: whether m also multiplies the position's vector.
      norm: whether there is an N. unit_tokens: whether token vectors have length 1 (FixNorm).
    """

    std: Expression
    multiplier: ScaleSpec
    multiplies_sum: bool
    norm: bool
    unit_tokens: bool


@dataclass(frozen=True)
class PositionSpec:
    """How positions enter.

    Attributes:
      kind: `learned`, `sinusoidal`, `rotary` or `none`.
      at: where vectors are added: `embedding`, `mlp` (also before each MLP) or `block` (before
        each block instead, with the block's number).
    """

    kind: str
    at: str

    @property
    def is_vector(self) -> bool:
        """Whether positions are vectors that are added to the residual stream."""
        return self.kind in ("learned", "sinusoidal")


@dataclass(frozen=True)
class AttentionSpec:
    """What is particular about attention, in all blocks."""

    query_init: Expression
    key_init: Expression
    head_scale: bool
    shaped: bool
    identity_values: bool


@dataclass(frozen=True)
class MLPSpec:
    """What is particular about the MLP, in all blocks."""

    activation: str
    hidden_scale: bool


@dataclass(frozen=True)
class ConnectionSpec:
    """How sublayer outputs are combined with the residual stream.

    Attributes:
      name: as registered. gate_bias, n_streams, rank: as the axes of these names.
      group_size: sublayers per group that attention over depth sums first.
    """

    name: str
    gate_bias: float
    n_streams: int
    rank: int
    group_size: int


@dataclass(frozen=True)
class Parametrization:
    """`standard`, `depth_mup` or `completep`, and the depth and width where its factors are 1."""

    kind: str
    base_n_layer: int
    base_n_embd: int


@dataclass(frozen=True)
class ModelSpec:
    """A whole model's residual connections, norms and initial values.

    Attributes:
      init: distribution of the initial matrices: `normal`, `xavier` or `small`.
      data_dependent_init: whether learned skip scales start from variances on the first batch.
      scalar_bias: whether a learned number is subtracted before each sublayer and inside the MLP.
      unit_weights: whether matrices are brought back to unit length after each step.
      cross_layer: what earlier layers leave for later ones, in the order in which it is applied.
      x0_scales: initial factors of stream and embedding for `x0`.
    """

    stacks: tuple[StackSpec, ...]
    connection: ConnectionSpec
    norm: NormKind
    embedding: EmbeddingSpec
    positions: PositionSpec
    attention: AttentionSpec
    mlp: MLPSpec
    parametrization: Parametrization
    init: str
    data_dependent_init: bool
    scalar_bias: bool
    unit_weights: bool
    final_norm: bool
    logit_scale: bool
    cross_layer: tuple[str, ...]
    x0_scales: tuple[Expression, Expression]

    @property
    def n_sublayers(self) -> int:
        """Sublayers in each block."""
        return len(self.stacks[0].block.sublayers)
