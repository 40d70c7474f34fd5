"""Marian's tokenizer: SentencePiece models of both sides, whose pieces share one vocabulary."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt2_jax.data.tokenizer_protocol import (
    FORCED_FIRST,
    FORCED_LAST,
    START,
    TARGET_IDS,
    SideFrame,
    Specials,
    Tokenizer,
)
from gpt2_jax.errors import UserError, shortened

KIND = "marian"  # `type` in the file
SIDES = ("source_spm", "target_spm")  # the SentencePiece files, in base64
SPECIAL_NAMES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}  # Marian's usual
# The target language, at the start of a source of a multilingual model: `>>fra<< The dog`.
CODE_START, CODE_END = ">>", "<<"
SPACE = "\u2581"  # in pieces


def is_marian(content: bytes) -> bool:
    """Returns whether the content of a tokenizer file is a Marian's, as `pack` writes it."""
    if SIDES[0].encode() not in content:  # most files are not parsed twice
        return False
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("type") == KIND


def pack(
    models: Sequence[bytes],
    vocab: Mapping[str, int],
    names: Mapping[str, str],
    targets: Mapping[str, int],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the fields of the file of a `MarianTokenizer`.

    Args:
      models: SentencePiece files of source and target. vocab: the id of each piece.
      names: special tokens, by the fields of `SPECIAL_NAMES`.
      targets: ids that a decoder starts from or that are forced, by the fields of `TARGET_IDS`.
      settings: fields of tokenizer_config.json to keep for an export.
    """
    packed = {
        side: base64.b64encode(model).decode() for side, model in zip(SIDES, models, strict=True)
    }
    rest = {**targets, "settings": dict(settings)}
    return {"type": KIND, **packed, "vocab": dict(vocab), **names, **rest}


class MarianTokenizer(Tokenizer):
    """A tokenizer with a SentencePiece model per side and ids from one vocabulary.

    Pieces that the vocabulary does not have are unknown; ids of special tokens are not decoded.

    Args:
      name: as in `data.tokenizer`, for error messages.
      content: of the file, as JSON of what `pack` returns.

    Attributes:
      content: bytes of the file.
      models: the SentencePiece files of source and target.
      vocab: the id of each piece.
      names: special tokens, by the fields of `SPECIAL_NAMES`.
      settings: fields of tokenizer_config.json for an export.
      pad, unknown, start: ids of padding, of unknown pieces, and before the first of a target.
      forced_first, forced_last: as in `SideFrame`.

    Raises:
      UserError: if the content is not valid, or the package `sentencepiece` is not installed.
    """

    content: bytes

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            fields = json.loads(content)
            self.models = [base64.b64decode(fields[side], validate=True) for side in SIDES]
            self.vocab: dict[str, int] = fields["vocab"]
            self.names = {field: fields[field] for field in SPECIAL_NAMES}
            self.settings = dict(fields["settings"])
            special = [self.vocab[name] for name in self.names.values()]
            targets = {name: int(fields[name]) for name in TARGET_IDS if name in fields}
            self.start = targets[START]
            self.size = 1 + max(*self.vocab.values(), *targets.values())
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"data.tokenizer={name} is damaged: {error!r}; import the Marian again"
            ) from None
        self.unknown, self.end_of_text, self.pad = special
        self.forced_first, self.forced_last = map(targets.get, (FORCED_FIRST, FORCED_LAST))
        self._pieces = {i: piece for piece, i in self.vocab.items()}
        self._source, self._target = (
            _load(model, f"{side} of data.tokenizer={name}")
            for side, model in zip(SIDES, self.models, strict=True)
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._ids(self._source, texts)

    def encode_targets(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._ids(self._target, texts)

    def _ids(self, model: Any, texts: Sequence[str]) -> list[np.ndarray]:
        split = [_split_code(text) for text in texts]
        try:
            segmented = model.encode([text for _, text in split], out_type=str)
        except (RuntimeError, TypeError) as error:  # such as half of a surrogate pair
            raise UserError(
                f"data.tokenizer={self.name} cannot encode the text: {shortened(error)}"
            ) from None
        pairs = zip(split, segmented, strict=True)
        return [self._lookup([*code, *pieces]) for (code, _), pieces in pairs]

    def _lookup(self, pieces: Iterable[str]) -> np.ndarray:
        return np.array([self.vocab.get(piece, self.unknown) for piece in pieces], np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        special = (self.unknown, self.end_of_text, self.pad)
        known = [int(i) for i in ids if int(i) in self._pieces]
        pieces = [self._pieces[i] for i in known if i not in special]
        # Spaces remain in pieces that only the model of targets has.
        return self._source.decode_pieces(pieces).replace(SPACE, " ").strip().encode()

    def token(self, i: int) -> str:
        return self._pieces.get(i, "")

    @property
    def specials(self) -> Specials:
        pad, end = self.pad, self.end_of_text
        every = frozenset({pad, end, self.unknown, self.start})
        return Specials(pad, end, end, None, end, None, every, self.start)

    @property
    def side_frame(self) -> SideFrame:
        return SideFrame((), (self.end_of_text,), self.forced_first, self.forced_last)


def _load(model: bytes, what: str) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "the tokenizer of a Marian requires sentencepiece; pip install sentencepiece"
        ) from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise UserError(f"{what} is not a SentencePiece model: {shortened(error)}") from None
    return processor


def _split_code(text: str) -> tuple[list[str], str]:
    """Returns the language code before a text, as a list of at most one, and the rest."""
    end = text.find(CODE_END)
    if not text.startswith(CODE_START) or end < 0:
        return [], text
    end += len(CODE_END)
    return [text[:end]], text[end:]
