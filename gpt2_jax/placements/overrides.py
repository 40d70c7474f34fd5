"""Layer overrides, such as `l == 1: norm_sites=qkv+pre | pre, skip_scale=1; l > 6: ...`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2_jax.placements.axes import PER_BLOCK
from gpt2_jax.placements.expressions import Expression, parse_expression


@dataclass(frozen=True)
class Override:
    """A condition on l and L, and the axes that change in the blocks where it holds."""

    where: Expression
    changes: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.where.text}: " + ", ".join(f"{k}={v}" for k, v in self.changes.items())


def parse_overrides(text: str) -> list[Override]:
    """Parses `condition: axis=value, ...; ...`.

    Raises:
      ValueError: if the text is not of this form.
    """
    out = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        condition, colon, rest = part.partition(":")
        if not colon or (where := parse_expression(condition)).names - {"l", "L"}:
            raise ValueError(f"{part!r} is not a `condition on l and L: axis=value, ...`")
        changes = dict(_change(one) for one in re.split(r",\s*(?=[a-z_]+\s*=[^=])", rest))
        out.append(Override(where, changes))
    return out


def _change(text: str) -> tuple[str, str]:
    name, equals, value = (word.strip() for word in text.partition("="))
    if not equals or name not in PER_BLOCK:
        raise ValueError(f"{text.strip()!r} does not set one of {', '.join(PER_BLOCK)}")
    return name, value
