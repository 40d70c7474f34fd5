"""Connections: how sublayer outputs are combined with the residual stream."""

from gpt2_jax.model.residual import depth_mixing, multi_stream, single_stream
from gpt2_jax.model.residual.base import CONNECTIONS, Combine, Connection, register

__all__ = [
    "CONNECTIONS",
    "Combine",
    "Connection",
    "depth_mixing",
    "multi_stream",
    "register",
    "single_stream",
]
