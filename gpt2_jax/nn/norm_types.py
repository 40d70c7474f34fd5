"""The types of norms and the axes that each uses; imports no jax. The classes are in `norms`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NormType:
    """Which of the axes `norm_eps`, `norm_gain`, `norm_bias` and `norm_alpha` a norm uses."""

    eps: bool = True
    gain: bool = True
    bias: bool = False
    alpha: bool = False


NORM_TYPES: dict[str, NormType] = {
    "layernorm": NormType(bias=True),
    "rmsnorm": NormType(),
    "rmsnorm_plus_one": NormType(),
    "rmsnorm_fixed": NormType(gain=False),
    "scalenorm": NormType(),
    "l2": NormType(gain=False),
    "dyt": NormType(eps=False, bias=True, alpha=True),
    "derf": NormType(eps=False, bias=True, alpha=True),
    "none": NormType(eps=False, gain=False),
}
