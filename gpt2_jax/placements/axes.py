"""The axes of the design space; imports no jax.

One sublayer is `x' = N_post(a·N_skip(x̂) + b·N_out(F(c·N_pre(x̂))))` with `x̂ = N_stream(x)`. Each
axis is a field of `Placement` and the config field `placement.<axis>`. In a value with a bar, such
as `pre+qk | pre`, attention's value is before the bar and the MLP's after it; cross-attention has
that of attention, or its own between two bars, as in `pre+inner | pre | pre+inner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gpt2_jax.fields import Field, fields_of, setting
from gpt2_jax.nn.norm_types import NORM_TYPES
from gpt2_jax.placements.expressions import LONGEST_EXPRESSION

BLOCK_SITES = ("stream", "skip", "pre", "out", "post")
QK_SITES = ("qk", "qk_full", "qkv", "cosine", "unit_qk")
ATTENTION_SITES = (*BLOCK_SITES, *QK_SITES, "inner")
MLP_SITES = (*BLOCK_SITES, "inner")

# Positions that are vectors added to the residual stream.
VECTOR_POSITIONS = ("learned", "sinusoidal", "sinusoidal_halves")

# Activations whose MLP has a third matrix, for the gate (Shazeer 2020).
GATED = ("swiglu",)

OWN = ", or name the module that registers it in placement.module"  # after a list of known words
LONGEST_OVERRIDES = 2000  # characters of `layer_overrides`
# An expression on each side of a bar.
axis = partial(setting, longest=2 * LONGEST_EXPRESSION)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A residual connection with its norms, scales and initial values.

    Attributes:
      equation: one block, in the notation of its source. citation: the paper (and code).
      note: how it differs from its source.

    The other fields are the axes.
    """

    equation: str
    citation: str
    note: str = ""

    connection: str = axis("plain", "how sublayer outputs are combined with the residual stream")
    norm_sites: str = axis(
        "pre",
        "where norms are, joined by +: `stream` (on the stream, before skip and sublayer), `skip`, "
        "`pre`, `out` (on the sublayer's output), `post` (after the add), `inner` (before the last "
        "matrix); in attention also `qk` and `qkv` (per head), `qk_full` (over all heads), "
        "`cosine` (as in Swin v2), `unit_qk` (as in nGPT)",
    )
    norm_type: str = axis("layernorm", "type of norm", choices=NORM_TYPES.keys(), otherwise=OWN)
    norm_eps: float = axis(1e-5, "epsilon of the norms", above=0, maximum=1)
    norm_bias: bool = axis(True, "a bias in layernorm, dyt and derf")
    norm_gain: str = axis("1", "initial gain of norms in blocks (except q, k, v): an expression")
    norm_alpha: str = axis("0.5", "initial slope of dyt and derf: an expression")
    embedding_norm: bool = axis(False, "a norm after the embedding")
    final_norm: str = axis(
        "auto",
        "norm after the last block; `auto`: yes, unless the last block ends in a norm",
        choices=("auto", "yes", "no"),
    )
    skip_scale: str = axis(
        "1",
        "a: an expression in l, L, s, S, d, t, M, P, or `learned_scalar(EXPRESSION)`, "
        "`learned_block`, `learned_vector`",
    )
    data_dependent_init: bool = axis(
        False, "initialize learned skip scales from variances measured on the first batch"
    )
    branch_scale: str = axis("1", "b: like skip_scale")
    input_scale: str = axis("1", "c: like skip_scale")
    drop_path: str = axis("0", "probability that a sequence skips the sublayer: an expression")
    gate_bias: float = axis(
        2.0,
        "initial bias of a gru or highway gate towards the skip",
        minimum=-1000,
        maximum=1000,
    )
    layer_overrides: str = axis(
        "",
        "axes that differ in some blocks, such as `l == 1: norm_sites=qkv+pre | pre, skip_scale=1; "
        "l > 6: ...`",
        longest=LONGEST_OVERRIDES,
    )
    init: str = axis(
        "normal",
        "distribution of initial matrices: `normal` with std init_std, `xavier`, or `small` with "
        "std sqrt(2/(5 d)) in attention and xavier in the MLP",
        choices=("normal", "xavier", "small"),
    )
    residual_init: str = axis(
        "S**-0.5",
        "factors on the initial std of W_O | the MLP's last matrix: expressions",
    )
    value_init: str = axis(
        "1", "factors on the initial std of W_V | the MLP's first matrix: expressions"
    )
    query_init: str = axis("1", "factor on the initial std of W_Q: an expression")
    key_init: str = axis("1", "factor on the initial std of W_K: an expression")
    embedding_std: str = axis("std", "std of initial embeddings: an expression")
    embedding_multiplier: str = axis("1", "factor on embeddings: like skip_scale without l, s, t")
    multiplier_target: str = axis(
        "tokens",
        "what embedding_multiplier multiplies: token vectors, or their sum with position vectors",
        choices=("tokens", "sum"),
    )
    fixnorm: bool = axis(False, "normalize token vectors to length 1, also in a tied head")
    positions: str = axis(
        "learned",
        "position embeddings; `sinusoidal` has sines in even and cosines in odd channels, "
        "`sinusoidal_halves` in the first and the second half (Marian)",
        choices=(*VECTOR_POSITIONS, "rotary", "none"),
    )
    positions_at: str = axis(
        "embedding",
        "where position vectors are added: `mlp` also adds them before each MLP; `block` adds them "
        "only before each block, with an encoding of its number (Universal Transformer)",
        choices=("embedding", "mlp", "block"),
    )
    activation: str = axis(
        "gelu_new",
        "the MLP's nonlinearity; `gelu_new` is GPT-2's tanh approximation, `swiglu` is gated",
        choices=("gelu_new", "gelu", "relu", "relu2", "silu", "tanh", "swiglu"),
    )
    scalar_bias: bool = axis(
        False,
        "subtract a learned scalar from each sublayer's input, and inside the MLP",
    )
    shaped_attention: bool = axis(
        False,
        "replace the attention matrix M by a I + b M - c C, with C uniform over visible tokens and "
        "a, b, c learned per head",
    )
    identity_values: bool = axis(
        False, "attention without W_V and W_O: each head mixes a slice of the input"
    )
    head_scale: bool = axis(False, "a learned factor on each head's output")
    unit_weights: bool = axis(
        False, "normalize matrices to length 1 along the width after each step"
    )
    hidden_scale: bool = axis(
        False, "a learned factor on each hidden channel of the MLP, initially sqrt(d)"
    )
    logit_scale: bool = axis(False, "a learned factor on each token's logit")
    value_residual: str = axis(
        "none",
        "attention values in blocks after the first: mean of their own and block 1's (`half`), "
        "`learned` mix of both, or block 1's alone (`first`)",
        choices=("none", "half", "learned", "first"),
    )
    cross_layer: str = axis(
        "none",
        "skips across layers, joined by +: `x0` (from the embedding to each block's input), "
        "`unet`, `dense` (DenseFormer), `backout`",
    )
    x0_scales: str = axis("1 | 0", "for `x0`, initial factors on stream | embedding: expressions")
    share_blocks: int = axis(
        0,
        "number of distinct blocks, each applied several times in a row; 0: no sharing",
        minimum=0,
        maximum=10_000,
    )
    depth_groups: int = axis(
        0,
        "number of groups of sublayers whose outputs attention_residuals sums; 0: no groups",
        minimum=0,
        maximum=20_000,
    )
    n_streams: int = axis(
        4,
        "number of residual streams, or of parts of one, if the connection has several",
        minimum=1,
        maximum=1024,
    )
    rank: int = axis(32, "rank of laurel_lr's skip matrix", minimum=1, maximum=2**20)
    parametrization: str = axis(
        "standard",
        "`completep` scales sublayer outputs by base_n_layer/L, `depth_mup` by its square root, "
        "both with matching initial values, learning rates, weight decay and epsilon",
        choices=("standard", "depth_mup", "completep"),
    )
    base_n_layer: int = axis(
        2,
        "depth at which the parametrization's depth factors are 1",
        minimum=1,
        maximum=10_000,
    )
    base_n_embd: int = axis(
        256,
        "width at which the parametrization's width factors are 1; attention scores are always "
        "divided by the head width, not by its square root",
        minimum=1,
        maximum=2**20,
    )


AXES: dict[str, Field] = fields_of(Placement)
# Axes of initial values.
INITIAL = (
    "norm_gain",
    "norm_alpha",
    "init",
    "residual_init",
    "value_init",
    "query_init",
    "key_init",
    "embedding_std",
)
# Axes that may differ from block to block.
SCALES = ("skip_scale", "branch_scale", "input_scale")
PER_BLOCK = ("norm_sites", *SCALES)
