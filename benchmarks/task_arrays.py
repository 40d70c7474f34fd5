"""Batches in a file, as arrays by name; needs numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def save_arrays(path: Path, batches: Sequence[Arrays]) -> None:
    """Writes batches as an npz, in which `i.name` is an array of batch i."""
    np.savez(path, **{f"{i}.{name}": x for i, b in enumerate(batches) for name, x in b.items()})


def load_arrays(path: Path) -> list[dict[str, np.ndarray]]:
    """Returns what `save_arrays` wrote."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as stored:
        for key, value in stored.items():
            number, _, name = key.partition(".")
            found.setdefault(int(number), {})[name] = value
    return [found[i] for i in range(len(found))]
