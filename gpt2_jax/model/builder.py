"""Builds the parts of a block from its spec: norms, scales and initial values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.model.parametrization import init_factor
from gpt2_jax.model.scale import Scale
from gpt2_jax.nn.norms import Norm, NormSpec, make_norm
from gpt2_jax.nn.param import Init
from gpt2_jax.nn.products import has_fast_bfloat16
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.axes import BLOCK_SITES, QK_SITES, SCALES
from gpt2_jax.placements.expressions import Expression, ScaleSpec, Sizes
from gpt2_jax.placements.registry import SUPPORTS
from gpt2_jax.placements.spec import BlockSpec, StackSpec, SublayerSpec, TowerSpec


@dataclass(frozen=True)
class BlockBuilder:
    """Everything needed to build one block.

    Attributes:
      cfg: sizes, dtypes and kernels. spec: of the tower. stack: the one that has this block.
      init: initial values of this block. target: the devices that run it.
    """

    cfg: ModelConfig
    spec: TowerSpec
    stack: StackSpec
    init: Init
    target: Target

    @property
    def product_dtype(self) -> str | None:
        """What inputs of matrix products are rounded to, as in `product_dtype`."""
        return product_dtype(self.cfg, self.target)

    @property
    def block(self) -> BlockSpec:
        """The block's spec."""
        return self.stack.block

    @property
    def sublayers(self) -> tuple[SublayerSpec, ...]:
        """The block's sublayers, in order."""
        return self.block.sublayers

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes that expressions may use."""
        return self.cfg.sizes(self.spec.tower)

    def value(self, expression: Expression, sublayer: SublayerSpec) -> jax.Array | float:
        """Returns an expression's value at step 0; a float unless it depends on the block."""
        if expression.names & {"l", "s"}:
            l = jnp.asarray(self.init.layer + 1, jnp.float32)
            return expression(self.sizes.values(l, sublayer.index), jnp)
        return expression(self.sizes.values(1, sublayer.index))

    def norm(
        self, site: str, sublayer: SublayerSpec, width: int | None = None, axis: str = "embed"
    ) -> Norm | None:
        """Returns the norm at a site of a sublayer; None if it has none there.

        Args:
          width: size of the normalized axis; None for `n_embd`. axis: its name.
        """
        self._requested.add((site, sublayer.name))
        norm = self.spec.norm
        if site not in sublayer.norm_sites or norm.kind == "none":
            return None
        spec = NormSpec(
            norm.kind,
            norm.eps,
            norm.bias,
            self.cfg.dtype,
            gain=1.0 if site in QK_SITES else self.value(norm.gain, sublayer),
            alpha=self.value(sublayer.norm_alpha, sublayer),
            axis=axis,
            # Heads are too narrow for the kernel.
            fused=fuses(self.cfg, self.target) and site not in QK_SITES,
        )
        return make_norm(width or self.cfg.n_embd, spec)

    def std(
        self, factor: Expression, fan_in: int, fan_out: int, sublayer: SublayerSpec
    ) -> jax.Array | float:
        """Returns the std of an initial matrix."""
        xavier = (2.0 / (fan_in + fan_out)) ** 0.5  # Glorot & Bengio 2010, eq. 16
        small = (2.0 / (5 * self.cfg.n_embd)) ** 0.5  # Nguyen & Salazar 2019, section 2.2
        base = {
            "normal": self.cfg.init_std * init_factor(self.cfg, self.spec),
            "xavier": xavier,
            "small": xavier if sublayer.name == "mlp" else small,
        }[self.spec.init]
        return base * self.value(factor, sublayer)

    def scale(self, axis: str, sublayer: SublayerSpec) -> Scale:
        """Returns the scale of an axis such as `skip_scale`; sublayers share a `learned_block`."""
        self._requested.add((axis, sublayer.name))
        spec: ScaleSpec = getattr(sublayer, axis)
        if spec.kind == "learned_block" and axis in self._shared:
            return self._shared[axis]
        scale = Scale(spec, self.value(spec.first, sublayer), self.sizes, sublayer.index)
        return self._shared.setdefault(axis, scale) if spec.kind == "learned_block" else scale

    def ignored(self) -> str | None:
        """Returns a norm site or scale in the block's spec that no module requested, or None.

        A connection that combines all sublayers at once requests its own for one of them.
        """
        whole_block = SUPPORTS[self.spec.connection.name].whole_block
        for spec in self.sublayers:
            present = [site for site in BLOCK_SITES if site in spec.norm_sites]
            present += [axis for axis in SCALES if not getattr(spec, axis).is_one]
            requested = {x for x, name in self._requested if whole_block or name == spec.name}
            if missing := [x for x in present if x not in requested]:
                return missing[0]
        return None

    @cached_property
    def _requested(self) -> set[tuple[str, str]]:
        return set()

    @cached_property
    def _shared(self) -> dict[str, Scale]:
        return {}


def stream_norm(cfg: ModelConfig, spec: TowerSpec, target: Target) -> Norm:
    """Returns the final norm, or the norm after the embedding; its gain is initially 1."""
    last = spec.stacks[-1].block.sublayers[-1]
    alpha = last.norm_alpha(cfg.sizes(spec.tower).values(spec.tower.n_layer, last.index))
    norm = spec.norm
    fused = fuses(cfg, target)
    kind = NormSpec(norm.kind, norm.eps, norm.bias, cfg.dtype, alpha=alpha, fused=fused)
    return make_norm(cfg.n_embd, kind)


def fuses(cfg: ModelConfig, target: Target) -> bool:
    """Returns whether to use the kernels of `nn.fused`."""
    return cfg.fused_kernels and target.runs_triton


def product_dtype(cfg: ModelConfig, target: Target) -> str | None:
    """Returns what inputs of matrix products are rounded to if the results are float32.

    None if inputs and results have the compute dtype. On a CPU, XLA has fast products of bfloat16
    only for float32 results; these are then rounded to the compute dtype.
    """
    if cfg.dtype == "bfloat16":
        return "bfloat16" if target.is_cpu else None
    fast = cfg.matmul_dtype == "auto" and target.is_cpu and has_fast_bfloat16()
    return "bfloat16" if fast or cfg.matmul_dtype == "bfloat16" else None
