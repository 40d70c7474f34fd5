"""What a person is told when a run cannot go on, and the exit codes that scripts read."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

EXIT_FINISHED = 0
EXIT_DIVERGED = 1
EXIT_WRONG_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: saved, and the same command continues


class UserError(Exception):
    """Wrong input: one line that says what is wrong, where, and what to do."""

    exit_code = EXIT_WRONG_INPUT


class Diverged(UserError):
    """The run itself went wrong: too many updates in a row had to be skipped."""

    exit_code = EXIT_DIVERGED


class Damaged(UserError):
    """A file that does not hold what it should."""


class DiskError(UserError):
    """A full, missing or read-only disk, which everything else would meet as well."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known word, else the words there are."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"


def printable(text: str) -> str:
    """Returns the text with everything escaped that could steer a terminal or hide itself.

    These are Unicode's categories of control, format, surrogate, private and unassigned
    characters and of line separators. The result is one line.
    """
    escape = lambda c: c.encode("unicode_escape", "surrogatepass").decode()
    hidden = lambda c: unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")
    return "".join(escape(c) if hidden(c) else c for c in text)


def shown(value: Any, longest: int = 80) -> str:
    """Returns `repr(value)` for an error message, cut to a length that fits a line."""
    if isinstance(value, str | bytes):
        value = value[: longest + 1]
    try:
        text = repr(value)
    except Exception:  # an integer of over 4,300 digits, nesting without end, somebody's __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}..."


def without_credentials(text: str) -> str:
    """Returns a text in which the user name and password of every URL are replaced by `***`."""
    return re.sub(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@", r"\1***@", text)
