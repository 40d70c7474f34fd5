"""Tokenizers: `bytes`, `gpt2`, `ids:N`, any Hugging Face tokenizer.json, and Marian's."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from gpt2_jax.data.json_tokenizer import JsonTokenizer
from gpt2_jax.data.marian_tokenizer import MarianTokenizer, is_marian
from gpt2_jax.data.tokenizer_protocol import END_OF_TEXT, Tokenizer, id_dtype
from gpt2_jax.errors import UserError, quoted

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
MAX_ID_DIGITS = 9


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the UTF-8 bytes of the text; 256 is end-of-text."""

    name, fingerprint, size, end_of_text = "bytes", "bytes-1", 257, 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def n_bytes(self, i: int) -> int:
        """Returns the number of bytes of a token; 0 for end-of-text."""
        return int(i < self.end_of_text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(i for i in ids if i < 256)


class GPT2Tokenizer(Tokenizer):
    """OpenAI's byte-level BPE, from the merges included in the package."""

    name, fingerprint, size, end_of_text = "gpt2", "gpt2-1", 50257, 50256

    def __init__(self) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding(
            name="gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=gpt2_ranks(),
            special_tokens={END_OF_TEXT: self.end_of_text},
            explicit_n_vocab=self.size,
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(self._encoding.encode_ordinary(text), np.uint16) for text in texts]

    def encode_specials(self, text: str) -> list[int]:
        """Returns the ids of a text in which `<|endoftext|>` is recognized."""
        return self._encoding.encode(text, allowed_special="all")

    def n_bytes(self, i: int) -> int:
        """Returns the number of bytes of a token."""
        return len(self._encoding.decode_single_token_bytes(i))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes([int(i) for i in ids if i < self.end_of_text])


def printable_bytes() -> dict[int, str]:
    """Returns the character that represents each byte in GPT-2's files, in the order of the ids.

    The 188 printable bytes are first and represent themselves; the other 68 are represented by the
    characters from U+0100 on (openai/gpt-2 src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def gpt2_merges() -> list[tuple[str, str]]:
    """Returns the 50,000 merges in order, written in the characters of `printable_bytes`."""
    packed = resources.files("gpt2_jax.data").joinpath("gpt2_merges.bpe.xz").read_bytes()
    lines = lzma.decompress(packed).decode().split("\n")[1:-1]
    pairs = (line.split() for line in lines)
    return [(left, right) for left, right in pairs]


def gpt2_ranks() -> dict[bytes, int]:
    """Returns the id of each of GPT-2's tokens, given as bytes.

    The first 256 ids are single bytes; each merge then joins two tokens to the one with the next id
    (openai/gpt-2 src/encoder.py).
    """
    characters = printable_bytes()
    byte_of = {character: b for b, character in characters.items()}
    ranks = {bytes([b]): rank for rank, b in enumerate(characters)}
    for left, right in gpt2_merges():
        ranks[bytes(byte_of[c] for c in left + right)] = len(ranks)
    return ranks


class IdTokenizer(Tokenizer):
    """`ids:SIZE`, for models whose tokenizer is not available: texts are token ids in decimal.

    The last id is end-of-text, but may also occur in a text.
    """

    def __init__(self, name: str) -> None:
        size = name.removeprefix("ids:")
        if not size.isdecimal() or len(size) > MAX_ID_DIGITS or int(size) < 2:
            raise UserError(
                f"data.tokenizer={quoted(name)} needs a vocabulary size of at least 2, as in "
                "ids:50257"
            )
        self.name, self.fingerprint = name, f"{name}-1"
        self.size = int(size)
        self.end_of_text = self.size - 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        dtype = id_dtype(self.size)
        return [np.array([self._id(word) for word in text.split()], dtype) for text in texts]

    def _id(self, word: str) -> int:
        if not word.isdecimal() or len(word) > MAX_ID_DIGITS or int(word) >= self.size:
            raise UserError(
                f"{quoted(word)} is not a token id below {self.size} (data.tokenizer={self.name})"
            )
        return int(word)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return " ".join(str(int(i)) for i in ids).encode()


@lru_cache(maxsize=8)
def _file_tokenizer(name: str, content: bytes) -> JsonTokenizer | MarianTokenizer:
    return MarianTokenizer(name, content) if is_marian(content) else JsonTokenizer(name, content)


@cache
def _gpt2_tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer()


def load_tokenizer(name: str, fingerprint: str | None = None) -> Tokenizer:
    """Loads the tokenizer named by a value of `data.tokenizer`.

    A file is read at each call, because the file, or the working directory that its path is
    relative to, may have changed.

    Args:
      name: `bytes`, `gpt2`, `ids:N`, or the path of a tokenizer.json or of an imported Marian's.
      fingerprint: expected fingerprint; None for any.

    Raises:
      UserError: if there is no such tokenizer, or it has another fingerprint.
    """
    tokenizer = _load(name)
    if fingerprint not in (None, tokenizer.fingerprint):
        raise UserError(f"data.tokenizer={name} changed while it was used; run the command again")
    return tokenizer


def _load(name: str) -> Tokenizer:
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return _gpt2_tokenizer()
    if name.startswith("ids:"):
        return IdTokenizer(name)
    if name.startswith(("bpe:", "wordpiece:")) and not Path(name).is_file():
        raise UserError(
            f"data.tokenizer={name} is trained on data.source when it is prepared, which this "
            "command does not do; set it to the path of a tokenizer.json"
        )
    return _file_tokenizer(name, _read_tokenizer_file(name))


def is_tokenizer_file(name: str) -> bool:
    """Returns whether a value of `data.tokenizer` is a path instead of a built-in name."""
    return name not in ("bytes", "gpt2") and not name.startswith("ids:")


def _read_tokenizer_file(name: str) -> bytes:
    path = Path(name)
    try:
        if path.exists() and not path.is_file():  # reading a pipe may never end
            raise UserError(f"data.tokenizer={name} is not a file; set it to a tokenizer.json")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.tokenizer={name}: {reason}; set it to `bytes`, `gpt2`, or the path of a "
            "tokenizer.json"
        ) from None
