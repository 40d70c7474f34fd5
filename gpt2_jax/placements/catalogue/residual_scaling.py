"""Presets that differ in how skip and branch are weighed: constants, learned factors, gates, inits.

Each keeps GPT-2's positions, activation, biases and sizes; what its source has besides is in its
note.
"""

from __future__ import annotations

from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue.norm_placement import FAIRSEQ, UNIT_EMBEDDING

RESIDUAL_SCALING: dict[str, Placement] = {
    "deepnorm": Placement(
        equation="x' = N(a x + F(x)), a = (2 L)^1/4, W_V, W_O, W_1, W_2 scaled by (8 L)^-1/4",
        citation="Wang et al. 2022, 2203.00555; microsoft/torchscale architecture/decoder.py",
        note="initial values as in the paper's algorithm, with gain 1 on W_Q and W_K; torchscale "
        "defines gain 1/sqrt(2) for attention but never applies it",
        norm_sites="post",
        skip_scale="(2*L)**0.25",
        init="xavier",
        residual_init="(8*L)**-0.25",
        value_init="(8*L)**-0.25",
        **UNIT_EMBEDDING,
    ),
    "admin": Placement(
        equation="x' = N(w_s x + F(x)), w_s of the width, w_1 = 1 and w_{s+1}^2 = w_s^2 Var(x_s) + "
        "Var(F(x_s)) initially, measured on the first batch",
        citation="Liu et al. 2020, 2004.08249; LiyuanLucasLiu/Transformer-Clinic "
        "fairseq/fairseq/modules/transformer_layer.py",
        note="as the code measures it, but without dropout; the paper's formula leaves out the "
        "embedding's variance",
        norm_sites="post",
        skip_scale="learned_vector(1)",
        data_dependent_init=True,
        **FAIRSEQ,
        **UNIT_EMBEDDING,
    ),
    "rezero": Placement(
        equation="x' = x + a_l F(x), a_l initially 0, one per block",
        citation="Bachlechner et al. 2020, 2003.04887; majumderb/rezero rztx.py",
        norm_type="none",
        norm_sites="none",
        branch_scale="learned_block(0)",
        residual_init="1",
        embedding_multiplier="d**0.5",
    ),
    "skipinit": Placement(
        equation="x' = x + a_s F(x), a_s initially 0, one per sublayer",
        citation="De & Smith 2020, 2002.10444",
        note="published for ResNets; embedding as in rezero",
        norm_type="none",
        norm_sites="none",
        branch_scale="learned_scalar(0)",
        residual_init="1",
        embedding_multiplier="d**0.5",
    ),
    "layerscale": Placement(
        equation="x' = x + g F(N(x)), g of the width, initially 0.1 (L <= 18), 1e-5 or 1e-6",
        citation="CaiT (Touvron et al. 2021), 2103.17239; facebookresearch/deit cait_models.py",
        note="first values by depth as the paper has them; the code's default is 1e-4",
        branch_scale="learned_vector(where(L <= 18, 0.1, where(L <= 24, 1e-5, 1e-6)))",
        residual_init="1",
    ),
    "keel": Placement(
        equation="x' = N2(S x + F(N1(x))); the first attention x + F(N1(x)), the first MLP "
        "N2(x + F(N1(x)))",
        citation="Keel, 2601.19895",
        note="GPT-2's embedding: the paper does not state its own",
        norm_type="rmsnorm",
        norm_sites="pre+post",
        skip_scale="where(s <= 2, 1, S)",
        layer_overrides="l == 1: norm_sites=pre | pre+post",
        residual_init="1",
    ),
    "lns": Placement(
        equation="x' = x + F(N(x)/sqrt(l))",
        citation="Sun et al. 2025, 2502.05795; lmsdss/LayerNorm-Scaling",
        note="LayerNorm in place of the code's RMSNorm",
        input_scale="l**-0.5",
        residual_init="1",
    ),
    "gpas": Placement(
        equation="h = x + F(N(x)); x' = h - silu(g_l) sg(h), g_l initially 0, one per block",
        citation="Chen et al. 2025, 2506.22049; dandingsky/GPAS",
        note="with norm_sites=post the shortcut is scaled instead, as the paper does it; LayerNorm "
        "and GPT-2's embedding in place of the code's RMSNorm and std sqrt(2/5)",
        connection="gpas",
        residual_init="1",
    ),
    "prores": Placement(
        equation="x' = x + min(t/(1000 l), 1) F(N(x)), t the steps done",
        citation="ProRes, 2603.05369; dandingsky/ProRes",
        note="LayerNorm and GPT-2's embedding in place of the code's RMSNorm and std 0.02 sqrt(d)",
        branch_scale="minimum(t/(1000*l), 1)",
        residual_init="1",
    ),
    "t_fixup": Placement(
        equation="x' = x + F(x), W_V, W_O, W_1, W_2 scaled by 0.67 L^-1/4, embeddings by "
        "(9 L)^-1/4",
        citation="Huang et al. 2020; layer6ai-labs/T-Fixup fairseq/modules/transformer_layer.py, "
        "fairseq/models/transformer.py",
        note="the rule of the published encoder, whose blocks have two sublayers as these do; "
        "(9 L)^-1/4 on the matrices belongs to the decoder, which has three; W_Q and W_K keep "
        "fairseq's gain 1/sqrt(2), which the code undoes for W_V alone",
        norm_type="none",
        norm_sites="none",
        init="xavier",
        residual_init="0.67*L**-0.25",
        value_init="0.67*L**-0.25",
        query_init="2**-0.5",
        key_init="2**-0.5",
        embedding_std="d**-0.5*(9*L)**-0.25",
        embedding_multiplier="d**0.5",
    ),
    "fixup": Placement(
        equation="x' = x + a A(x - b)\nx' = x + a (W_2 (f(W_1 (x - b1) - b2) - b3)), "
        "W_O = W_2 = 0, W_Q, W_K, W_V scaled by S^-1/6, W_1 by S^-1/2",
        citation="Zhang et al. 2019, 1901.09321, and their Transformer; hongyi-zhang/Fixup "
        "fairseq/fairseq/models/transformer_zero.py, modules/multihead_attention_zero.py",
        note="S counts this model's branches; the tied head is not zero, and vector biases stay; "
        "W_Q, W_K and W_V are fairseq's one Xavier matrix, hence the 1/sqrt(2)",
        norm_type="none",
        norm_sites="none",
        branch_scale="learned_scalar(1)",
        scalar_bias=True,
        init="xavier",
        residual_init="0",
        value_init="2**-0.5*S**(-1/6) | S**-0.5",
        query_init="2**-0.5*S**(-1/6)",
        key_init="2**-0.5*S**(-1/6)",
        **UNIT_EMBEDDING,
    ),
    "ds_init": Placement(
        equation="x' = N(x + F(x)), the matrices of block l scaled by 1/sqrt(l)",
        citation="Zhang et al. 2019, 1908.11365; bzhangGo/zero models/transformer_fuse.py",
        note="as the paper says; its code shrinks by l^-1/4. What later papers call by the name is "
        "pre_ln with residual_init=(2*l)**-0.5",
        norm_sites="post",
        init="xavier",
        residual_init="l**-0.5",
        value_init="l**-0.5",
        query_init="l**-0.5",
        key_init="l**-0.5",
        **UNIT_EMBEDDING,
    ),
    "scaled_init": Placement(
        equation="x' = x + F(N(x)), W_O and W_2 scaled by 1/sqrt(2 L)",
        citation="Megatron-LM (Shoeybi et al. 2019), 1909.08053; GPT-2, section 2.3",
        note="what pre_ln is here; plain Pre-LN is pre_ln with residual_init=1",
        residual_init="(2*L)**-0.5",
    ),
    "completep": Placement(
        equation="x' = x + F(N(x)) L_base/L, with learning rates, decay and epsilon to match",
        citation="Dey et al. 2025, 2505.01618, table 1; EleutherAI/nanoGPT-mup (completep)",
        note="at base_n_layer and base_n_embd all factors are 1 but that of attention's scores, "
        "which are divided by the head width (not its root) at every size",
        parametrization="completep",
        residual_init="1",
    ),
    "gtrxl": Placement(
        equation="x' = g(x, relu(F(N(x)))), g a GRU's gate with bias 2",
        citation="Parisotto et al. 2019, 1910.06764, section 3.2",
        note="with a final norm, which agents' heads there do without",
        connection="gru",
        residual_init="1",
    ),
    "highway": Placement(
        equation="x' = (1 - T) x + T F(x), T = σ(W x - 2)",
        citation="Srivastava et al. 2015, 1505.00387, eq. 3",
        note="published for plain nets; here with a final norm",
        connection="highway",
        norm_sites="none",
        residual_init="1",
    ),
    "x0_lambda": Placement(
        equation="x0 = N(embedding); x̂ = a_l x + b_l x0; x' = x̂ + F(N(x̂)), a_l = 1 and b_l = 0 "
        "initially",
        citation="KellerJordan/modded-nanogpt records/track_1_short/2024-11-06_ShortcutsTweaks",
        note="the placement alone: no rotary positions, QK-norm, ReLU² or Muon",
        norm_type="rmsnorm_fixed",
        embedding_norm=True,
        cross_layer="x0",
        residual_init="1",
    ),
}
