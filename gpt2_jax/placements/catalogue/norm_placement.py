"""Presets that differ in where norms are, in the type of norm, or in how blocks are arranged.

GPT-2's positions, activation, biases and sizes are kept unless an axis is set; a note lists other
differences from the source. In equations, `N` is a norm, `A` attention, and `F` the MLP or either
sublayer; if there are two lines, the first is attention and the second the MLP.
"""

from __future__ import annotations

from typing import Any

from gpt2_jax.placements.axes import Placement

# As in fairseq and tensor2tensor: unit variance on the stream, rows of length 1 in a tied head.
UNIT_EMBEDDING: dict[str, Any] = {"embedding_std": "d**-0.5", "embedding_multiplier": "d**0.5"}
# OLMo's full_megatron: one std for all, times 1/sqrt(2 L) for output projections.
MEGATRON: dict[str, Any] = {"init": "small", "embedding_std": "(2/(5*d))**0.5"}
XAVIER: dict[str, Any] = {"init": "xavier", "residual_init": "1"}
# fairseq draws W_Q, W_K and W_V as one Xavier matrix (3 d, d), or as three with gain 1/sqrt(2).
# Either way their std is 1/sqrt(2) times that of a square Xavier matrix.
FAIRSEQ: dict[str, Any] = {
    **XAVIER,
    "value_init": "2**-0.5 | 1",
    "query_init": "2**-0.5",
    "key_init": "2**-0.5",
}
# Since 2020 fairseq has used PyTorch's default in the MLP, std 1/sqrt(3 fan_in). The factors are
# the ratio of that to Xavier's std for an MLP of width 4 d.
FAIRSEQ_2020: dict[str, Any] = {
    **FAIRSEQ,
    "value_init": "2**-0.5 | (5/6)**0.5",
    "residual_init": "1 | (5/24)**0.5",
}

# Of an encoder of L blocks that a decoder of M blocks reads, else of a tower of S sublayers.
SUB_LN_GAIN = "where(M > 0, sqrt(log(3*M)*log(2*L)/3), sqrt(log(S)))"

