"""How the arrays of Hugging Face's tensors are arranged, compared with ours.

Our kernels have their input axes first, and separate axes for heads; q, k and v are one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import prod

import numpy as np

Shape = tuple[int, ...]
Tensors = dict[str, np.ndarray]  # by name


class Layout(StrEnum):
    """Arrangement of the tensors that make up one of our parameters.

    With D, E and F widths, H heads and head width K, the shapes are ours -> theirs.
    """

    SAME = "same"
    TRANSPOSED = "transposed"  # (D, F) -> (F, D), as in torch.nn.Linear
    HEADS_OUT = "heads_out"  # (D, 3, H, K) -> (D, 3HK), or its bias (3, H, K) -> (3HK)
    HEADS_IN = "heads_in"  # (H, K, D) -> (HK, D)
    HEADS_IN_TRANSPOSED = "heads_in_transposed"  # (H, K, D) -> (D, HK)
    AS_ROW = "as_row"  # (V,) -> (1, V)
    QKV_ROWS = "qkv_rows"  # (D, 3, H, K) -> three (HK, D), or their biases (3, H, K) -> three (HK)


def their_shape(layout: Layout, shape: Shape) -> Shape:
    """Returns the shape of each of the tensors of a parameter with this shape."""
    match layout:
        case Layout.TRANSPOSED:
            return shape[::-1]
        case Layout.HEADS_OUT:
            return (*shape[:-3], prod(shape[-3:]))
        case Layout.HEADS_IN:
            return prod(shape[:2]), shape[2]
        case Layout.HEADS_IN_TRANSPOSED:
            return shape[2], prod(shape[:2])
        case Layout.AS_ROW:
            return (1, *shape)
        case Layout.QKV_ROWS:
            return (prod(shape[-2:]), *shape[:-3])
    return shape


def to_theirs(layout: Layout, ours: np.ndarray) -> list[np.ndarray]:
    """Returns the tensors of a parameter."""
    shape = their_shape(layout, ours.shape)
    match layout:
        case Layout.TRANSPOSED:
            return [ours.T]
        case Layout.HEADS_IN_TRANSPOSED:
            return [ours.reshape(shape[::-1]).T]
        case Layout.QKV_ROWS:
            rows = np.moveaxis(ours, -3, 0)
            return [row.reshape(shape[::-1]).T for row in rows]
    return [ours.reshape(shape)]


def to_ours(layout: Layout, theirs: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """Returns the parameter of this shape that the tensors make up; inverse of `to_theirs`."""
    match layout:
        case Layout.TRANSPOSED | Layout.HEADS_IN_TRANSPOSED:
            return theirs[0].T.reshape(shape)
        case Layout.QKV_ROWS:
            row_shape = (*shape[:-3], *shape[-2:])
            return np.stack([row.T.reshape(row_shape) for row in theirs], axis=-3)
    return theirs[0].reshape(shape)
