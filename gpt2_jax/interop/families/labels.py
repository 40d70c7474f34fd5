"""The names of labels in a config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt2_jax.errors import UserError, quoted

DEFAULT_LABELS = 2  # of transformers


def default_labels(n_labels: int) -> list[str]:
    """Returns the names that transformers gives to labels without names."""
    return [f"LABEL_{i}" for i in range(n_labels)]


def read_labels(fields: dict[str, Any]) -> list[str]:
    """Returns the names of labels in the order of their ids.

    As in transformers, there are two labels, LABEL_0 and LABEL_1, if config.json does not say.

    Raises:
      UserError: if `id2label` does not have one name for each id from 0, or there are several
        labels per example.
    """
    problem = fields.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise UserError(f"config.json: problem_type={quoted(problem)} is not supported")
    given = fields.get("id2label")
    if given is None:
        return default_labels(DEFAULT_LABELS)
    ids = [str(i) for i in range(len(given))] if isinstance(given, dict) else []
    if not ids or {*given} != {*ids} or not all(isinstance(given[i], str) for i in ids):
        raise UserError(
            f"config.json: id2label={quoted(given)} does not have one name for each id from 0"
        )
    return [given[i] for i in ids]


def write_labels(labels: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a config.json; the inverse of `read_labels`."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
