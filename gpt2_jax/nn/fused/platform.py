"""Where the kernels run."""

from __future__ import annotations

import jax


def interpreted() -> bool:
    """Returns whether Pallas must interpret a kernel, for lack of a GPU: slow, for tests."""
    return jax.default_backend() != "gpu"
