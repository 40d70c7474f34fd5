"""Typed fields with a default, a meaning and bounds.

`Field.validated` checks all values: from the command line, config files, the config.json of runs
and of Hugging Face, and the variants of studies. Nothing here imports jax.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from gpt2_jax.errors import UserError, quoted, suggestion, without_credentials

INT_MAX = 2**31 - 1  # counters and shapes are int32 on the devices
# The magnitudes of float32: a larger one would become inf, a smaller one 0.
FLOAT_MAX, FLOAT_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
LONGEST_NAME = 255  # bytes of a file name, the limit of common file systems
_NOUNS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def setting(default: Any, meaning: str, **options: Any) -> Any:
    """Declares a dataclass field, as in `n_layer: int = setting(12, "blocks", minimum=1)`.

    Args:
      default: None for an optional field, which is then unset.
      options: attributes of `Field`.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, **options})


count = partial(setting, minimum=1, maximum=INT_MAX)  # steps, sequences and the like
share = partial(setting, minimum=0, below=1)


def fields_of(cls: type) -> dict[str, Field]:
    """Returns the fields that `setting` declared in a dataclass, by name."""
    hints = get_type_hints(cls)
    found = {f.name: f for f in dataclasses.fields(cls) if "meaning" in f.metadata}
    return {
        name: Field(default=f.default, kind=_plain(hints[name]), **f.metadata)
        for name, f in found.items()
    }


def _plain(hint: Any) -> type:
    """Returns the type in an annotation, such as `int` for `int | None`."""
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not types.NoneType)
    return get_origin(hint) or hint


@dataclass(frozen=True)
class Field:
    """A field declared by `setting`.

    Attributes:
      kind: type of the values; `tuple` for several strings.
      choices: the valid strings; registration may add more. otherwise: said after a list of them.
      minimum, maximum: inclusive bounds of a number. above, below: exclusive bounds.
      longest: maximum characters of a string, or of each of several strings.
      path: whether the string may be a path.
      most: maximum number of strings.
    """

    default: Any
    kind: type
    meaning: str
    choices: Collection[str] = ()
    otherwise: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    longest: int = LONGEST_NAME
    path: bool = False
    most: int = 1000

    @property
    def optional(self) -> bool:
        """Whether it can be unset (None)."""
        return self.default is None

    def validated(self, value: Any, label: str) -> Any:
        """Validates a value and returns it as this field's type; integers may become floats.

        Args:
          label: what errors call the value: a field, a flag, or a file and its key.

        Raises:
          UserError: if it has the wrong type or is out of bounds.
        """
        if value is None and self.optional:
            return None
        if isinstance(value, np.generic):
            value = value.item()
        if self.kind is tuple:
            return self._several(value, label)
        typed = self._typed(value, label)
        if isinstance(typed, str):
            self._check_string(typed, label)
        elif not isinstance(typed, bool):
            self._check_number(typed, label)
        return typed

    def range(self) -> str:
        """Returns the bounds in words; '' if there are none."""
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
        valid = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
        if not valid:
            raise UserError(f"{label}={quoted(value)} must be {_NOUNS[self.kind]}")
        return value

    def _check_number(self, value: float, label: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{label}={value} is not a finite number")
        in_bounds = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not in_bounds:
            raise UserError(f"{label}={quoted(value)} must be {self.range()}")
        if isinstance(value, int):
            return
        if value and not FLOAT_TINY <= abs(value) <= FLOAT_MAX:
            raise UserError(f"{label}={value} must have a magnitude that float32 can hold")

    def _check_string(self, text: str, label: str) -> None:
        if (redacted := without_credentials(text)) != text:
            raise UserError(
                f"{label}={redacted} contains a user name or password, which the run's files would "
                "store; remove it, and use environment variables or ~/.netrc"
            )
        if self.choices:
            if text not in self.choices:
                hint = suggestion(text[:LONGEST_NAME], self.choices, self.otherwise)
                raise UserError(f"{label}={quoted(text)} is unknown{hint}")
            return
        check_text(text, label, longest=0 if self.path else self.longest)
        if self.path:
            check_path(text, label)

    def _several(self, value: Any, label: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{label}={quoted(value)} must be a list of strings")
        if len(value) > self.most:
            raise UserError(f"{label} has {len(value)} entries; the limit is {self.most}")
        for text in value:
            self._check_string(text, label)
        return tuple(value)


def check_text(text: str, label: str, longest: int = 0, lines: bool = False) -> None:
    """Refuses text that is too long, not Unicode, or has control characters.

    Args:
      longest: maximum characters; 0 for no limit.
      lines: whether to allow line breaks and tabs.

    Raises:
      UserError: naming the label.
    """
    if longest and len(text) > longest:
        raise UserError(f"{label}={quoted(text)} has {len(text)} characters, more than {longest}")
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UserError(f"{label}={quoted(text)} is not valid UTF-8")
        if kind in ("Cc", "Zl", "Zp") and not (lines and character in "\n\t\r\u2028\u2029"):
            raise UserError(f"{label}={quoted(text)} contains the control character {character!a}")


def check_path(text: str, label: str) -> None:
    """Refuses a path that is too long, and one of a device, a pipe or a socket.

    Raises:
      UserError: naming the label.
    """
    if not text:
        raise UserError(f"{label} is empty; leave it out, or set it to a path")
    check_text(text, label)
    longest = max(len(part.encode()) for part in text.split("/"))
    if longest > LONGEST_NAME:
        raise UserError(
            f"{label}={quoted(text)} has a name of {longest} bytes; the limit is {LONGEST_NAME}"
        )
    if len(text.encode()) >= 4096:  # Linux's PATH_MAX
        raise UserError(f"{label}={quoted(text)} is longer than a path can be")
    if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
        # Reading it may never end.
        raise UserError(f"{label}={text} is neither a file nor a folder")


def _number(bound: float) -> str:
    """Formats a bound: 2147483647, 0.5, 1e-06."""
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else f"{bound:g}"
