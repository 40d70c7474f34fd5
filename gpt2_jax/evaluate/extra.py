"""Imports modules that need the optional `eval` dependencies."""

from __future__ import annotations

from types import ModuleType

from gpt2_jax.errors import UserError


def load_harness() -> ModuleType:
    """Returns the module `gpt2_jax.evaluate.harness`.

    Raises:
      UserError: if lm-evaluation-harness is not installed.
    """
    try:
        from gpt2_jax.evaluate import harness
    except ImportError as error:
        raise UserError(
            f"this needs lm-evaluation-harness ({error.name} is not installed): run "
            "make install EXTRA=eval, or pip install lm_eval"
        ) from None
    return harness
