"""A parsed placement, as immutable values: TowerSpec > StackSpec > BlockSpec > SublayerSpec.

`resolve.specify` builds them from the strings of a `Placement`, which are parsed nowhere else.
One sublayer is `x' = N_post(a N_skip(x̂) + b N_out(F(c N_pre(x̂))))` with `x̂ = N_stream(x)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.placements.axes import VECTOR_POSITIONS
from gpt2_jax.placements.expressions import Expression, ScaleSpec
from gpt2_jax.placements.towers import TowerShape


@dataclass(frozen=True)
class SublayerSpec:
    """A layer F of a block, and the norms and scales around it.

    Attributes:
      name: `attn`, `cross` or `mlp`; also the name of its parameters.
      index: position in the block, from 0.
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
    """A block's sublayers, in order.

    Attributes:
      values: where attention takes its values from: `none` (its own projection), `source` (the
        same, and later blocks use them too), `half` or `learned` (a mix of its own and block 1's),
        or `first` (block 1's).
    """

    sublayers: tuple[SublayerSpec, ...]
    values: str


@dataclass(frozen=True)
class StackSpec:
    """Consecutive blocks with the same spec, whose parameters are stacked.

    Attributes:
      start, stop: the blocks, as for `range`, from 0.
      n_rows: number of distinct blocks, which is the first axis of the stacked parameters.
      name: key of the stack among the model's parameters.
    """

    start: int
    stop: int
    block: BlockSpec
    n_rows: int
    name: str

    @property
    def repeats(self) -> int:
        """How many times in a row each distinct block is applied."""
        return (self.stop - self.start) // self.n_rows


@dataclass(frozen=True)
class NormKind:
    """The type of all norms; `gain` is the initial gain of those in blocks."""

    kind: str
    eps: float
    bias: bool
    gain: Expression


@dataclass(frozen=True)
class EmbeddingSpec:
    """x_0 = N(m (W[token] + P[position])), or N(m W[token] + P[position]).

    Attributes:
      multiplier: m. multiplies_sum: whether m also multiplies the position vector.
      norm: whether N is present. unit_tokens: whether token vectors have length 1 (FixNorm).
    """

    std: Expression
    multiplier: ScaleSpec
    multiplies_sum: bool
    norm: bool
    unit_tokens: bool


@dataclass(frozen=True)
class PositionSpec:
    """How positions are encoded.

    Attributes:
      kind: `learned`, `sinusoidal`, `sinusoidal_halves`, `rotary` or `none`.
      at: where position vectors are added: `embedding`, `mlp` (there and before each MLP) or
        `block` (only before each block, with an encoding of the block's number).
    """

    kind: str
    at: str

    @property
    def is_vector(self) -> bool:
        """Whether positions are vectors added to the residual stream."""
        return self.kind in VECTOR_POSITIONS


@dataclass(frozen=True)
class AttentionSpec:
    """Attention variants, the same in all blocks; fields as in `Placement`."""

    query_init: Expression
    key_init: Expression
    head_scale: bool
    shaped: bool
    identity_values: bool


@dataclass(frozen=True)
class MLPSpec:
    """MLP variants, the same in all blocks; fields as in `Placement`."""

    activation: str
    hidden_scale: bool


@dataclass(frozen=True)
class ConnectionSpec:
    """How sublayer outputs are combined with the residual stream.

    Attributes:
      name: as registered. gate_bias, n_streams, rank: the axes of these names.
      group_size: sublayers whose outputs `attention_residuals` sums into one source.
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
class Inserts:
    """Modules that tuning adds to a trained model (see `nn.inserts`); 0 for none.

    Attributes:
      adapter: hidden width of the adapter after each sublayer.
      prefix: learned keys and values in each self-attention.
      prompt: learned vectors before the tokens.
    """

    adapter: int = 0
    prefix: int = 0
    prompt: int = 0


@dataclass(frozen=True)
class TowerSpec:
    """A tower's residual connections, norms and initial values.

    Attributes:
      tower: its depth, its sublayers, and the tower that it reads.
      cross_layer: names of the cross-layer skips, in the order in which they are applied.
      inserts: what tuning adds, which is not an axis.

    The other fields are the axes of the same names.
    """

    tower: TowerShape
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
    inserts: Inserts = Inserts()
