"""Tokenizers: `bytes`, `gpt2`, `ids:N`, any Hugging Face tokenizer.json, and Marian's."""

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

from gpt2_jax.data.marian_tokenizer import MarianTokenizer, is_marian
from gpt2_jax.errors import UserError, quoted

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
MAX_ID_DIGITS = 9
NO_UNKNOWN = "<no unknown token>"
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer(Protocol):
    """Converts between text and token ids.

    Attributes:
      name: as in `data.tokenizer`.
      fingerprint: identifies the mapping from text to ids.
      size: vocabulary size, which is the largest id + 1.
      end_of_text: the id that separates documents.
    """

    name: str
    fingerprint: str
    size: int
    end_of_text: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (n,) of each text; special tokens in a text are encoded as plain text."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Returns the text of ids as UTF-8 bytes, without end-of-text."""


def id_dtype(size: int) -> type[np.unsignedinteger]:
    """Returns the smallest type for the ids of a vocabulary: uint16 or uint32."""
    return np.uint16 if size <= 2**16 else np.uint32


class ByteTokenizer:
    """Ids 0 to 255 are the UTF-8 bytes of the text; 256 is end-of-text."""

    name, fingerprint, size, end_of_text = "bytes", "bytes-1", 257, 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def n_bytes(self, i: int) -> int:
        """Returns the number of bytes of a token; 0 for end-of-text."""
        return int(i < self.end_of_text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(i for i in ids if i < 256)


class GPT2Tokenizer:
    """OpenAI's byte-level BPE, from the merges included in the package."""

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


class IdTokenizer:
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


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns the exceptions of the `tokenizers` library into a `UserError`.

    It raises bare `Exception`, and `PanicException`, a `BaseException`, if its Rust code panics.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | UserError):
            raise
        raise UserError(f"{what}: {error}") from None


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`, loaded with the `tokenizers` library.

    Truncation, padding and BPE dropout are disabled: they are meant for batches of training
    examples, and would change the text of a corpus or prompt.

    The end-of-text token is the added token with `"end_of_text": true`, which an import sets, or
    else the first of `END_OF_TEXT_NAMES` in the vocabulary.

    Args:
      name: as in `data.tokenizer`, for error messages.
      content: bytes of the file.

    Attributes:
      content: bytes of the file.
      end_of_text_name: the end-of-text token as text.
      library: the tokenizer of the `tokenizers` library.

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
        self._tokenizer.encode_special_tokens = True  # as plain text
        self._fail_on_unknown_characters()
        altered = self._disable_truncation_padding_dropout()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        # Ids may have gaps; the model needs an embedding for the largest.
        self.size = max(ids.values(), default=-1) + 1
        altered |= self.size != len(ids)
        # Earlier versions encoded text differently with such tokenizers.
        versioned = content + b"\nversion 2" if altered else content
        self.fingerprint = hashlib.sha256(versioned).hexdigest()
        marked = [token["content"] for token in added if token.get("end_of_text")]
        known = [name for name in (*marked, *END_OF_TEXT_NAMES) if name in ids]
        if not known:
            raise UserError(
                f"data.tokenizer={name} has no end-of-text token; add one of "
                f"{', '.join(END_OF_TEXT_NAMES)} to its added_tokens"
            )
        self.end_of_text_name, self.end_of_text = known[0], ids[known[0]]

    @property
    def library(self) -> Any:
        return self._tokenizer

    def _fail_on_unknown_characters(self) -> None:
        """Makes BPE without an unknown token raise an error instead of skipping characters.

        The unknown token is set to one that is not in the vocabulary, which is an error on use.
        """
        model = self._tokenizer.model
        if getattr(model, "unk_token", "") is None:
            model.unk_token = NO_UNKNOWN

    def _disable_truncation_padding_dropout(self) -> bool:
        """Disables truncation, padding and BPE dropout; returns whether any was enabled."""
        tokenizer, model = self._tokenizer, self._tokenizer.model
        dropout = getattr(model, "dropout", None) is not None
        altered = dropout or tokenizer.truncation is not None or tokenizer.padding is not None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if dropout:
            model.dropout = None
        return altered

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        # Fails, for example, for an unknown word if the vocabulary has no [UNK].
        with library_errors(f"data.tokenizer={self.name} cannot encode the text"):
            try:
                encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            except Exception as error:
                if NO_UNKNOWN not in str(error):
                    raise
                raise UserError(
                    f"data.tokenizer={self.name} cannot encode the text: it has neither tokens for "
                    "some characters nor an unk_token, so they would be "
                    "lost; train it on all characters (for ByteLevel, initial_alphabet=ByteLevel."
                    "alphabet()), or set its unk_token"
                ) from None
        return [np.asarray(one.ids, id_dtype(self.size)) for one in encoded]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        text_ids = [int(i) for i in ids if i != self.end_of_text]
        return self._tokenizer.decode(text_ids, skip_special_tokens=False).encode()


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
