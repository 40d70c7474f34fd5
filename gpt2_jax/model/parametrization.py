"""CompleteP and depth-muP, which transfer learning rates across depth and width.

Dey et al. 2025, 2505.01618, table 1, with m_L = L / L_base and m_N = D / D_base.
"""

from __future__ import annotations

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.nn.param import HyperScales, Role
from gpt2_jax.placements.spec import TowerSpec

DEPTH_EXPONENT = {"depth_mup": 0.5, "completep": 1.0}  # the paper's alpha


def _ratios(cfg: ModelConfig, spec: TowerSpec) -> tuple[float, float, float]:
    """Returns (m_L, m_N, alpha); all 1 for the standard parametrization."""
    parametrization = spec.parametrization
    if parametrization.kind not in DEPTH_EXPONENT:
        return 1.0, 1.0, 1.0
    return (
        spec.tower.n_layer / parametrization.base_n_layer,
        cfg.n_embd / parametrization.base_n_embd,
        DEPTH_EXPONENT[parametrization.kind],
    )


def branch_factor(cfg: ModelConfig, spec: TowerSpec) -> float:
    """Returns the factor on every sublayer's output, m_L^-alpha."""
    m_l, _, alpha = _ratios(cfg, spec)
    return m_l**-alpha


def init_factor(cfg: ModelConfig, spec: TowerSpec) -> float:
    """Returns the factor on the std of the blocks' initial matrices, m_N^-1/2."""
    return _ratios(cfg, spec)[1] ** -0.5


def logits_factor(cfg: ModelConfig, spec: TowerSpec) -> float:
    """Returns the factor on the logits, 1/m_N."""
    return 1.0 / _ratios(cfg, spec)[1]


def score_exponent(spec: TowerSpec) -> float:
    """Returns e in the factor on attention scores, (head width)^e: -1 under muP, else -1/2."""
    return -1.0 if spec.parametrization.kind in DEPTH_EXPONENT else -0.5


def hyper_scales(cfg: ModelConfig, spec: TowerSpec, role: Role, in_block: bool) -> HyperScales:
    """Returns the factors on a parameter's learning rate, decay and epsilon."""
    if spec.unit_weights:
        return HyperScales(decay=0.0)  # weights are normalized after each step
    m_l, m_n, alpha = _ratios(cfg, spec)
    eps = m_l**-alpha / m_n
    if not in_block:
        return HyperScales(eps=eps)
    depth = m_l ** (alpha - 1.0)
    is_matrix = role in (Role.MATRIX, Role.MAP)
    return HyperScales(depth / m_n, m_n, eps) if is_matrix else HyperScales(depth, 1.0, eps)
