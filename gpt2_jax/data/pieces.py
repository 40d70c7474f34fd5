"""Special ids of a tokenizer, and where in a text its tokens are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpt2_jax.data.marian_tokenizer import MarianTokenizer
from gpt2_jax.data.tokenizer import (
    ByteTokenizer,
    GPT2Tokenizer,
    JsonTokenizer,
    Tokenizer,
    library_errors,
)
from gpt2_jax.errors import UserError

# Names of special tokens in the vocabularies of BERT, RoBERTa, BART, GPT-2, Llama and others.
_PAD = ("[PAD]", "<pad>", "<|pad|>")
_BOS = ("<s>", "<bos>", "<|startoftext|>", "<|begin_of_text|>", "[CLS]")
_CLS = ("[CLS]", "<cls>", "<s>")
_SEP = ("[SEP]", "<sep>", "</s>")
_MASK = ("[MASK]", "<mask>", "<|mask|>")


@dataclass(frozen=True)
class Specials:
    """The special ids of a tokenizer.

    Attributes:
      pad, bos, eos: end-of-text if the vocabulary has no token for them. `bos` is before the first
        token of targets, which for Marian is the padding's.
      cls, sep, mask: None if the vocabulary has no token for them.
      all: every special id, which is never masked.
    """

    pad: int
    bos: int
    eos: int
    cls: int | None
    sep: int | None
    mask: int | None
    all: frozenset[int]


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


@dataclass(frozen=True)
class Frame:
    """The special ids around one or two sequences: prefix A middle, or prefix A middle B suffix.

    Attributes:
      prefix, single_suffix: around a single sequence.
      pair_prefix, middle, suffix: around and between two.
      second_type: the token type of the second sequence and of `suffix`; the rest have type 0.
    """

    prefix: tuple[int, ...]
    single_suffix: tuple[int, ...]
    pair_prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    second_type: int = 1


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
        """The special ids."""
        if isinstance(self.tokenizer, MarianTokenizer):
            return _marian_specials(self.tokenizer)
        vocabulary = self._vocabulary()
        eos = self.tokenizer.end_of_text
        find = lambda names: next((vocabulary[n] for n in names if n in vocabulary), None)
        pad, bos, cls, sep, mask = map(find, (_PAD, _BOS, _CLS, _SEP, _MASK))
        named = {i for i in (pad, bos, eos, cls, sep, mask) if i is not None}
        return Specials(
            eos if pad is None else pad,
            eos if bos is None else bos,
            eos,
            cls,
            sep,
            mask,
            all=frozenset(named | self._added_specials()),
        )

    def _vocabulary(self) -> dict[str, int]:
        return {} if self._library is None else self._library.get_vocab(with_added_tokens=True)

    def _added_specials(self) -> set[int]:
        if self._library is None:
            return set()
        added = self._library.get_added_tokens_decoder()
        return {i for i, token in added.items() if token.special}

    def token_text(self, i: int | None) -> str:
        """Returns a special token as text; empty if there is none."""
        if i is None:
            return ""
        if self._library is not None:
            return self._library.id_to_token(i) or ""
        if isinstance(self.tokenizer, MarianTokenizer):
            return self.tokenizer.piece(i)
        return "<|endoftext|>" if i == self.tokenizer.end_of_text else ""

    @cached_property
    def frame(self) -> Frame:
        """The special ids that the tokenizer puts around sequences.

        They are those of the tokenizer's post-processor, or else cls and sep if it has them. If it
        has neither, two sequences are separated by end-of-text.
        """
        found = self._processor_frame()
        if found is not None:
            return found
        special = self.specials
        cls = () if special.cls is None else (special.cls,)
        sep = () if special.sep is None else (special.sep,)
        return Frame(cls, sep, cls, sep or (special.eos,), sep)

    def _processor_frame(self) -> Frame | None:
        if self._library is None or self._library.num_special_tokens_to_add(False) == 0:
            return None
        one, two = (self._library.encode(*texts) for texts in (("a",), ("a", "a")))
        cut = lambda ids, parts: [tuple(ids[part]) for part in parts]
        prefix, single_suffix = cut(one.ids, _around(one.sequence_ids, 1))
        pair_prefix, middle, suffix = cut(two.ids, _around(two.sequence_ids, 2))
        second = two.type_ids[two.sequence_ids.index(1)]
        return Frame(prefix, single_suffix, pair_prefix, middle, suffix, second)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Returns the tokens of each text; special tokens in a text are encoded as plain text.

        Raises:
          UserError: if the tokenizer cannot encode them or has no positions.
        """
        if self._library is None:
            ids = self.tokenizer.encode(texts)
            return [self._byte_pieces(t, one) for t, one in zip(texts, ids, strict=True)]
        return self._encode_with(self._library, texts)

    def encode_targets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (n,) of each text as a target; only Marian's differ from other texts'.

        Raises:
          UserError: if the tokenizer cannot encode them.
        """
        if isinstance(self.tokenizer, MarianTokenizer):
            return self.tokenizer.encode_targets(texts)
        return self.tokenizer.encode(texts)

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
        tokens = [self._token(i) for i in range(self.tokenizer.size)]
        for mark in ("\u0120", "\u2581"):  # byte-level BPE, SentencePiece
            if any(token.startswith(mark) for token in tokens):
                return np.array([token.startswith(mark) for token in tokens])
        return np.array([not token.startswith("##") for token in tokens])

    def _token(self, i: int) -> str:
        if self._library is not None:
            return self._library.id_to_token(i) or ""
        if isinstance(self.tokenizer, MarianTokenizer):
            return self.tokenizer.piece(i)
        return self.tokenizer.decode_bytes([i]).decode("utf-8", "replace").replace(" ", "\u0120")


def _marian_specials(tokenizer: MarianTokenizer) -> Specials:
    pad, start, end = tokenizer.pad, tokenizer.start, tokenizer.end_of_text
    every = frozenset({pad, start, end, tokenizer.unknown})
    return Specials(pad, start, end, cls=None, sep=end, mask=None, all=every)


def _around(sequence_ids: Iterable[int | None], n: int) -> list[slice]:
    """Returns the parts of a framed text before, between and after `n` sequences."""
    ids = list(sequence_ids)
    edges = [0]
    for k in range(n):
        edges += [ids.index(k), len(ids) - ids[::-1].index(k)]
    edges.append(len(ids))
    return [slice(*edges[k : k + 2]) for k in range(0, len(edges), 2)]


def _word_of(pieces: Pieces, words: Sequence[str]) -> np.ndarray:
    """Returns the index of the word of each token, by the last character of the token."""
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths + 1)  # a word's characters and the space after it
    starts = ends - lengths - 1
    last = np.maximum(pieces.ends - 1, pieces.starts)
    word = np.minimum(np.searchsorted(ends, last, side="right"), len(words) - 1)
    is_space = last == starts[word] + lengths[word]
    return np.minimum(word + is_space, len(words) - 1)
