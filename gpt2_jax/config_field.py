"""A config field's type and bounds, and the one check that every value passes on its way in.

Command line, config file, config.json of a run, Hugging Face's config.json and the variants of a
study all end in `Field.validated`. Nothing here imports jax.
"""

from __future__ import annotations

import math
import os
import textwrap
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpt2_jax.errors import UserError, shown, suggestion, without_credentials

INT_MAX = 2**31 - 1  # counters and shapes are int32 on the devices
# What float32 holds: a larger magnitude would be inf there, a smaller one 0.
FLOAT_MAX, FLOAT_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
LONGEST_NAME = 255  # bytes between two slashes, the limit of common file systems
_NOUNS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


@dataclass(frozen=True)
class Field:
    """One config field: its default, what it means, and which values it takes.

    Attributes:
      default: None for an optional field that starts unset.
      kind: the type of an optional field; unset for the others, whose default shows it.
      minimum, maximum: inclusive bounds of a number. above, below: exclusive ones.
      longest: characters of a string, or of each of several; 0 for no limit but a path's.
      most: how many strings there may be, where there can be several.
      path: whether it can name a file, so that its parts are no longer than a file name.
    """

    default: Any
    meaning: str
    kind: type | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    longest: int = LONGEST_NAME
    most: int = 1000
    path: bool = False

    @property
    def type(self) -> type:
        """The type of its values; `tuple` for several strings."""
        return self.kind or type(self.default)

    def validated(self, value: Any, label: str) -> Any:
        """Returns the value as this field's type; an integer becomes a float where one is due.

        Args:
          label: what the value is called in an error: a field, a flag, or a file and its key.

        Raises:
          UserError: if it has another type or is out of bounds.
        """
        if value is None and self.kind is not None:
            return None
        if isinstance(value, np.generic):
            value = value.item()
        if self.type is tuple:
            return self._several(value, label)
        typed = self._typed(value, label)
        if isinstance(typed, str):
            self._check_string(typed, label)
        elif not isinstance(typed, bool):
            self._check_number(typed, label)
        return typed

    def range(self) -> str:
        """Returns the bounds of a number in words; empty where there are none."""
        low, high = self.minimum, self.maximum
        if low is not None and high is not None:
            return f"between {_number(low)} and {_number(high)}"
        words = [
            f"{word} {_number(bound)}"
            for word, bound in (
                ("at least", low),
                ("above", self.above),
                ("at most", high),
                ("below", self.below),
            )
            if bound is not None
        ]
        return " and ".join(words)

    def _typed(self, value: Any, label: str) -> Any:
        fits = isinstance(value, self.type) and (self.type is bool or not isinstance(value, bool))
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
        if not fits:
            raise UserError(f"{label}={shown(value)} must be {_NOUNS[self.type]}")
        return value

    def _check_number(self, value: float, label: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{label}={value} is not a finite number")
        holds = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not holds:
            raise UserError(f"{label}={shown(value)} must be {self.range()}")
        if isinstance(value, int):
            return
        if value and not FLOAT_TINY <= abs(value) <= FLOAT_MAX:
            raise UserError(f"{label}={value} is beyond what float32 holds; choose a nearer number")

    def _check_string(self, text: str, label: str) -> None:
        if (harmless := without_credentials(text)) != text:
            raise UserError(
                f"{label}={harmless} holds a user name or password, which the run's files would "
                "store; leave it out, and use environment variables or ~/.netrc"
            )
        if self.choices:
            if text not in self.choices:
                hint = suggestion(text[:LONGEST_NAME], self.choices)
                raise UserError(f"{label}={shown(text)} is unknown{hint}")
            return
        check_text(text, label, longest=0 if self.path else self.longest)
        if self.path:
            check_path(text, label)

    def _several(self, value: Any, label: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{label}={shown(value)} must be a list of strings")
        if len(value) > self.most:
            raise UserError(f"{label} has {len(value)} entries; the most is {self.most}")
        for text in value:
            self._check_string(text, label)
        return tuple(value)


def check_text(text: str, label: str, longest: int = 0, lines: bool = False) -> None:
    """Refuses text that is too long, not Unicode, or has control characters.

    Args:
      longest: in characters; 0 for no limit.
      lines: whether line breaks and tabs are allowed.

    Raises:
      UserError: naming the label.
    """
    if longest and len(text) > longest:
        raise UserError(f"{label}={shown(text)} has {len(text)} characters; the most is {longest}")
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UserError(f"{label}={shown(text)} is not valid UTF-8")
        if kind in ("Cc", "Zl", "Zp") and not (lines and character in "\n\t\r\u2028\u2029"):
            raise UserError(f"{label}={shown(text)} contains the control character {character!a}")


def check_path(text: str, label: str) -> None:
    """Refuses a path that no file system could hold, and one of a device, a pipe or a socket.

    Raises:
      UserError: naming the label.
    """
    if not text:
        raise UserError(f"{label} is empty; leave it out, or give a path")
    check_text(text, label)
    longest = max(len(part.encode()) for part in text.split("/"))
    if longest > LONGEST_NAME:
        raise UserError(
            f"{label}={shown(text)} has a name of {longest} bytes; the most is {LONGEST_NAME}"
        )
    if len(text.encode()) >= 4096:  # Linux's PATH_MAX
        raise UserError(f"{label}={shown(text)} is longer than a path can be")
    if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
        raise UserError(f"{label}={text} is neither a file nor a folder")  # it may never end


def page_of(fields: Mapping[str, Field]) -> str:
    """Returns docs/config.md for the fields of these dotted names."""
    rows = [
        "# Every config field",
        "",
        "Written by `python -m gpt2_jax.config > docs/config.md`. A field is set in a config file",
        "(`config.model.n_layer = 4`) or on the command line (`--config.model.n_layer=4`).",
    ]
    section = None
    for name, field in fields.items():
        if (here := name.rpartition(".")[0]) != section:
            section = here
            rows += ["", f"## {section or 'run'}", "", "| field | default | range | meaning |"]
            rows += ["|---|---|---|---|"]
        start = "unset" if field.kind else f"`{field.default!r}`"
        meaning = field.meaning.replace("|", "\\|")
        choices = f" ({', '.join(field.choices)})" if field.choices else ""
        rows.append(f"| `{name}` | {start} | {field.range()} | {meaning}{choices} |")
    return "\n".join(rows) + "\n"


def help_of(fields: Mapping[str, Field]) -> str:
    """Returns the fields as a command's --help lists them."""
    rows = []
    for name, field in fields.items():
        start = "unset" if field.kind else repr(field.default)
        details = [f"default {start}", field.range(), "|".join(field.choices)]
        meaning = field.meaning.replace("`", "")
        rows.append(f"--config.{name}: {meaning} ({'; '.join(filter(None, details))})")
    fill = partial(textwrap.fill, width=100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(map(fill, rows))


def _number(bound: float) -> str:
    """Returns a bound as it is usually written: 2147483647, 0.5, 1e-06."""
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else f"{bound:g}"
