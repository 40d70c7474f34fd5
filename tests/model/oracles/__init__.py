"""Every preset as a whole model in numpy float64, written only from its equation."""

from tests.model.oracles import beyond, norms, scales
from tests.model.oracles.base import ORACLES, Model, visible
from tests.model.oracles.beyond import admin_profile

__all__ = ["ORACLES", "Model", "admin_profile", "beyond", "norms", "scales", "visible"]
