"""Where in a text the tokens of a tokenizer are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpt2_jax.data.json_tokenizer import JsonTokenizer, library_errors
from gpt2_jax.data.marian_tokenizer import SPACE as PIECE_SPACE
from gpt2_jax.data.tokenizer import ByteTokenizer, GPT2Tokenizer
from gpt2_jax.data.tokenizer_protocol import SPACE, Frame, Specials, Tokenizer
from gpt2_jax.errors import UserError


@dataclass(frozen=True)
class Pieces:
    """The tokens of a text.

    Attributes:
      ids: (n,).
      starts, ends: the characters of each token (n,), end exclusive. Tokens that share a character,
        such as bytes of it, have it in common.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class PieceEncoder:
    """A tokenizer with its special ids and the positions of tokens in texts.

    Args:
      tokenizer: any except `ids:N`, whose tokens are not part of a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._library: Any = tokenizer.library if isinstance(tokenizer, JsonTokenizer) else None

    @cached_property
    def specials(self) -> Specials:
        """The special ids of the tokenizer."""
        return self.tokenizer.specials

    @cached_property
    def frame(self) -> Frame:
        """The special ids that the tokenizer puts around sequences."""
        return self.tokenizer.frame

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Returns the tokens of each text; special tokens in a text are encoded as plain text.

        Raises:
          UserError: if the tokenizer cannot encode them or has no positions.
        """
        if self._library is None:
            ids = self.tokenizer.encode(texts)
            return [self._byte_pieces(t, one) for t, one in zip(texts, ids, strict=True)]
        return self._encode_with(self._library, texts)

    def encode_specials(self, text: str) -> Pieces:
        """Returns the tokens of a text in which special tokens are recognized: a rendered chat.

        Raises:
          UserError: as `encode`.
        """
        if isinstance(self.tokenizer, GPT2Tokenizer):
            ids = np.asarray(self.tokenizer.encode_specials(text), np.uint16)
            return self._byte_pieces(text, ids)
        if self._library is None:
            return self.encode([text])[0]
        return self._encode_with(self._recognizing, [text])[0]

    @cached_property
    def _recognizing(self) -> Any:
        import tokenizers

        copy = tokenizers.Tokenizer.from_str(self._library.to_str())
        copy.encode_special_tokens = False
        return copy

    def _encode_with(self, library: Any, texts: Sequence[str]) -> list[Pieces]:
        with library_errors(f"data.tokenizer={self.tokenizer.name} cannot encode the text"):
            encoded = library.encode_batch(list(texts), add_special_tokens=False)
        out = []
        for one in encoded:
            offsets = np.asarray(one.offsets, np.int64).reshape(-1, 2)
            out.append(Pieces(np.asarray(one.ids, np.int64), offsets[:, 0], offsets[:, 1]))
        return out

    def _byte_pieces(self, text: str, ids: np.ndarray) -> Pieces:
        """Returns pieces of a tokenizer whose tokens are the bytes of the text."""
        if not isinstance(self.tokenizer, ByteTokenizer | GPT2Tokenizer):
            raise UserError(
                f"data.tokenizer={self.tokenizer.name} does not say where its tokens are in a "
                "text; use another for this task"
            )
        lengths = [self.tokenizer.n_bytes(int(i)) for i in ids]
        ends = np.cumsum(np.asarray(lengths, np.int64))
        starts = ends - lengths
        sizes = [len(character.encode()) for character in text]
        character = np.repeat(np.arange(len(text)), sizes)
        return Pieces(ids.astype(np.int64), character[starts], character[ends - 1] + 1)

    def encode_words(
        self, sentences: Sequence[Sequence[str]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the ids of each sentence's words, joined by spaces, and the word of each id.

        A token that is only a space belongs to the next word. A word may have no token, if the
        tokenizer drops all of its characters.

        Raises:
          UserError: as `encode`.
        """
        pieces = self.encode([" ".join(words) for words in sentences])
        return [
            (one.ids, _word_of(one, words)) for one, words in zip(pieces, sentences, strict=True)
        ]

    @cached_property
    def starts_word(self) -> np.ndarray:
        """Whether each id starts a word (size,).

        If tokens include the space before a word, these start words; else all but those with `##`.
        """
        tokens = [self.tokenizer.token(i) for i in range(self.tokenizer.size)]
        for mark in (SPACE, PIECE_SPACE):
            if any(token.startswith(mark) for token in tokens):
                return np.array([token.startswith(mark) for token in tokens])
        return np.array([not token.startswith("##") for token in tokens])


def _word_of(pieces: Pieces, words: Sequence[str]) -> np.ndarray:
    """Returns the index of the word of each token, by the last character of the token."""
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths + 1)  # a word's characters and the space after it
    starts = ends - lengths - 1
    last = np.maximum(pieces.ends - 1, pieces.starts)
    word = np.minimum(np.searchsorted(ends, last, side="right"), len(words) - 1)
    is_space = last == starts[word] + lengths[word]
    return np.minimum(word + is_space, len(words) - 1)
