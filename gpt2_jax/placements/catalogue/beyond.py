"""Presets with another skip than the identity, with several streams, or across layers.

Each keeps GPT-2's positions, activation, biases and sizes; what its source has besides is in its
note.
"""

from __future__ import annotations

from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue.norm_placement import FAIRSEQ_2020, UNIT_EMBEDDING

BEYOND: dict[str, Placement] = {
    "laurel_rw": Placement(
        equation="x' = a F(N(x)) + b x, (a, b) = softmax(w) of each sublayer, equal at first",
        citation="LAuReL (Menghani et al. 2024), 2411.07501, RW",
        note="the paper leaves the normalization (softmax or sigmoid) and the start open",
        connection="laurel_rw",
    ),
    "laurel_lr": Placement(
        equation="x' = F(N(x)) + B A x + x, A of rank r, B initially 0",
        citation="LAuReL (Menghani et al. 2024), 2411.07501, eq. 3, LR",
        note="A maps to rank r and B back; the paper's text names them in the other order too",
        connection="laurel_lr",
    ),
    "laurel_pa": Placement(
        equation="x_{s+1} = F(N(x_s)) + x_s + sum_j g_sj x_{s-j}, j = 0, 1, 2, g initially 0",
        citation="LAuReL (Menghani et al. 2024), 2411.07501, PA",
        note="with h the identity and k = 3, for each sublayer; the paper leaves the start open",
        connection="laurel_pa",
    ),
    "ngpt": Placement(
        equation="x' = |x + a (|F(x)| - x)|, |.| of length 1, a of the width, initially 0.05; "
        "q, k, the MLP's hidden channels and logits with learned factors; matrices of length 1",
        citation="nGPT (Loshchilov et al. 2024), 2410.01131; NVIDIA/ngpt model.py, train.py",
        note="vector biases stay; train it without warm-up, and untied (model.tie_head=False); "
        "rotary positions rotate channels i and i + K/2 together, as in the paper, where "
        "NVIDIA's code pairs sines and cosines of different angles, which is not a rotation",
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
        note="d_v = 1, v as in the paper; the code's default is 4 σ(w_v x)",
        norm_type="rmsnorm",
        connection="ddl",
    ),
    "orthogonal_residual": Placement(
        equation="x' = x + f - (<x, f>/|x|^2) x, f = F(N(x))",
        citation="2505.11881; BootsofLagrangian/ortho-residual",
        connection="orthogonal",
    ),
    "residual_dual": Placement(
        equation="o = F(x); x' = N(x + o); y' = y + o; at the end x + N(y)",
        citation="ResiDual (Xie et al. 2023), 2304.14802; microsoft/ResiDual "
        "resi_dual/resi_dual_layers.py",
        note="initial values from fairseq, on which the code is built; the paper states none",
        connection="residual_dual",
        norm_sites="post",
        **FAIRSEQ_2020,
        **UNIT_EMBEDDING,
    ),
    "siamesenorm": Placement(
        equation="o = F(N(x + N_y(y))); x' = N_x(x + o/sqrt(2 l)); y' = y + o; at the end x + N(y)",
        citation="SiameseNorm, 2602.08064, algorithm 1 with normed input and depth scaling",
        note="as in the paper; in the released language model (OLMo_model_hybrid_pre.py) attention "
        "norms q, k and v instead of its input, x is normed once per block, before the MLP, and "
        "the head reads N(N(x) + N(y)), as it does in the released vision model",
        connection="siamesenorm",
        norm_sites="pre+post",
    ),
    "hyper_connections": Placement(
        equation="u = sum_i a_i h_i; h_j' = sum_i r_ij h_i + b_j F(N(u)), n streams; "
        "a, r, b with a part that depends on the token; at the end sum_i h_i",
        citation="Zhu et al. 2024, 2409.19606, eqs. 10 to 14; lucidrains/hyper-connections",
        note="without the factor sqrt(n) on initial output matrices, whose direction is not stated",
        connection="hyper",
    ),
    "hyper_connections_static": Placement(
        equation="u = sum_i a_i h_i; h_j' = sum_i r_ij h_i + b_j F(N(u)), n streams; "
        "at the end sum_i h_i",
        citation="Zhu et al. 2024, 2409.19606, eq. 2",
        note="without the factor sqrt(n) on initial output matrices, whose direction is not stated",
        connection="hyper_static",
    ),
    "frac_connections": Placement(
        equation="hyper-connections between n parts of one stream, each of width d/n",
        citation="2503.14125, algorithm 2 (dynamic)",
        connection="frac",
    ),
    "mhc": Placement(
        equation="hyper-connections with a = σ(.), b = 2 σ(.), r = Sinkhorn_20(exp(.))",
        citation="mHC (DeepSeek 2025), 2512.24880, eqs. 7 to 9",
        note="initial values from FFTYYY/mhc-lite hyper_conn/mhc.py; the paper states only 0.01; "
        "the head reads N(sum_i h_i), as with hyper_connections, while mhc_lite reads "
        "sum_i N(h_i), so the two differ in that as well",
        connection="mhc",
    ),
    "mhc_lite": Placement(
        equation="hyper-connections with a = σ(.), b = 2 σ(.), r = sum_p softmax(.)_p P_p over the "
        "n! permutations; at the end sum_i N(h_i)",
        citation="mHC-lite, 2601.05732; FFTYYY/mhc-lite hyper_conn/mhc_lite.py, model.py",
        note="the code norms each stream before it sums them, for its mHC baseline too; mhc here "
        "sums first, so the two differ in that as well",
        connection="mhc_lite",
    ),
    "denseformer": Placement(
        equation="X_l = block l of x with F(N(x)) added twice; x' = sum_j a_lj X_j, j = 0 .. l",
        citation="Pagliardini et al. 2024, 2402.02622, eq. 2; epfml/DenseFormer "
        "denseformer/denseformer.py",
        note="dilation 1, period 1; a is not decayed, as it is by the code's default",
        cross_layer="dense",
    ),
    "attention_residuals": Placement(
        equation="x_s = sum_i softmax_i(w_s N_s(v_i)) v_i, v_0 the embedding, v_s = F(N(x_s)); "
        "the head reads such a sum too",
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
        equation="X_l = h + F(N(h)), h = r + A(N(q), N(k), N(v)); after block l each of q, k, v, "
        "r is sum_j w_j X_j, w = W_2 gelu(W_1 N(X_l)) + e_l for each token",
        citation="MUDDFormer (Xiao et al. 2025), 2502.12170, eqs. 5 to 10; Caiyun-AI/MUDDFormer",
        note="without the optional norms around the sums and the growing hidden width; of the "
        "paper's size, where the code widens the last map and shares block 1's three norms",
        connection="muddformer",
    ),
    "simplified_skipless": Placement(
        equation="x' = g_A A(N(x)), A = (a I + b M - c C) heads(N(x)), W_Q = 0\n"
        "x' = s x + g_F F(N(x)), g_F initially 0.1",
        citation="He & Hofmann 2023, 2311.01906 (SAS); bobby-he/simplified_transformers",
        note="without the W_V that the code keeps in the first block",
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
        note="the skips alone, on GPT-2",
        cross_layer="unet",
    ),
    "value_residual": Placement(
        equation="x' = x + F(N(x)), attention with V_l <- (V_1 + V_l)/2",
        citation="ResFormer (Zhou et al. 2024), 2410.17897; Zcchill/Value-Residual-Learning",
        note="value_residual=learned for its learned factors",
        value_residual="half",
    ),
    "svformer": Placement(
        equation="x' = x + F(N(x)), attention with V_l = V_1",
        citation="SVFormer (Zhou et al. 2024), 2410.17897; Zcchill/Value-Residual-Learning",
        value_residual="first",
    ),
}
