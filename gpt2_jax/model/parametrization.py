"""CompleteP and depth-muP: what keeps a learning rate good when depth and width change.

Dey et al. 2025, 2505.01618, table 1, with m_L = L / L_base and m_N = D / D_base. Factors of 1 are
not in the program.
"""

from __future__ import annotations

from ml_collections import FrozenConfigDict

from gpt2_jax.model.parts import Rates, Role
from gpt2_jax.model.placements.axes import Placement

DEPTH_EXPONENT = {"depth_mup": 0.5, "completep": 1.0}  # the paper's alpha


def _ratios(cfg: FrozenConfigDict, placement: Placement) -> tuple[float, float, float] | None:
    """Returns (m_L, m_N, alpha), or None for the standard parametrization."""
    alpha = DEPTH_EXPONENT.get(placement.parametrization)
    if alpha is None:
        return None
    return cfg.n_layer / placement.base_n_layer, cfg.n_embd / placement.base_n_embd, alpha


def branch_factor(cfg: FrozenConfigDict, placement: Placement) -> float:
    """Returns the factor on every branch, m_L^-alpha."""
    ratios = _ratios(cfg, placement)
    return ratios[0] ** -ratios[2] if ratios else 1.0


def init_factor(cfg: FrozenConfigDict, placement: Placement) -> float:
    """Returns the factor on the std of the blocks' initial matrices, m_N^-1/2."""
    ratios = _ratios(cfg, placement)
    return ratios[1] ** -0.5 if ratios else 1.0


def logits_factor(cfg: FrozenConfigDict, placement: Placement) -> float:
    """Returns the factor on the logits, 1/m_N."""
    ratios = _ratios(cfg, placement)
    return 1.0 / ratios[1] if ratios else 1.0


def score_exponent(placement: Placement) -> float:
    """Returns e of the attention scores' factor, (head width)^e: -1 under muP."""
    return -1.0 if placement.parametrization in DEPTH_EXPONENT else -0.5


def rates(cfg: FrozenConfigDict, placement: Placement, role: Role, in_block: bool) -> Rates:
    """Returns the factors on a parameter's learning rate, decay and epsilon."""
    ratios = _ratios(cfg, placement)
    if placement.unit_weights:
        return Rates(decay=0.0)  # what is normed after each update has no size to decay
    if ratios is None:
        return Rates()
    m_l, m_n, alpha = ratios
    eps = m_l**-alpha / m_n
    if not in_block:
        return Rates(eps=eps)
    depth = m_l ** (alpha - 1.0)
    mapping = role in (Role.MATRIX, Role.MAP)
    return Rates(depth / m_n, m_n, eps) if mapping else Rates(depth, 1.0, eps)
