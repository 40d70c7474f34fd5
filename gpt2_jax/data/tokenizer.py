"""Text to token ids and back: `bytes`, `gpt2`, `ids:N`, and any Hugging Face tokenizer.json."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt2_jax.errors import UserError, shown

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
MOST_DIGITS = 9  # of an id
NO_UNKNOWN = "<no unknown token>"
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer(Protocol):
    """What a tokenizer is.

    Attributes:
      name: as `data.tokenizer` gives it.
      fingerprint: changes when the ids of any text would.
      size: number of ids.
      end_of_text: the id between documents.
    """

    name: str
    fingerprint: str
    size: int
    end_of_text: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text; no text stands for a special token."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Returns the text's UTF-8 bytes, end-of-text left out."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255; end-of-text is 256."""

    name, fingerprint, size, end_of_text = "bytes", "bytes-1", 257, 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(i for i in ids if i < 256)


class GPT2Tokenizer:
    """OpenAI's byte-level BPE, exact and offline, from the merges that the package ships."""

    name, fingerprint, size, end_of_text = "gpt2", "gpt2-1", 50257, 50256

    def __init__(self) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding(
            name="gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=gpt2_ranks(),
            special_tokens={"<|endoftext|>": self.end_of_text},
            explicit_n_vocab=self.size,
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(self._encoding.encode_ordinary(text), np.uint16) for text in texts]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes([int(i) for i in ids if i < self.end_of_text])


def printable_bytes() -> dict[int, str]:
    """Returns the character that stands for each byte in GPT-2's files, in the order of the ids.

    The 188 bytes that print stand for themselves and come first; the other 68 are characters from
    U+0100 on (openai/gpt-2 src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def gpt2_merges() -> list[tuple[str, str]]:
    """Returns the 50,000 merges in order, in the characters of `printable_bytes`."""
    packed = resources.files("gpt2_jax.data").joinpath("gpt2_merges.bpe.xz").read_bytes()
    lines = lzma.decompress(packed).decode().split("\n")[1:-1]
    pairs = (line.split() for line in lines)
    return [(left, right) for left, right in pairs]


def gpt2_ranks() -> dict[bytes, int]:
    """Returns GPT-2's table of token bytes to ids, rebuilt from the merges alone.

    The first 256 ids are single bytes; each merge then names two known tokens whose join is the
    next id (openai/gpt-2 src/encoder.py).
    """
    shown = printable_bytes()
    byte_of = {character: b for b, character in shown.items()}
    ranks = {bytes([b]): rank for rank, b in enumerate(shown)}
    for left, right in gpt2_merges():
        ranks[bytes(byte_of[c] for c in left + right)] = len(ranks)
    return ranks


class IdTokenizer:
    """Decimal ids between spaces, for models whose tokenizer is not at hand: `ids:SIZE`.

    The last id parts documents, as one has to; in a text it is an id like the others.
    """

    def __init__(self, name: str) -> None:
        size = name.removeprefix("ids:")
        if not size.isdecimal() or len(size) > MOST_DIGITS or int(size) < 2:
            raise UserError(
                f"data.tokenizer={shown(name)} needs a number of ids from 2 on, as in ids:50257"
            )
        self.name, self.fingerprint = name, f"{name}-1"
        self.size = int(size)
        self.end_of_text = self.size - 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        kind = np.uint16 if self.size <= 2**16 else np.uint32
        return [np.array([self._id(word) for word in text.split()], kind) for text in texts]

    def _id(self, word: str) -> int:
        if not word.isdecimal() or len(word) > MOST_DIGITS or int(word) >= self.size:
            raise UserError(
                f"{shown(word)} is not a token id below {self.size} (data.tokenizer={self.name})"
            )
        return int(word)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return " ".join(str(int(i)) for i in ids).encode()


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns whatever the `tokenizers` library raises into one line.

    It raises bare Exception, and where its Rust code panics a PanicException, which is none.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise UserError(f"{what}: {error}") from None


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`, through the `tokenizers` library.

    Truncation, padding and BPE dropout are switched off: they prepare batches for a model, and
    would cut, fill or vary the text of a corpus or a prompt.

    The end-of-text token is the added token marked `"end_of_text": true` (an import marks the
    checkpoint's own), otherwise the first of `END_OF_TEXT_NAMES` in the vocabulary.

    Args:
      name: as `data.tokenizer`, used in errors.
      content: of the file.

    Attributes:
      content: of the file, byte for byte.
      end_of_text_name: the end-of-text token as text.

    Raises:
      UserError: if the content is not a tokenizer.json or has no end-of-text token.
    """

    def __init__(self, name: str, content: bytes) -> None:
        import tokenizers

        with library_errors(f"data.tokenizer={name} is not a tokenizer.json"):
            text = content.decode("utf-8-sig")
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(text)
            added = json.loads(text).get("added_tokens") or []
        self.name, self.content = name, content
        self._tokenizer.encode_special_tokens = True  # in a text they are only text
        self._lose_no_characters()
        altered = self._encode_whole_texts()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        # Ids may have gaps: the model needs a row for the largest.
        self.size = max(ids.values(), default=-1) + 1
        altered |= self.size != len(ids)
        # What was prepared before these were handled held other ids: it gets another fingerprint.
        versioned = content + b"\nversion 2" if altered else content
        self.fingerprint = hashlib.sha256(versioned).hexdigest()
        marked = [token["content"] for token in added if token.get("end_of_text")]
        known = [name for name in (*marked, *END_OF_TEXT_NAMES) if name in ids]
        if not known:
            raise UserError(
                f"data.tokenizer={name} has no end-of-text token "
                f"(one of {', '.join(END_OF_TEXT_NAMES)}); add one to its added_tokens"
            )
        self.end_of_text_name, self.end_of_text = known[0], ids[known[0]]

    def _lose_no_characters(self) -> None:
        """Makes BPE without an unknown token raise, as other models do, where it would skip text.

        The name is not in the vocabulary, which the library finds out when it needs the token.
        """
        model = self._tokenizer.model
        if getattr(model, "unk_token", "") is None:
            model.unk_token = NO_UNKNOWN

    def _encode_whole_texts(self) -> bool:
        """Switches off truncation, padding and dropout; returns whether any was on."""
        tokenizer, model = self._tokenizer, self._tokenizer.model
        dropout = getattr(model, "dropout", None) is not None
        altered = dropout or tokenizer.truncation is not None or tokenizer.padding is not None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if dropout:
            model.dropout = None
        return altered

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        kind = np.uint16 if self.size <= 2**16 else np.uint32
        # For example a word that a vocabulary without [UNK] lacks.
        with library_errors(f"data.tokenizer={self.name} cannot encode the text"):
            try:
                encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            except Exception as error:
                if NO_UNKNOWN not in str(error):
                    raise
                raise UserError(
                    "it has no token for some of its characters, and no unk_token: they would be "
                    "lost; train it on every character (of ByteLevel, initial_alphabet=ByteLevel."
                    "alphabet()), or give it an unk_token"
                ) from None
        return [np.asarray(one.ids, kind) for one in encoded]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        kept = [int(i) for i in ids if i != self.end_of_text]
        return self._tokenizer.decode(kept, skip_special_tokens=False).encode()


