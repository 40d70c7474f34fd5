"""Presets with a non-identity skip, with several residual streams, or with links across layers.

GPT-2's positions, activation, biases and sizes are kept unless an axis is set; a note lists other
differences from the source.
"""

from __future__ import annotations

from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue.norm_placement import FAIRSEQ_2020, UNIT_EMBEDDING

BEYOND: dict[str, Placement] = {
    "laurel_rw": Placement(
        equation="x' = a F(N(x)) + b x, (a, b) = softmax(w), one w per sublayer, initially 0",
        citation="LAuReL (Menghani et al. 2024), 2411.07501, RW",
        note="the paper leaves open softmax or sigmoid, and the initial values",
        connection="laurel_rw",
    ),
    "laurel_lr": Placement(
        equation="x' = F(N(x)) + B A x + x, B A of rank r, B initially 0",
        citation="LAuReL (Menghani et al. 2024), 2411.07501, eq. 3, LR",
        note="A projects down to rank r and B back up; the paper's text also swaps the two names",
        connection="laurel_lr",
    ),
    "laurel_pa": Placement(
        equation="x_{s+1} = F(N(x_s)) + x_s + sum_j g_sj x_{s-j}, j = 0, 1, 2, g initially 0",
        citation="LAuReL (Menghani et al. 2024), 2411.07501, PA",
        note="h is the identity, k = 3, applied per sublayer; the paper states no initial values",
        connection="laurel_pa",
    ),
    "ngpt": Placement(
        equation="x' = |x + a (|F(x)| - x)|, |.| scaled to length 1, a per channel, initially "
        "0.05; learned factors on q, k, the MLP's hidden channels and logits; matrices scaled to "
        "length 1 along the width after each step",
        citation="nGPT (Loshchilov et al. 2024), 2410.01131; NVIDIA/ngpt model.py, train.py",
        note="bias vectors are kept; train without warm-up and with an untied head "
        "(model.tie_head=False); rotary positions rotate channels i and i + K/2 together, as in "
        "the paper; NVIDIA's code pairs sines and cosines of different angles: not a rotation",
        connection="slerp",
        norm_sites="unit_qk | none",
        norm_type="l2",
        final_norm="no",
        positions="rotary",
        activation="swiglu",
        embedding_std="d**-0.5",
        unit_weights=True,
        hidden_scale=True,
        logit_scale=True,
    ),
    "ddl": Placement(
        equation="x' = x + b (v - k^T x) k, c = N(x), k = F(c)/|F(c)|, b = 2 σ(w_b c), v = w_v c",
        citation="Deep Delta Learning, 2601.00417; yifanzhang-pro/deep-delta-learning",
        note="d_v = 1; v as in the paper (the code's default is 4 σ(w_v x))",
        norm_type="rmsnorm",
        connection="ddl",
    ),
    "orthogonal_residual": Placement(
        equation="x' = x + f - (<x, f>/|x|^2) x, f = F(N(x))",
        citation="2505.11881; BootsofLagrangian/ortho-residual",
        connection="orthogonal",
    ),
    "residual_dual": Placement(
        equation="o = F(x); x' = N(x + o); y' = y + o; the head reads x + N(y)",
        citation="ResiDual (Xie et al. 2023), 2304.14802; microsoft/ResiDual "
        "resi_dual/resi_dual_layers.py",
        note="initial values are fairseq's, on which the code is built; the paper states none",
        connection="residual_dual",
        norm_sites="post",
        **FAIRSEQ_2020,
        **UNIT_EMBEDDING,
    ),
    "siamesenorm": Placement(
        equation="o = F(N(x + N_y(y))); x' = N_x(x + o/sqrt(2 l)); y' = y + o; "
        "the head reads x + N(y)",
        citation="SiameseNorm, 2602.08064, algorithm 1 with normalized input and depth scaling",
        note="as in the paper, with sqrt(3 l) in blocks with cross-attention; the released "
        "language model (OLMo_model_hybrid_pre.py) normalizes "
        "q, k and v instead of attention's input, normalizes x once per block, before the MLP, and "
        "its head reads N(N(x) + N(y)), as in the released vision model",
        connection="siamesenorm",
        norm_sites="pre+post",
    ),
    "hyper_connections": Placement(
        equation="u = sum_i a_i h_i; h_j' = sum_i r_ij h_i + b_j F(N(u)), n streams; "
        "a, r, b have a static and a token-dependent part; the head reads N(sum_i h_i)",
        citation="Zhu et al. 2024, 2409.19606, eqs. 10 to 14; lucidrains/hyper-connections",
        note="omits the factor sqrt(n) on initial output matrices, as the paper does not say "
        "whether to multiply or divide by it",
        connection="hyper",
    ),
    "hyper_connections_static": Placement(
        equation="u = sum_i a_i h_i; h_j' = sum_i r_ij h_i + b_j F(N(u)), n streams; "
        "the head reads N(sum_i h_i)",
        citation="Zhu et al. 2024, 2409.19606, eq. 2",
        note="omits the factor sqrt(n) on initial output matrices, as the paper does not say "
        "whether to multiply or divide by it",
        connection="hyper_static",
    ),
    "frac_connections": Placement(
        equation="hyper-connections among n parts of one stream, each of width d/n",
        citation="2503.14125, algorithm 2 (dynamic)",
        connection="frac",
    ),
    "mhc": Placement(
        equation="hyper-connections with a = σ(.), b = 2 σ(.), r = Sinkhorn_20(exp(.))",
        citation="mHC (DeepSeek 2025), 2512.24880, eqs. 7 to 9",
        note="initial values are those of FFTYYY/mhc-lite hyper_conn/mhc.py; the paper states only "
        "0.01; the head reads N(sum_i h_i), as in hyper_connections; in mhc_lite it reads "
        "sum_i N(h_i)",
        connection="mhc",
    ),
    "mhc_lite": Placement(
        equation="hyper-connections with a = σ(.), b = 2 σ(.), r = sum_p softmax(.)_p P_p over the "
        "n! permutations; the head reads sum_i N(h_i)",
        citation="mHC-lite, 2601.05732; FFTYYY/mhc-lite hyper_conn/mhc_lite.py, model.py",
        note="the code normalizes each stream before summing them, in its mHC baseline too; the "
        "preset mhc sums first",
        connection="mhc_lite",
    ),
    "denseformer": Placement(
        equation="h = x + A(N(x)); X_l = h + F(N(h)); x' = sum_j a_lj X_j, j = 0 .. l",
        citation="Pagliardini et al. 2024, 2402.02622, eq. 2; epfml/DenseFormer "
        "denseformer/denseformer.py",
        note="dilation 1, period 1; no weight decay on a (the code decays it by default)",
        cross_layer="dense",
    ),
    "attention_residuals": Placement(
        equation="x_s = sum_i softmax_i(w_s N_s(v_i)) v_i, v_0 the embedding, v_s = F(N(x_s)); "
        "the head also reads such a sum",
        citation="2603.15031, eqs. 1 to 4 (full)",
        norm_type="rmsnorm",
        connection="attention_residuals",
    ),
    "attention_residuals_block": Placement(
        equation="as attention_residuals, over the embedding and the sums of 8 groups of sublayers",
        citation="2603.15031, eqs. 5 and 6 (block)",
        norm_type="rmsnorm",
        connection="attention_residuals",
        depth_groups=8,
    ),
    "muddformer": Placement(
        equation="X_l = h + F(N(h)), h = r + A(N(q), N(k), N(v)); after block l, each of q, k, v, "
        "r is sum_j w_j X_j, w = W_2 gelu(W_1 N(X_l)) + e_l per token",
        citation="MUDDFormer (Xiao et al. 2025), 2502.12170, eqs. 5 to 10; Caiyun-AI/MUDDFormer",
        note="omits the optional norms around the sums and the growing hidden width; maps have the "
        "paper's size (the code widens the last one and shares block 1's three norms)",
        connection="muddformer",
    ),
    "simplified_skipless": Placement(
        equation="x' = g_A A(N(x)), A = (a I + b M - c C) heads(N(x)), initially W_Q = 0\n"
        "x' = s x + g_F F(N(x)), g_F initially 0.1",
        citation="He & Hofmann 2023, 2311.01906 (SAS); bobby-he/simplified_transformers",
        note="omits the W_V that the code keeps in the first block",
        norm_type="rmsnorm",
        skip_scale="0 | learned_scalar(1)",
        branch_scale="learned_scalar(1) | learned_scalar(0.1)",
        query_init="0",
        residual_init="1",
        shaped_attention=True,
        identity_values=True,
    ),
    "unet_skips": Placement(
        equation="x' = x + F(N(x)); block L/2 + j reads x + w_j x_i, i = L/2 + 1 - j",
        citation="KellerJordan/modded-nanogpt records/track_1_short/2024-11-10_UNetDoubleLr",
        note="only the skips, on GPT-2",
        cross_layer="unet",
    ),
    "value_residual": Placement(
        equation="x' = x + F(N(x)), attention with V_l <- (V_1 + V_l)/2",
        citation="ResFormer (Zhou et al. 2024), 2410.17897; Zcchill/Value-Residual-Learning",
        note="placement.value_residual=learned makes the two factors learned; of self-attention "
        "only, in an encoder and a decoder separately",
        value_residual="half",
    ),
    "svformer": Placement(
        equation="x' = x + F(N(x)), attention with V_l = V_1",
        citation="SVFormer (Zhou et al. 2024), 2410.17897; Zcchill/Value-Residual-Learning",
        value_residual="first",
    ),
}
