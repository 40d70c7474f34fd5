"""Post-processors of tokenizer.json, which put special tokens around texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def template(prefix: Mapping[str, int], suffix: Mapping[str, int]) -> dict[str, Any]:
    """Returns the post-processor for prefix A suffix, and prefix A suffix B suffix.

    B and the suffix after it have type 1, all else type 0.

    Args:
      prefix, suffix: ids of special tokens.
    """
    special = lambda names, kind: [{"SpecialToken": {"id": one, "type_id": kind}} for one in names]
    text = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    single = [*special(prefix, 0), text("A", 0), *special(suffix, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), *special(suffix, 1)],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]}
            for name, i in {**prefix, **suffix}.items()
        },
    }
