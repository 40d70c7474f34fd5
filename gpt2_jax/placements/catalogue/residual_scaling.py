"""Presets that differ in how skip and branch are scaled: constants, learned factors, gates, inits.

GPT-2's positions, activation, biases and sizes are kept unless an axis is set; a note lists other
differences from the source.
"""

from __future__ import annotations

from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue.norm_placement import FAIRSEQ, UNIT_EMBEDDING

# Figure 2 of the paper: of an encoder of L blocks that a decoder of M blocks reads, else of a tower
# of S sublayers: (8 L)^-1/4 for an encoder or a decoder alone, (12 L)^-1/4 for the one that reads.
DEEPNORM_BETA = "where(M > 0, 0.87*(L**4*M)**(-1/16), (4*S)**-0.25)"
# Of the published decoder, whose blocks have three sublayers, else of the published encoder.
T_FIXUP_FACTOR = "where(S > 2*L, (9*L)**-0.25, 0.67*L**-0.25)"

RESIDUAL_SCALING: dict[str, Placement] = {
    "deepnorm": Placement(
        equation="x' = N(a x + F(x)), a = (2 L)^1/4, initial W_V, W_O, W_1, W_2 scaled by "
        "(8 L)^-1/4",
        citation="Wang et al. 2022, 2203.00555; microsoft/torchscale architecture/decoder.py",
        note="an encoder of N blocks that a decoder of M reads has a = 0.81 (N^4 M)^1/16 and "
        "0.87 (N^4 M)^-1/16, and that decoder (3 M)^1/4 and (12 M)^-1/4, as in the paper's figure "
        "2; initial values as in the paper's algorithm, with gain 1 on W_Q and W_K; torchscale "
        "defines gain 1/sqrt(2) for attention but never applies it, and has 1/1.15 for 0.87",
        norm_sites="post",
        skip_scale="where(M > 0, 0.81*(L**4*M)**(1/16), S**0.25)",
        init="xavier",
        residual_init=DEEPNORM_BETA,
        value_init=DEEPNORM_BETA,
        **UNIT_EMBEDDING,
    ),
    "admin": Placement(
        equation="x' = N(w_s x + F(x)), w_s per channel, w_1 = 1 and w_{s+1}^2 = w_s^2 Var(x_s) + "
        "Var(F(x_s)) initially, measured on the first batch",
        citation="Liu et al. 2020, 2004.08249; LiyuanLucasLiu/Transformer-Clinic "
        "fairseq/fairseq/modules/transformer_layer.py",
        note="measured as in the code, but without dropout; the paper's formula omits the "
        "embedding's variance; with an encoder and a decoder, w_1 = 1 in both, and the decoder is "
        "measured on the output of the encoder",
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
        note="published for ResNets; the embedding is that of rezero",
        norm_type="none",
        norm_sites="none",
        branch_scale="learned_scalar(0)",
        residual_init="1",
        embedding_multiplier="d**0.5",
    ),
    "layerscale": Placement(
        equation="x' = x + g F(N(x)), g per channel, initially 0.1 (L <= 18), 1e-5 (L <= 24) or "
        "1e-6",
        citation="CaiT (Touvron et al. 2021), 2103.17239; facebookresearch/deit cait_models.py",
        note="initial values by depth as in the paper; the code's default is 1e-4",
        branch_scale="learned_vector(where(L <= 18, 0.1, where(L <= 24, 1e-5, 1e-6)))",
        residual_init="1",
    ),
    "keel": Placement(
        equation="x' = N2(S x + F(N1(x))), S the number of sublayers; block 1: x' = x + A(N1(x)), "
        "then x' = N2(x + F(N1(x)))",
        citation="Keel, 2601.19895",
        note="GPT-2's embedding, as the paper does not state its own",
        norm_type="rmsnorm",
        norm_sites="pre+post",
        skip_scale="where(s <= S/L, 1, S)",
        layer_overrides="l == 1: norm_sites=pre | pre+post | pre+post",
        residual_init="1",
    ),
    "lns": Placement(
        equation="x' = x + F(N(x)/sqrt(l))",
        citation="Sun et al. 2025, 2502.05795; lmsdss/LayerNorm-Scaling",
        note="LayerNorm instead of the code's RMSNorm",
        input_scale="l**-0.5",
        residual_init="1",
    ),
    "gpas": Placement(
        equation="h = x + F(N(x)); x' = h - silu(g_l) sg(h), g_l initially 0, one per block",
        citation="Chen et al. 2025, 2506.22049; dandingsky/GPAS",
        note="with norm_sites=post the skip is scaled instead, as in the paper; LayerNorm and "
        "GPT-2's embedding instead of the code's RMSNorm and std sqrt(2/5)",
        connection="gpas",
        residual_init="1",
    ),
    "prores": Placement(
        equation="x' = x + min(t/(1000 l), 1) F(N(x)), t the number of steps done",
        citation="ProRes, 2603.05369; dandingsky/ProRes",
        note="LayerNorm and GPT-2's embedding instead of the code's RMSNorm and std 0.02 sqrt(d)",
        branch_scale="minimum(t/(1000*l), 1)",
        residual_init="1",
    ),
    "t_fixup": Placement(
        equation="x' = x + F(x), initial W_V, W_O, W_1, W_2 scaled by 0.67 L^-1/4, embeddings by "
        "(9 L)^-1/4",
        citation="Huang et al. 2020; layer6ai-labs/T-Fixup fairseq/modules/transformer_layer.py, "
        "fairseq/models/transformer.py",
        note="the rule for the published encoder, whose blocks also have two sublayers; in a "
        "decoder with cross-attention, as published, the matrices are scaled by (9 L)^-1/4; W_Q "
        "and W_K keep fairseq's gain 1/sqrt(2), which the code undoes only for W_V; an embedding "
        "that both share is the encoder's",
        norm_type="none",
        norm_sites="none",
        init="xavier",
        residual_init=T_FIXUP_FACTOR,
        value_init=T_FIXUP_FACTOR,
        query_init="2**-0.5",
        key_init="2**-0.5",
        embedding_std="d**-0.5*(9*L)**-0.25",
        embedding_multiplier="d**0.5",
    ),
    "fixup": Placement(
        equation="x' = x + a A(x - b)\nx' = x + a (W_2 (f(W_1 (x - b1) - b2) - b3)), "
        "initially W_O = W_2 = 0, W_Q, W_K, W_V scaled by P^-1/6, W_1 by P^-1/2",
        citation="Zhang et al. 2019, 1901.09321, and their Transformer; hongyi-zhang/Fixup "
        "fairseq/fairseq/models/transformer_zero.py, modules/multihead_attention_zero.py",
        note="P is the number of sublayers of the whole model; the tied head is not initialized "
        "to zero, and bias vectors are kept; W_Q, W_K and W_V are one Xavier matrix in fairseq, "
        "hence 1/sqrt(2)",
        norm_type="none",
        norm_sites="none",
        branch_scale="learned_scalar(1)",
        scalar_bias=True,
        init="xavier",
        residual_init="0",
        value_init="2**-0.5*P**(-1/6) | P**-0.5",
        query_init="2**-0.5*P**(-1/6)",
        key_init="2**-0.5*P**(-1/6)",
        **UNIT_EMBEDDING,
    ),
    "ds_init": Placement(
        equation="x' = N(x + F(x)), initial matrices of block l scaled by 1/sqrt(l)",
        citation="Zhang et al. 2019, 1908.11365; bzhangGo/zero models/transformer_fuse.py",
        note="as in the paper; its code scales by l^-1/4. Later papers use the name for pre_ln "
        "with placement.residual_init=(2*l)**-0.5",
        norm_sites="post",
        init="xavier",
        residual_init="l**-0.5",
        value_init="l**-0.5",
        query_init="l**-0.5",
        key_init="l**-0.5",
        **UNIT_EMBEDDING,
    ),
    "scaled_init": Placement(
        equation="x' = x + F(N(x)), initial W_O and W_2 scaled by 1/sqrt(2 L)",
        citation="Megatron-LM (Shoeybi et al. 2019), 1909.08053; GPT-2, section 2.3",
        note="the same as pre_ln; for Pre-LN without this scaling, set placement.residual_init=1",
        residual_init="S**-0.5",
    ),
    "completep": Placement(
        equation="x' = x + F(N(x)) L_base/L, with matching learning rates, weight decay and "
        "epsilon",
        citation="Dey et al. 2025, 2505.01618, table 1; EleutherAI/nanoGPT-mup (completep)",
        note="at base_n_layer and base_n_embd all factors are 1, except that attention scores are "
        "divided by the head width (not its square root) at every size",
        parametrization="completep",
        residual_init="1",
    ),
    "gtrxl": Placement(
        equation="x' = g(x, relu(F(N(x)))), g a GRU's gate with bias 2",
        citation="Parisotto et al. 2019, 1910.06764, section 3.2",
        note="with a final norm, which the paper's agents do not have",
        connection="gru",
        residual_init="1",
    ),
    "highway": Placement(
        equation="x' = (1 - T) x + T F(x), T = σ(W x - 2)",
        citation="Srivastava et al. 2015, 1505.00387, eq. 3",
        note="published for feed-forward networks; here with a final norm",
        connection="highway",
        norm_sites="none",
        residual_init="1",
    ),
    "x0_lambda": Placement(
        equation="x0 = N(embedding); x̂ = a_l x + b_l x0; x' = x̂ + F(N(x̂)), a_l = 1 and b_l = 0 "
        "initially",
        citation="KellerJordan/modded-nanogpt records/track_1_short/2024-11-06_ShortcutsTweaks",
        note="only the placement: no rotary positions, QK norm, ReLU² or Muon",
        norm_type="rmsnorm_fixed",
        embedding_norm=True,
        cross_layer="x0",
        residual_init="1",
    ),
}
