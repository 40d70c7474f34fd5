"""The axes of the design space, as data that needs no jax.

One sublayer is `x' = N_post(a·N_skip(x̂) + b·N_out(F(c·N_pre(x̂))))` with `x̂ = N_stream(x)`. Each
field of `Placement` is one axis of it, or of the model around it, and also the config field
`placement.<axis>`. A value with a bar, such as `pre+qk | pre`, has attention's value before the bar
and the MLP's after it.
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

# Activations whose MLP has a third matrix, the gate's (Shazeer 2020).
GATED = ("swiglu",)

OWN = ", or name the module that registers it in placement.module"  # after a list of known words
LONGEST_OVERRIDES = 2000  # characters of `layer_overrides`
# Room for an expression on each side of a bar.
axis = partial(setting, longest=2 * LONGEST_EXPRESSION)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A residual connection with its norms, scales and initial values.

    Attributes:
      equation: one block, in the notation of its source. citation: the paper (and code).
      note: what was adapted or left out.
      The others are the axes; each has its meaning next to it.
    """

    equation: str
    citation: str
    note: str = ""

    connection: str = axis("plain", "how sublayer outputs are combined with the residual stream")
    norm_sites: str = axis(
        "pre",
        "where norms are, separated by +: `stream` (before skip and sublayer), `skip`, `pre`, "
        "`out` (on the sublayer's output), `post` (after the add), `inner` (before the last "
        "matrix); in attention also `qk`, `qkv` (each head), `qk_full` (all heads at once), "
        "`cosine` (Swin v2's), `unit_qk` (nGPT's)",
    )
    norm_type: str = axis("layernorm", "kind of norm", choices=NORM_TYPES.keys(), otherwise=OWN)
    norm_eps: float = axis(1e-5, "epsilon of the norms", above=0, maximum=1)
    norm_bias: bool = axis(True, "whether layernorm, dyt and derf have a bias")
    norm_gain: str = axis("1", "initial gain of the blocks' norms (not of q, k, v): an expression")
    norm_alpha: str = axis("0.5", "initial slope of dyt and derf: an expression")
    embedding_norm: bool = axis(False, "whether a norm follows the embedding")
    final_norm: str = axis(
        "auto",
        "norm after the last block; `auto`: unless the last block ends in one",
        choices=("auto", "yes", "no"),
    )
    skip_scale: str = axis(
        "1",
        "a: an expression in l, L, s, S, d, t, or `learned_scalar(EXPRESSION)`, `learned_block`, "
        "`learned_vector`",
    )
    data_dependent_init: bool = axis(
        False, "whether learned skip factors start from variances measured on the first batch"
    )
    branch_scale: str = axis("1", "b: as skip_scale")
    input_scale: str = axis("1", "c: as skip_scale")
    drop_path: str = axis("0", "probability that a sequence skips the sublayer: an expression")
    gate_bias: float = axis(
        2.0,
        "initial bias of a gru or highway gate towards the skip",
        minimum=-1000,
        maximum=1000,
    )
    layer_overrides: str = axis(
        "",
        "axes that differ in some blocks: `l == 1: norm_sites=qkv+pre | pre, skip_scale=1; "
        "l > 6: ...`",
        longest=LONGEST_OVERRIDES,
    )
    init: str = axis(
        "normal",
        "initial matrices: `normal` of init_std, `xavier`, or `small` of std sqrt(2/(5 d))",
        choices=("normal", "xavier", "small"),
    )
    residual_init: str = axis(
        "(2*L)**-0.5",
        "factor on the initial std of W_O | the MLP's last matrix: expressions",
    )
    value_init: str = axis(
        "1", "factor on the initial std of W_V | the MLP's first matrix: expressions"
    )
    query_init: str = axis("1", "factor on the initial std of W_Q: an expression")
    key_init: str = axis("1", "factor on the initial std of W_K: an expression")
    embedding_std: str = axis("std", "std of initial embeddings: an expression")
    embedding_multiplier: str = axis("1", "factor on embeddings: as skip_scale, without l and t")
    multiplier_target: str = axis(
        "tokens",
        "what the multiplier multiplies: the token's vector, or its sum with the position's",
        choices=("tokens", "sum"),
    )
    fixnorm: bool = axis(False, "whether token vectors have length 1, also in a tied head")
    positions: str = axis(
        "learned",
        "position embeddings",
        choices=("learned", "sinusoidal", "rotary", "none"),
    )
    positions_at: str = axis(
        "embedding",
        "where they are added: `mlp` is again before each MLP, `block` is before each block "
        "instead, with the block's number (Universal Transformer)",
        choices=("embedding", "mlp", "block"),
    )
    activation: str = axis(
        "gelu_new",
        "the MLP's nonlinearity; `gelu_new` is GPT-2's tanh approximation, `swiglu` is gated",
        choices=("gelu_new", "gelu", "relu", "relu2", "silu", "tanh", "swiglu"),
    )
    scalar_bias: bool = axis(
        False,
        "whether a learned number is subtracted from each sublayer's input, and inside the MLP",
    )
    shaped_attention: bool = axis(
        False,
        "whether attention's matrix M is a I + b M - c C, C uniform over what a token sees, a, b "
        "and c learned for each head",
    )
    identity_values: bool = axis(
        False, "whether attention has neither W_V nor W_O: heads mix parts of its input"
    )
    head_scale: bool = axis(False, "whether each head's output has a learned factor")
    unit_weights: bool = axis(
        False, "whether matrices are normalized to length 1 along the width after each step"
    )
    hidden_scale: bool = axis(
        False, "whether each channel inside the MLP has a learned factor, initially sqrt(d)"
    )
    logit_scale: bool = axis(False, "whether each token's logit has a learned factor")
    value_residual: str = axis(
        "none",
        "mixes attention's values after block 1 with those of block 1: `half` and half, by "
        "`learned` factors, or uses those of the `first` block alone",
        choices=("none", "half", "learned", "first"),
    )
    cross_layer: str = axis(
        "none",
        "what earlier layers pass to later ones, separated by +: `x0` (the embedding joins each "
        "block's input), `unet`, `dense` (DenseFormer), `backout`",
    )
    x0_scales: str = axis("1 | 0", "initial factors of stream and embedding for `x0`: expressions")
    share_blocks: int = axis(
        0,
        "number of different blocks, each used several times in a row; 0: all differ",
        minimum=0,
        maximum=10_000,
    )
    depth_groups: int = axis(
        0,
        "groups of sublayers that attention_residuals sums before attending to them; 0: none",
        minimum=0,
        maximum=20_000,
    )
    n_streams: int = axis(
        4,
        "number of residual streams, or of parts of one, where the connection has several",
        minimum=1,
        maximum=1024,
    )
    rank: int = axis(32, "rank of laurel_lr's skip matrix", minimum=1, maximum=2**20)
    parametrization: str = axis(
        "standard",
        "`completep` scales sublayer outputs by base_n_layer/L, `depth_mup` by its root, with "
        "matching initial values, learning rates, weight decay and epsilon",
        choices=("standard", "depth_mup", "completep"),
    )
    base_n_layer: int = axis(
        2,
        "depth at which the parametrization's factors for depth are 1",
        minimum=1,
        maximum=10_000,
    )
    base_n_embd: int = axis(
        256,
        "width at which the parametrization's factors for width are 1; attention scores are "
        "divided by the head width, not by its root, at every width",
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