NORM_PLACEMENT: dict[str, Placement] = {
    "pre_ln": Placement(
        equation="x' = x + F(N(x))",
        citation="GPT-2 (Radford et al. 2019), section 2.3; openai/gpt-2 src/model.py; init: "
        "karpathy/nanoGPT model.py",
    ),
    "pre_ln_xavier": Placement(
        equation="x' = x + F(N(x))",
        citation="the placement of pre_ln with the initial values of post_ln",
        note="compares Pre-LN and Post-LN with the same initial values, as tensor2tensor does",
        **XAVIER,
        **UNIT_EMBEDDING,
    ),
    "post_ln": Placement(
        equation="x' = N(x + F(x))",
        citation="Vaswani et al. 2017, 1706.03762, section 3.1; tensorflow/tensor2tensor "
        "models/transformer.py",
        note="learned positions and GELU instead of sinusoids and ReLU",
        norm_sites="post",
        **XAVIER,
        **UNIT_EMBEDDING,
    ),
    "sandwich_ln": Placement(
        equation="x' = x + N2(F(N1(x)))",
        citation="CogView (Ding et al. 2021), 2105.13290; THUDM/CogView mpu/sparse_transformer.py",
        note="omits the division by max|x|/8, which only matters for fp16's range",
        norm_sites="pre+out",
    ),
    "peri_ln": Placement(
        equation="x0 = N(embedding); x' = x + N2(F(N1(x)))",
        citation="Kim et al. 2025, 2502.02732; allenai/OLMo-core "
        "src/olmo_core/nn/transformer/block.py (PeriNormTransformerBlock)",
        norm_type="rmsnorm",
        norm_sites="pre+out",
        embedding_norm=True,
    ),
    "gemma2": Placement(
        equation="x0 = sqrt(d) embedding; x' = x + N2(F(N1(x))), N's gain 1 + w",
        citation="Gemma 2 (2408.00118); google/gemma_pytorch gemma/model.py",
        note="only the placement: no soft caps, alternating windows, rotary positions or GeGLU",
        norm_type="rmsnorm_plus_one",
        norm_eps=1e-6,
        norm_sites="pre+out",
        embedding_multiplier="d**0.5",
    ),
    "olmo2": Placement(
        equation="x' = x + N(F(x)), attention with N(q), N(k) over the whole width",
        citation="OLMo 2 (2501.00656); allenai/OLMo-core ReorderedNormTransformerBlock",
        note="only the placement: no rotary positions, SwiGLU or z-loss",
        norm_type="rmsnorm",
        norm_eps=1e-6,
        norm_sites="qk_full+out | out",
        residual_init="1",
    ),
    "swin_v2": Placement(
        equation="x' = x + N(F(x)), N's gain and bias initially 0, cosine attention",
        citation="Liu et al. 2021, 2111.09883; microsoft/Swin-Transformer "
        "models/swin_transformer_v2.py",
        note="omits the position bias, and the extra norm every 6 blocks of the largest model",
        norm_sites="cosine+out | out",
        norm_gain="0",
        residual_init="1",
    ),
    "sub_ln": Placement(
        equation="x' = x + W_O N(heads(N(x)))\nx' = x + W_2 N(f(W_1 N(x)))",
        citation="Magneto (Wang et al. 2022), 2210.06423; microsoft/torchscale "
        "component/multihead_attention.py, feedforward_network.py",
        note="W_V, W_O, W_1 and W_2 are scaled by sqrt(log(2 L)); by sqrt(log(3 M) log(2 N)/3) in "
        "an encoder of N blocks that a decoder of M reads, and by sqrt(log(3 M)) in that decoder, "
        "except in cross-attention, which also has no norm before W_O, as in torchscale; gain 1 on "
        "W_Q and W_K, as in the paper's algorithm; torchscale defines gain 1/sqrt(2) for attention "
        "but never applies it",
        norm_sites="pre+inner | pre | pre+inner",
        init="xavier",
        residual_init=f"{SUB_LN_GAIN} | 1 | {SUB_LN_GAIN}",
        value_init=f"{SUB_LN_GAIN} | 1 | {SUB_LN_GAIN}",
        **UNIT_EMBEDDING,
    ),
    "normformer": Placement(
        equation="x' = x + N(W_O (c_h head_h(N(x))))\nx' = w x + W_2 N(f(W_1 N(x)))",
        citation="Shleifer et al. 2021, 2110.09456; facebookresearch/fairseq "
        "modules/transformer_layer.py",
        note="c_h is applied before W_O, as in the paper's equation; fairseq scales slices of "
        "W_O's output; initial values are fairseq's",
        norm_sites="pre+out | pre+inner",
        head_scale=True,
        skip_scale="1 | learned_vector(1)",
        **FAIRSEQ_2020,
        **UNIT_EMBEDDING,
    ),
    "stream_norm": Placement(
        equation="x̂ = N(x); x' = x̂ + F(x̂)",
        citation="the MLP's placement in HybridNorm (2503.04598), in both sublayers; unpublished",
        norm_sites="stream",
    ),
    "pre_post_ln": Placement(
        equation="x' = N2(x + F(N1(x)))",
        citation="lucidrains/x-transformers, pre_and_post_norm",
        norm_sites="pre+post",
    ),
    "b2t": Placement(
        equation="h = N(x + A(x)); x' = N(x + h + F(h))",
        citation="Takase et al. 2022, 2206.00330; takase/b2t_connection "
        "fairseq/modules/transformer_layer.py",
        note="initial values as in the code: fairseq's, all scaled by 1/sqrt(L); with "
        "cross-attention C, h = N(h1 + C(h1)) after h1 = N(x + A(x)), as in the code",
        connection="b2t",
        norm_sites="post",
        init="xavier",
        residual_init="L**-0.5 | (5/(24*L))**0.5",
        value_init="(2*L)**-0.5 | (5/(6*L))**0.5",
        query_init="(2*L)**-0.5",
        key_init="(2*L)**-0.5",
        **UNIT_EMBEDDING,
    ),
    "mix_ln": Placement(
        equation="x' = N(x + F(x)) in blocks l <= L/4, x' = x + F(N(x)) in the others",
        citation="Li et al. 2024, 2412.13795; pixeli99/MixLN peft_pretraining/modeling_llama.py",
        note="LayerNorm instead of the code's RMSNorm; GPT-2's embedding, where the code uses std "
        "sqrt(2/5) and an untied head",
        layer_overrides="l <= floor(L/4): norm_sites=post",
        residual_init="1",
    ),
    "hybridnorm": Placement(
        equation="x' = x + A(x) with N(q), N(k), N(v)\nx̂ = N(x); x' = x̂ + F(x̂)",
        citation="Zhuo et al. 2025, 2503.04598; BryceZhuo/HybridNorm dense_model/olmo/model.py",
        norm_type="rmsnorm",
        norm_sites="qkv | stream",
        **MEGATRON,
    ),
    "hybridnorm_star": Placement(
        equation="as hybridnorm; block 1: x' = x + A(N(x)) with N(q), N(k), N(v), then x + F(N(x))",
        citation="Zhuo et al. 2025, 2503.04598, HybridNorm*",
        norm_type="rmsnorm",
        norm_sites="qkv | stream",
        layer_overrides="l == 1: norm_sites=qkv+pre | pre",
        **MEGATRON,
    ),
    "parallel_gptj": Placement(
        equation="x' = x + A(N(x)) + F(N(x)), one N",
        citation="GPT-J (Wang & Komatsuzaki 2021); kingoflolz/mesh-transformer-jax "
        "mesh_transformer/layers.py",
        note="learned instead of rotary positions; other matrices are initialized as in GPT-2; "
        "with cross-attention C, x + A + C + F, which is not published",
        connection="parallel_shared",
        residual_init="2/(L*d**0.5*std)",
    ),
    "parallel_neox": Placement(
        equation="x' = x + A(N1(x)) + F(N2(x))",
        citation="GPT-NeoX (Black et al. 2022), 2204.06745; EleutherAI/gpt-neox "
        "megatron/model/transformer.py, init_functions.py",
        note="learned instead of rotary positions; with cross-attention C, x + A + C + F, which is "
        "not published",
        connection="parallel",
        init="small",
        residual_init="2/(L*d**0.5)/(2/(5*d))**0.5",
        embedding_std="(2/(5*d))**0.5",
    ),
    "dyt": Placement(
        equation="x' = x + F(N(x)), N(x) = g tanh(a x); x0 = m embedding, m initially sqrt(d)",
        citation="Zhu et al. 2025, 2503.10622; jiachenzhu/DyT other_tasks/LLaMA",
        note="initial slopes follow the paper's table by width; m also multiplies the position",
        norm_type="dyt",
        norm_bias=False,
        norm_alpha="where(d <= 2048, 1, where(d <= 4096, 0.8, 0.2)) | "
        "where(d <= 1024, 1, where(d <= 2048, 0.5, where(d <= 4096, 0.2, 0.05)))",
        embedding_multiplier="learned_scalar(d**0.5)",
        multiplier_target="sum",
    ),
    "derf": Placement(
        equation="x' = x + F(N(x)), N(x) = g erf(a x + s) + b; x0 = m embedding, m_0 = sqrt(d)",
        citation="2512.10938; zlab-princeton/Derf, language model",
        note="a is initially 1, the code's default; the paper does not state the value of its runs",
        norm_type="derf",
        norm_alpha="1",
        embedding_multiplier="learned_scalar(d**0.5)",
        multiplier_target="sum",
    ),
    "scalenorm_fixnorm": Placement(
        equation="x' = x + F(N(x)), N(x) = g x/|x|; token vectors of length 1, "
        "times sqrt(d) at the input",
        citation="Nguyen & Salazar 2019, 1910.05895; tnq177/transformers_without_tears layers.py",
        norm_type="scalenorm",
        init="small",
        residual_init="1",
        fixnorm=True,
        **UNIT_EMBEDDING,
    ),
    "albert": Placement(
        equation="x0 = N(embedding); x' = N(x + F(x)), one block applied L times",
        citation="Lan et al. 2019, 1909.11942; google-research/albert modeling.py",
        note="the embedding is not factorized",
        norm_sites="post",
        embedding_norm=True,
        residual_init="1",
        share_blocks=1,
    ),
    "universal": Placement(
        equation="x̂ = x + P(position) + P(l); h = N(x̂ + A(x̂)); x' = N(h + F(h)), "
        "one block applied L times",
        citation="Dehghani et al. 2018, 1807.03819, section 2.1",
        note="the number of blocks is fixed (no adaptive halting); positions count from 0",
        norm_sites="post",
        positions="sinusoidal",
        positions_at="block",
        share_blocks=1,
        **XAVIER,
        **UNIT_EMBEDDING,
    ),
    "summed_residual": Placement(
        equation="x' = x + A(x) + F(x)",
        citation="as printed in textbooks",
        note="has a final norm, since no sublayer ends in one",
        connection="parallel",
        norm_sites="none",
    ),
    "normed_skip": Placement(
        equation="x' = N(x) + A(x) + F(x)",
        citation="as printed in textbooks",
        note="has a final norm, since no sublayer ends in one",
        connection="parallel",
        norm_sites="skip",
    ),
    "normed_stream_mlp": Placement(
        equation="x' = x + A(N(x))\nx̂ = N(x); x' = x̂ + F(x̂)",
        citation="as printed in textbooks",
        norm_sites="pre | stream",
    ),
}
