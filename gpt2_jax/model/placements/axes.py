"""What a placement is made of: the axes of the design space, as data that needs no jax.

One sublayer is `x' = N_post(a·N_skip(x̂) + b·N_out(F(c·N_pre(x̂))))` with `x̂ = N_stream(x)`. Each
field of `Placement` below is one axis of it, or of what stands around it, and at once the config
field `model.<axis>`. A value with a bar, `pre+qk | pre`, gives attention's before it and the MLP's
after it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

BLOCK_SITES = ("stream", "skip", "pre", "out", "post")
QK_SITES = ("qk", "qk_full", "qkv", "cosine", "unit_qk")
ATTENTION_SITES = (*BLOCK_SITES, *QK_SITES, "inner")
MLP_SITES = (*BLOCK_SITES, "inner")
NORMS = (
    "layernorm",
    "rmsnorm",
    "rmsnorm_plus_one",
    "rmsnorm_fixed",
    "scalenorm",
    "l2",
    "dyt",
    "derf",
    "none",
)

# Activations whose MLP has a third matrix, the gate's (Shazeer 2020).
GATED = ("swiglu",)


LONGEST_RULE, LONGEST_EXCEPTIONS = 200, 2000  # characters


def axis(
    default: Any, meaning: str, choices: tuple[str, ...] = (), *, longest: int = 0, **bounds: float
) -> Any:
    """Returns a dataclass field with a meaning and bounds, from which the config field is made.

    Args:
      longest: characters of a string; unset: enough for a rule on each side of a bar.
      bounds: `minimum`, `maximum`, `above`, `below`, as of `config.Field`.
    """
    longest = longest or 2 * LONGEST_RULE
    metadata = {"meaning": meaning, "choices": choices, "longest": longest, **bounds}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A residual connection with its norms, scales and initial values.

    Attributes:
      equation: one block, in the notation of its source. citation: the paper (and code) behind it.
      note: what was adapted or left out.
      The others: the axes; what each means is written beside it.
    """

    equation: str
    citation: str
    note: str = ""

    connection: str = axis("plain", "how branches meet the stream")
    norms: str = axis(
        "pre",
        "where norms stand, parted by +: `stream` (skip and branch both read it), `skip`, `pre`, "
        "`out` (on the branch), `post` (after the add), `inner` (before the last matrix); in "
        "attention also `qk`, `qkv` (each head), `qk_full` (all heads at once), `cosine` (Swin "
        "v2's), `unit_qk` (nGPT's)",
    )
    norm: str = axis("layernorm", "kind of norm", NORMS)
    norm_eps: float = axis(1e-5, "epsilon of the norms", above=0, maximum=1)
    norm_bias: bool = axis(True, "whether layernorm, dyt and derf have a bias")
    norm_gain: str = axis("1", "initial gain of the blocks' norms (not of q, k, v): a rule")
    norm_alpha: str = axis("0.5", "initial slope of dyt and derf: a rule")
    embedding_norm: bool = axis(False, "whether a norm follows the embedding")
    final_norm: str = axis(
        "auto",
        "norm after the last block; `auto`: unless it ends in one",
        ("auto", "yes", "no"),
    )
    skip_scale: str = axis(
        "1", "a: a rule in l, L, s, S, d, t, or `learned_scalar(RULE)`, `_block`, `_vector`"
    )
    profiled: bool = axis(
        False, "whether learned skip factors start from variances measured on the first batch"
    )
    branch_scale: str = axis("1", "b: as skip_scale")
    input_scale: str = axis("1", "c: as skip_scale")
    drop_path: str = axis("0", "probability that a sequence skips the branch: a rule")
    gate_bias: float = axis(
        2.0,
        "how far a gru or highway gate starts towards the skip",
        minimum=-1000,
        maximum=1000,
    )
    exceptions: str = axis(
        "",
        "blocks that differ: `l == 1: norms=qkv+pre | pre, skip_scale=1; l > 6: ...`",
        longest=LONGEST_EXCEPTIONS,
    )
    init: str = axis(
        "normal",
        "initial matrices: `normal` of init_std, `xavier`, or `small` of std sqrt(2/(5 d))",
        ("normal", "xavier", "small"),
    )
    residual_init: str = axis(
        "(2*L)**-0.5",
        "factor on the initial W_O | the MLP's last matrix, which end on the stream: rules",
    )
    value_init: str = axis("1", "factor on the initial W_V | the MLP's first matrix: rules")
    query_init: str = axis("1", "factor on the initial W_Q: a rule")
    key_init: str = axis("1", "factor on the initial W_K: a rule")
    embedding_std: str = axis("std", "std of initial embeddings: a rule")
    embedding_multiplier: str = axis("1", "factor on embeddings: as skip_scale, without l and t")
    multiplied: str = axis(
        "tokens",
        "what it multiplies: the token's vector, or its sum with the position's",
        ("tokens", "sum"),
    )
    fixnorm: bool = axis(False, "whether token vectors have length 1, also in a tied head")
    positions: str = axis(
        "learned",
        "how positions enter",
        ("learned", "sinusoidal", "rotary", "none"),
    )
    positions_at: str = axis(
        "embedding",
        "where they are added: `mlp` is again before each MLP, `block` is before each block "
        "instead, with the block's number (Universal Transformer)",
        ("embedding", "mlp", "block"),
    )
    activation: str = axis(
        "gelu_new",
        "the MLP's nonlinearity; `gelu_new` is GPT-2's tanh approximation, `swiglu` is gated",
        ("gelu_new", "gelu", "relu", "relu2", "silu", "tanh", "swiglu"),
    )
    scalar_bias: bool = axis(
        False, "whether one learned number is taken off each branch's input, and inside the MLP"
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
        False, "whether matrices are brought back to length 1 along the width after each update"
    )
    hidden_scale: bool = axis(
        False, "whether each channel inside the MLP has a learned factor, initially sqrt(d)"
    )
    logit_scale: bool = axis(False, "whether each token's logit has a learned factor")
    values: str = axis(
        "own",
        "attention's values after block 1: its own, mixed with those of block 1 half and half or "
        "by learned factors, or those of block 1 alone",
        ("own", "half", "learned", "first"),
    )
    across: str = axis(
        "none",
        "what earlier layers leave for later ones, parted by +: `x0` (the embedding joins each "
        "block's input), `unet`, `dense` (DenseFormer), `backout`",
    )
    x0_scales: str = axis("1 | 0", "initial factors of stream and embedding for `x0`: rules")
    share_blocks: int = axis(
        0, "different blocks, each used several times in a row; 0: all", minimum=0, maximum=10_000
    )
    depth_groups: int = axis(
        0,
        "groups of sublayers that attention_residuals sums before attending to them; 0: none",
        minimum=0,
        maximum=20_000,
    )
    n_streams: int = axis(
        4,
        "streams of the connections that keep n of them, or parts of one",
        minimum=1,
        maximum=1024,
    )
    rank: int = axis(32, "rank of laurel_lr's skip matrix", minimum=1, maximum=2**20)
    parametrization: str = axis(
        "standard",
        "`completep` scales branches by base_n_layer/L, `depth_mup` by its root, with initial "
        "values, learning rates, decay and epsilon to match",
        ("standard", "depth_mup", "completep"),
    )
    base_n_layer: int = axis(
        2,
        "depth at which the parametrization's factors for depth are 1",
        minimum=1,
        maximum=10_000,
    )
    base_n_embd: int = axis(
        256,
        "width at which its factors for width are 1; attention scores are divided by the head "
        "width, not by its root, at every width",
        minimum=1,
        maximum=2**20,
    )


