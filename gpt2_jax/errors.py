"""Exceptions that end a command with a one-line message, exit codes, and message formatting."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

EXIT_FINISHED = 0
EXIT_DIVERGED = 1
EXIT_WRONG_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: progress is saved, and the same command continues
EXIT_PEER_LOST = 76  # another process of the run is gone; starting all again continues
MIN_ABBREVIATION = 3  # characters of a word that may stand for a longer one
# Errors raised by study files written for earlier versions, and the fix for each.
RENAMED = {
    "No module named 'gpt2_jax.ablate'": "import Study from gpt2_jax.ablation.study",
    "argument 'at_once'": "it is now trials_per_batch",
    "argument 'most'": "it is now max_n",
    "argument 'contenders'": "it is now max_contenders",
}


class UserError(Exception):
    """Invalid input. The message is one line: what is wrong, where, and how to fix it."""

    exit_code = EXIT_WRONG_INPUT


class Diverged(UserError):
    """Training diverged.

    Attributes:
      reason: the message without advice on what to do.
    """

    exit_code = EXIT_DIVERGED

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


class Damaged(UserError):
    """A file with unexpected content."""


class Unavailable(UserError):
    """Remote data cannot be read now. Training saves its progress and stops."""


class DiskError(UserError):
    """A full, missing or read-only disk. Other writes would fail too."""


def suggestion(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Returns `; did you mean 'x'?` if a known word is similar, else lists the known words.

    A word and its abbreviation are similar: `evaluate` and `eval`.

    Args:
      otherwise: what follows the list, if more words can become known.
    """
    known = sorted(known)
    abbreviates = lambda a, b: len(a) >= MIN_ABBREVIATION and b.startswith(a)
    related = [one for one in known if abbreviates(one, word) or abbreviates(word, one)]
    near = difflib.get_close_matches(word, related, n=1, cutoff=0)
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"; choose one of {', '.join(known)}{otherwise}"
    return f"; did you mean '{near[0]}'?" if near else listed


def counted(n: int | str, noun: str, ending: str = "s") -> str:
    """Returns `1 layer`, `1,200 layers` or `3 + 3 layers`.

    Args:
      ending: of the plural.
    """
    text = n if isinstance(n, str) else f"{n:,}"
    return f"{text} {noun}{ending * (text != '1')}"


def printable(text: str) -> str:
    """Escapes line breaks and characters that are invisible or control a terminal.

    These are Unicode's control, format, surrogate, private-use and unassigned characters, and the
    line and paragraph separators.
    """
    escape = lambda c: c.encode("unicode_escape", "surrogatepass").decode()
    hidden = lambda c: unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")
    return "".join(escape(c) if hidden(c) else c for c in text)


def quoted(value: object, longest: int = 80) -> str:
    """Returns `repr(value)` for an error message, truncated to `longest` characters."""
    if isinstance(value, str | bytes):
        value = value[: longest + 1]
    try:
        text = repr(value)
    except Exception:  # an integer of over 4,300 digits, deep nesting, a user's __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}..."


def without_credentials(text: str) -> str:
    """Replaces the user name and password of every URL in a text by `***`.

    A URL ends at its weight in a mixture, because an `@` may follow in the next source.
    """
    userinfo = r"(?:(?!=[0-9.]+,)[^\s'\"])*@"
    return re.sub(rf"(\b[A-Za-z][A-Za-z0-9+.-]*://){userinfo}", r"\1***@", text)


def shortened(error: BaseException, longest: int = 200) -> str:
    """Returns an exception's text on one line, truncated to `longest` characters."""
    return " ".join(str(error).split())[:longest]


def one_line(error: BaseException) -> str:
    """Returns an exception's type and text on one line, without any traceback in its text."""
    try:
        text = str(error)
    except Exception:  # a user's __str__
        text = ""
    head, _, trace = text.partition("Traceback")
    if trace:
        lines = trace.strip().splitlines()
        indented = [number for number, line in enumerate(lines) if line.startswith(" ")]
        text = f"{head} {' '.join(lines[max(indented, default=-1) + 1 :])}"
    text = " ".join(text.partition(" Other fields present")[0].split())[:300]
    text = text[1:-1] if text[:1] == text[-1:] and text[:1] in "'\"" else text
    hint = next((f"; {hint}" for former, hint in RENAMED.items() if former in text), "")
    return f"{type(error).__name__}: {text}{hint}"