_json_tokenizer = lru_cache(maxsize=8)(JsonTokenizer)


@cache
def _gpt2_tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer()


def load_tokenizer(name: str, fingerprint: str | None = None) -> Tokenizer:
    """Returns the tokenizer that `data.tokenizer` names.

    A file is read at each call, so that a changed file, or the same relative path in another
    working directory, never returns an earlier tokenizer.

    Args:
      fingerprint: that the tokenizer must have; None for any.

    Raises:
      UserError: if it is neither `bytes`, `gpt2`, `ids:N` nor a readable tokenizer.json, or has
        another fingerprint.
    """
    tokenizer = _load(name)
    if fingerprint not in (None, tokenizer.fingerprint):
        raise UserError(f"data.tokenizer={name} changed in the meantime; start again")
    return tokenizer


def _load(name: str) -> Tokenizer:
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return _gpt2_tokenizer()
    if name.startswith("ids:"):
        return IdTokenizer(name)
    return _json_tokenizer(name, _read_tokenizer_file(name))


def is_tokenizer_file(name: str) -> bool:
    """Returns whether `data.tokenizer` is the path of a file, not one of the built-in names."""
    return name not in ("bytes", "gpt2") and not name.startswith("ids:")


def _read_tokenizer_file(name: str) -> bytes:
    path = Path(name)
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"data.tokenizer={name} is not a file; give a tokenizer.json")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.tokenizer={name}: {reason}; give `bytes`, `gpt2`, or the path of "
            "a tokenizer.json"
        ) from None