AXES: dict[str, dataclasses.Field[Any]] = {
    f.name: f for f in dataclasses.fields(Placement) if "meaning" in f.metadata
}
# Those that say nothing but where training starts.
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
# Those that may differ from block to block.
SCALES = ("skip_scale", "branch_scale", "input_scale")
PER_BLOCK = ("norms", *SCALES)


@dataclass(frozen=True)
class Honours:
    """What a connection makes use of; anything else is refused.

    Attributes:
      sites: norm sites of the block. scales: which of `skip_scale`, `branch_scale`, `input_scale`.
      needs: sites without which it would not be itself.
      whole_block: whether it takes both branches at once, so that the sites that are not inside a
        branch, and the skip's scale, must be the same for both.
      places: whether positions can be added between the branches (`positions_at=mlp`).
      several: whether it keeps more than one stream. streams: whether `n_streams` says how many
        of them, or, where it splits one, into how many parts (splits).
      low_rank: whether `rank` says something. groups: whether `depth_groups` does.
      by_depth: whether a block's parameters depend on its number in their shapes.
      unit: whether it brings the stream to length 1, so that its size says nothing.
      final: whether a final norm belongs to it whatever the last sublayer ends in.
    """

    sites: tuple[str, ...] = BLOCK_SITES
    scales: tuple[str, ...] = ("skip_scale", "branch_scale", "input_scale")
    needs: tuple[str, ...] = ()
    whole_block: bool = False
    places: bool = False
    several: bool = False
    streams: bool = False
    splits: bool = False
    low_rank: bool = False
    groups: bool = False
    by_depth: bool = False
    unit: bool = False
    final: bool = False


IN_BRANCH = ("pre", "out")
BRANCH_SCALES = ("branch_scale", "input_scale")
# Those that are the branch's own business, whatever the connection.
IN_BRANCH_SITES = (*IN_BRANCH, "inner", *QK_SITES)
CONNECTIONS: dict[str, Honours] = {
    "plain": Honours(places=True),
    "parallel": Honours(whole_block=True),
    "parallel_shared": Honours(whole_block=True, needs=("pre",)),
    "b2t": Honours(sites=(*IN_BRANCH, "post"), scales=BRANCH_SCALES, needs=("post",)),
    "gpas": Honours(),
    "gru": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES),
    "highway": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES),
    "laurel_rw": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES),
    "laurel_lr": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, low_rank=True),
    "laurel_pa": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, several=True),
    "slerp": Honours(sites=IN_BRANCH, scales=("input_scale",), unit=True),
    "ddl": Honours(sites=IN_BRANCH, scales=("input_scale",), needs=("pre",)),
    "orthogonal": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES),
    "residual_dual": Honours(
        sites=(*IN_BRANCH, "post"), scales=BRANCH_SCALES, needs=("post",), several=True, final=True
    ),
    "siamesenorm": Honours(
        sites=(*IN_BRANCH, "post"), scales=BRANCH_SCALES, needs=("post",), several=True, final=True
    ),
    "hyper_static": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, several=True, streams=True),
    "hyper": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, several=True, streams=True),
    "frac": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, streams=True, splits=True),
    "mhc": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, several=True, streams=True),
    "muddformer": Honours(
        sites=IN_BRANCH, scales=("branch_scale",), needs=("pre",), several=True, by_depth=True
    ),
    "attention_residuals": Honours(
        sites=IN_BRANCH, scales=BRANCH_SCALES, several=True, groups=True
    ),
    "mhc_lite": Honours(sites=IN_BRANCH, scales=BRANCH_SCALES, several=True, streams=True),
}
