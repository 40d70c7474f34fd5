"""Incremental decoding of token ids to text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError

UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Returns the text that `new` ids add to that of a prompt.

    They are decoded together, because in many vocabularies a token's text depends on its
    neighbors: SentencePiece and WordPiece drop the space before the first word.
    """
    before = tokenizer.decode_bytes(prompt)
    whole = tokenizer.decode_bytes([*prompt, *new])
    return whole[len(before) :].decode(errors="replace")


class TextStream:
    """Decodes ids to text, piece by piece; text once returned never changes.

    Incomplete characters, and text that may be the beginning of a stop string, are held back.

    Args:
      stops: strings that end the text without being part of it.
      prompt: ids before the text, which are decoded with it but are not part of it.

    Raises:
      UserError: if a stop string is empty.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        if "" in stops:
            raise UserError("a stop string (--stop) must not be empty")
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = list(prompt)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_bytes = len(tokenizer.decode_bytes(self._ids))
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Adds an id and returns the text that is now final."""
        if self.stopped:
            return ""
        self._ids.append(token_id)
        data = self._tokenizer.decode_bytes(self._ids)
        while data.endswith(UNKNOWN):  # some tokenizers emit it for an incomplete character
            data = data.removesuffix(UNKNOWN)
        return self._release(self._decoder.decode(data[self._n_bytes :]), len(data))

    def finish(self) -> str:
        """Returns the text that was still held back."""
        if self.stopped:
            return ""
        data = self._tokenizer.decode_bytes(self._ids)
        out = self._release(self._decoder.decode(data[self._n_bytes :], final=True), len(data))
        self.text += self._held
        out, self._held = out + self._held, ""
        return out

    def _release(self, new: str, n_bytes: int) -> str:
        self._n_bytes = max(self._n_bytes, n_bytes)
        waiting = self._held + new
        found = [at for stop in self._stops if (at := waiting.find(stop)) >= 0]
        if found:
            self.stopped, final, self._held = True, waiting[: min(found)], ""
        else:
            keep = max((_overlap(waiting, stop) for stop in self._stops), default=0)
            cut = len(waiting) - keep
            final, self._held = waiting[:cut], waiting[cut:]
        self.text += final
        return final


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of `text` that is a prefix of `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop[:n] == text[-n:]), 0
    )
