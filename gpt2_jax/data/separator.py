"""Splits documents at a separator in the text, such as `<|endoftext|>`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2_jax.data.sources import Source
from gpt2_jax.data.text import Piece


@dataclass(frozen=True)
class SeparatedSource:
    """A source with its documents split at a separator.

    The separator and the line breaks around it are dropped.
    """

    source: Source
    separator: str

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def summary(self) -> str:
        return self.source.summary

    @property
    def size(self) -> int | None:
        return self.source.size

    def fingerprint(self) -> str:
        facts = f"{self.source.fingerprint()}\0{self.separator}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        pending = ""
        started = False  # part of the current document was yielded
        after_separator = False  # the current document follows a separator

        def strip_start(text: str) -> str:
            return text.lstrip("\r\n") if after_separator and not started else text

        for piece in self.source.pieces():
            *complete, pending = (pending + piece.text).split(self.separator)
            for text in complete:
                text = strip_start(text).rstrip("\r\n")
                if text or started:
                    yield Piece(text)
                started, after_separator = False, True
            if piece.last:
                text = strip_start(pending)
                if text or started:
                    yield Piece(text)
                pending, started, after_separator = "", False, False
            else:
                safe = self._without_partial_separator(pending)
                if text := strip_start(safe):
                    yield Piece(text, last=False)
                    started = True
                pending = pending[len(safe) :]

    def _without_partial_separator(self, text: str) -> str:
        """Strips the start of a separator, and line breaks, from the end of an incomplete text."""
        for n in reversed(range(1, len(self.separator))):
            if text.endswith(self.separator[:n]):
                text = text[:-n]
                break
        return text.rstrip("\r\n")
