"""A sublayer: attention, cross-attention or the MLP, with the norms and scales around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.builder import BlockBuilder
from gpt2_jax.model.parametrization import branch_factor, score_exponent
from gpt2_jax.model.scale import Scale
from gpt2_jax.nn.attention import Attention
from gpt2_jax.nn.context import Context, SublayerAux
from gpt2_jax.nn.dropout import drop_sequences, dropout
from gpt2_jax.nn.inserts import Adapter, Prefix
from gpt2_jax.nn.linear import Linear, Shift
from gpt2_jax.nn.mlp import MLP
from gpt2_jax.nn.qkv import Cosine, HeadOutput, QKVTransform, ShapedWeights, UnitQK, ValueMix
from gpt2_jax.placements.expressions import ScaleSpec
from gpt2_jax.placements.spec import SublayerSpec, TowerSpec
from gpt2_jax.placements.towers import CROSS

CUDNN_HEAD_DIM = 128  # the widest head of cuDNN's attention on any GPU; 256 from Hopper on


class Sublayer(nnx.Module):
    """y = b N_out(F(c N_pre(u))), F attention, cross-attention or the MLP.

    Args:
      owned_sites: norm sites that the connection implements instead.
    """

    def __init__(self, build: BlockBuilder, spec: SublayerSpec, owned_sites: frozenset[str]):
        self.name, self.rate = spec.name, build.cfg.dropout
        self.depth_factor = branch_factor(build.cfg, build.spec)
        self.pre = None if "pre" in owned_sites else build.norm("pre", spec)
        self.shift = Shift() if build.spec.scalar_bias else None
        self.input_scale = build.scale("input_scale", spec)
        self.sublayer: Attention | MLP = LAYERS[spec.name](build, spec)
        self.adapter = _adapter(build, spec)
        self.branch_scale = build.scale("branch_scale", spec)
        self.out = build.norm("out", spec)
        self.drop_path = Scale(ScaleSpec("constant", spec.drop_path), 0.0, build.sizes, spec.index)

    def __call__(self, u_BTD: Any, context: Context) -> tuple[jax.Array, SublayerAux]:
        """Returns y (B, T, D), and the auxiliary outputs of F."""
        x_BTD = u_BTD if self.pre is None else self.pre(u_BTD)
        x_BTD = x_BTD if self.shift is None else self.shift(x_BTD)
        y_BTD, aux = self.sublayer(self.input_scale(x_BTD, context), context)
        y_BTD = dropout(y_BTD, context.keys_B, self.rate, f"{self.name}.residual")
        y_BTD = y_BTD if self.adapter is None else self.adapter(y_BTD)
        y_BTD = y_BTD if self.out is None else self.out(y_BTD)
        y_BTD = self._dropped(self.branch_scale(y_BTD, context), context)
        if context.observe is not None:
            aux = aux._replace(input=u_BTD, output=y_BTD)
        return y_BTD, aux

    def _dropped(self, y_BTD: jax.Array, context: Context) -> jax.Array:
        """Returns y scaled for depth, and 0 if the block is ablated or the sequence dropped."""
        if self.depth_factor != 1.0:
            y_BTD = (y_BTD * jnp.float32(self.depth_factor)).astype(y_BTD.dtype)
        if context.ablated_layer is not None:
            ablated = context.layer == context.ablated_layer
            y_BTD = jnp.where(ablated, jnp.zeros_like(y_BTD), y_BTD)
        if context.keys_B is None or self.drop_path.spec.first.constant == 0.0:
            return y_BTD
        rate = self.drop_path.factor(context)
        return drop_sequences(y_BTD, context.keys_B, rate, f"{self.name}.path")


def resolve_kernel(cfg: ModelConfig, spec: TowerSpec, platform: str) -> str:
    """Returns the attention kernel for a platform, "cudnn", "splash" or "xla".

    The fused kernels support neither dropout on the attention weights nor transforms of them, nor
    keys and values other than those of the tokens.
    cuDNN's supports neither float32, nor every width of a head, nor a mask of documents: jax's
    call would make it a bias of (B, 1, T, T) and always compute its gradient.
    """
    if cfg.attention != "auto":
        return cfg.attention
    plain = cfg.dropout == 0.0 and not spec.attention.shaped and not spec.inserts.prefix
    head_dim = cfg.n_embd // cfg.n_head
    if not plain or cfg.dtype != "bfloat16":
        return "xla"
    fits = head_dim % 8 == 0 and head_dim <= CUDNN_HEAD_DIM
    if platform == "gpu" and fits and not cfg.document_mask:
        return "cudnn"
    return "splash" if platform == "tpu" else "xla"


def _adapter(build: BlockBuilder, spec: SublayerSpec) -> Adapter | None:
    hidden = build.spec.inserts.adapter
    return Adapter(build.cfg.n_embd, hidden, f"{spec.name}.adapter", build.init) if hidden else None


def _prefix(build: BlockBuilder) -> Prefix | None:
    cfg, length = build.cfg, build.spec.inserts.prefix
    sizes = (cfg.n_head, cfg.n_embd // cfg.n_head)
    return Prefix(length, *sizes, cfg.init_std, build.init) if length else None


def make_attention(build: BlockBuilder, spec: SublayerSpec) -> Attention:
    """Returns the attention or the cross-attention of a block."""
    cfg, attention = build.cfg, build.spec.attention
    d, n_head, head_dim = cfg.n_embd, cfg.n_head, cfg.n_embd // cfg.n_head
    is_cross = spec.name == CROSS
    transform = _cross_transform(build, spec) if is_cross else _self_transform(build, spec)
    factors = [attention.query_init, attention.key_init]
    factors += [spec.input_init] * transform.projects_values
    stds = [jnp.float32(build.std(factor, d, d, spec)) for factor in factors]
    scales_scores = transform.cosine is not None or transform.unit_qk is not None
    scale = head_dim ** score_exponent(build.spec)
    qkv = Linear(
        (d,),
        (len(stds), n_head, head_dim),
        axes=("embed", "qkv", "heads", "head_dim"),
        site=f"{spec.name}.qkv",
        std=jnp.stack(stds)[:, None, None],
        init=build.init,
        dtype=cfg.dtype,
        product_dtype=build.product_dtype,
    )
    return Attention(
        qkv,
        None if attention.identity_values else _output(build, spec),
        transform=transform,
        heads=HeadOutput(build.norm("inner", spec), n_head if attention.head_scale else None),
        weights=ShapedWeights(n_head) if attention.shaped else None,
        kernel="xla" if is_cross else resolve_kernel(cfg, build.spec, build.target.platform),
        separate=not build.target.is_cpu,
        product_dtype=build.product_dtype,
        scale=scale if cfg.scale_attn_weights and not scales_scores else 1.0,
        by_layer=cfg.scale_attn_by_inverse_layer_idx and not scales_scores,
        dropout=cfg.dropout,
        cross=is_cross,
        prefix=None if is_cross else _prefix(build),
    )


def _output(build: BlockBuilder, spec: SublayerSpec) -> Linear:
    cfg, d = build.cfg, build.cfg.n_embd
    return Linear(
        (cfg.n_head, d // cfg.n_head),
        (d,),
        axes=("heads", "head_dim", "embed"),
        site=f"{spec.name}.out",
        std=build.std(spec.output_init, d, d, spec),
        init=build.init,
        dtype=cfg.dtype,
        product_dtype=build.product_dtype,
    )


def _self_transform(build: BlockBuilder, spec: SublayerSpec) -> QKVTransform:
    values = build.block.values
    sources: dict[str, str | ValueMix] = {"first": "first"}
    if values in ("half", "learned"):
        sources[values] = ValueMix(learned=values == "learned")
    default = "input" if build.spec.attention.identity_values else "projected"
    rotary = build.spec.positions.kind == "rotary"
    return _qkv_transform(build, spec, sources.get(values, default), rotary=rotary)


def _cross_transform(build: BlockBuilder, spec: SublayerSpec) -> QKVTransform:
    # Rotary positions and the values of block 1 are those of one sequence: not of two.
    return _qkv_transform(build, spec, "projected", rotary=False)


def _qkv_transform(
    build: BlockBuilder, spec: SublayerSpec, values: str | ValueMix, *, rotary: bool
) -> QKVTransform:
    cfg = build.cfg
    n_head, head_dim = cfg.n_head, cfg.n_embd // cfg.n_head
    site = next((s for s in ("qk", "qk_full", "qkv") if s in spec.norm_sites), "none")
    widths = {"qk_full": (cfg.n_embd, "embed")}
    norm = lambda: build.norm(site, spec, *widths.get(site, (head_dim, "head_dim")))
    scaling: Cosine | UnitQK | None = None
    if "cosine" in spec.norm_sites:
        scaling = Cosine(n_head, cfg.dtype)
    if "unit_qk" in spec.norm_sites:
        scaling = UnitQK(n_head, head_dim, cfg.n_embd)
    return QKVTransform(
        # With "first", values come from block 1, which has already normalized them.
        (norm(), norm(), norm() if site == "qkv" and values != "first" else None),
        over_heads=site == "qk_full",
        scaling=scaling,
        rotary=rotary,
        values=values,
    )


def make_mlp(build: BlockBuilder, spec: SublayerSpec) -> MLP:
    """Returns the MLP of a block."""
    cfg, d, f = build.cfg, build.cfg.n_embd, build.cfg.n_inner
    return MLP(
        d,
        f,
        activation=build.spec.mlp.activation,
        inner=build.norm("inner", spec, f, "mlp"),
        hidden_scale=build.spec.mlp.hidden_scale,
        scalar_bias=build.spec.scalar_bias,
        stds=(build.std(spec.input_init, d, f, spec), build.std(spec.output_init, f, d, spec)),
        init=build.init,
        dtype=cfg.dtype,
        product_dtype=build.product_dtype,
    )


LAYERS: dict[str, Callable[[BlockBuilder, SublayerSpec], Any]] = {
    "attn": make_attention,
    CROSS: make_attention,
    "mlp": make_mlp,
}
