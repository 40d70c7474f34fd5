"""Documents split at a separator that the text holds, such as `<|endoftext|>`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2_jax.data.sources import Source
from gpt2_jax.data.text import Piece


@dataclass(frozen=True)
class Separated:
    """A source whose documents are those between separators.

    The separator itself and the line breaks around it are not text.
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
        held = ""
        begun = False  # part of the present document was yielded
        after = False  # the present document follows a separator

        def trimmed(text: str) -> str:
            return text.lstrip("\r\n") if after and not begun else text

        for piece in self.source.pieces():
            *complete, held = (held + piece.text).split(self.separator)
            for text in complete:
                text = trimmed(text).rstrip("\r\n")
                if text or begun:
                    yield Piece(text)
                begun, after = False, True
            if piece.last:
                text = trimmed(held)
                if text or begun:
                    yield Piece(text)
                held, begun, after = "", False, False
            elif held and not self._may_continue(held):
                if text := trimmed(held):
                    yield Piece(text, last=False)
                    begun = True
                held = ""

    def _may_continue(self, text: str) -> bool:
        """Returns whether the next piece could complete a separator that `text` begins."""
        lengths = range(1, len(self.separator))
        return any(text.endswith(self.separator[:n]) for n in lengths)
