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
            else:
                settled = self._settled(held)
                if text := trimmed(settled):
                    yield Piece(text, last=False)
                    begun = True
                held = held[len(settled) :]

    def _settled(self, text: str) -> str:
        """Returns the text less what may be a separator, or line breaks before one, further on."""
        for n in reversed(range(1, len(self.separator))):
            if text.endswith(self.separator[:n]):
                text = text[:-n]
                break
        return text.rstrip("\r\n")
