"""Any Hugging Face tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from gpt2_jax.data.tokenizer_protocol import (
    FORCED_FIRST,
    FORCED_LAST,
    START,
    TARGET_IDS,
    Frame,
    SideFrame,
    Specials,
    Tokenizer,
    id_dtype,
)
from gpt2_jax.errors import UserError

NO_UNKNOWN = "<no unknown token>"
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
END = "end_of_text"  # true in the added token that ends a text; such a token may have `TARGET_IDS`
# Names of special tokens in the vocabularies of BERT, RoBERTa, BART, GPT-2, Llama and others.
_PAD = ("[PAD]", "<pad>", "<|pad|>")
_BOS = ("<s>", "<bos>", "<|startoftext|>", "<|begin_of_text|>", "[CLS]")
_CLS = ("[CLS]", "<cls>", "<s>")
_SEP = ("[SEP]", "<sep>", "</s>")
_MASK = ("[MASK]", "<mask>", "<|mask|>")


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


class JsonTokenizer(Tokenizer):
    """A Hugging Face `tokenizer.json`, loaded with the `tokenizers` library.

    Truncation, padding and BPE dropout are disabled: they are meant for batches of training
    examples, and would change the text of a corpus or prompt.

    The end-of-text token is the added token with `"end_of_text": true`, which an import sets, or
    else the first of `END_OF_TEXT_NAMES` in the vocabulary. If an import has given this token
    `TARGET_IDS`, the frame of a single sequence is around both sides of a pair, and special tokens
    are not decoded.

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

    content: bytes

    def __init__(self, name: str, content: bytes) -> None:
        import tokenizers

        with library_errors(f"data.tokenizer={name} is not a tokenizer.json"):
            text = content.decode("utf-8-sig")
            self.library: Any = tokenizers.Tokenizer.from_str(text)
            added = json.loads(text).get("added_tokens") or []
        self.name, self.content = name, content
        self.library.encode_special_tokens = True  # as plain text
        self._fail_on_unknown_characters()
        altered = self._disable_truncation_padding_dropout()
        ids = self.library.get_vocab(with_added_tokens=True)
        # Ids may have gaps; the model needs an embedding for the largest.
        n_ids = max(ids.values(), default=-1) + 1
        altered |= n_ids != len(ids)
        ends = [token for token in added if token.get(END) and token["content"] in ids]
        self._targets = _target_ids(ends[0]) if ends else {}
        self.size = max(n_ids, *(i + 1 for i in self._targets.values()), 0)
        # Earlier versions encoded text differently with such tokenizers.
        versioned = content + b"\nversion 2" if altered else content
        self.fingerprint = hashlib.sha256(versioned).hexdigest()
        marked = [token["content"] for token in ends]
        known = [name for name in (*marked, *END_OF_TEXT_NAMES) if name in ids]
        if not known:
            raise UserError(
                f"data.tokenizer={name} has no end-of-text token; add one of "
                f"{', '.join(END_OF_TEXT_NAMES)} to its added_tokens"
            )
        self.end_of_text_name, self.end_of_text = known[0], ids[known[0]]

    def _fail_on_unknown_characters(self) -> None:
        """Makes BPE without an unknown token raise an error instead of skipping characters.

        The unknown token is set to one that is not in the vocabulary, which is an error on use.
        """
        model = self.library.model
        if getattr(model, "unk_token", "") is None:
            model.unk_token = NO_UNKNOWN

    def _disable_truncation_padding_dropout(self) -> bool:
        """Disables truncation, padding and BPE dropout; returns whether any was enabled."""
        tokenizer, model = self.library, self.library.model
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
                encoded = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
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
        return self.library.decode(text_ids, skip_special_tokens=START in self._targets).encode()

    def token(self, i: int) -> str:
        return self.library.id_to_token(i) or ""

    @cached_property
    def specials(self) -> Specials:
        ids, eos = self.library.get_vocab(with_added_tokens=True), self.end_of_text
        find = lambda names: next((ids[name] for name in names if name in ids), None)
        pad, bos, cls, sep, mask = map(find, (_PAD, _BOS, _CLS, _SEP, _MASK))
        added = self.library.get_added_tokens_decoder()
        every = {i for i, token in added.items() if token.special}
        every |= {i for i in (pad, bos, eos, cls, sep, mask) if i is not None}
        pad, bos = (eos if i is None else i for i in (pad, bos))
        start = self._targets.get(START, bos)
        return Specials(pad, bos, eos, cls, sep, mask, frozenset(every), start)

    @cached_property
    def frame(self) -> Frame:
        """The special ids that the post-processor puts around sequences, if there is one."""
        if self.library.num_special_tokens_to_add(False) == 0:
            return super().frame
        one, two = (self.library.encode(*texts) for texts in (("a",), ("a", "a")))
        cut = lambda ids, parts: [tuple(ids[part]) for part in parts]
        prefix, single_suffix = cut(one.ids, _around(one.sequence_ids, 1))
        pair_prefix, middle, suffix = cut(two.ids, _around(two.sequence_ids, 2))
        second = two.type_ids[two.sequence_ids.index(1)]
        return Frame(prefix, single_suffix, pair_prefix, middle, suffix, second)

    @cached_property
    def side_frame(self) -> SideFrame:
        if START not in self._targets:
            return super().side_frame
        forced = map(self._targets.get, (FORCED_FIRST, FORCED_LAST))
        suffix = self.frame.single_suffix or (self.end_of_text,)
        return SideFrame(self.frame.prefix, suffix, *forced)


def _target_ids(token: Mapping[str, Any]) -> dict[str, int]:
    """Returns the `TARGET_IDS` of an added token."""
    return {field: token[field] for field in TARGET_IDS if type(token.get(field)) is int}


def _around(sequence_ids: Iterable[int | None], n: int) -> list[slice]:
    """Returns the parts of a framed text before, between and after `n` sequences."""
    ids = list(sequence_ids)
    edges = [0]
    for k in range(n):
        edges += [ids.index(k), len(ids) - ids[::-1].index(k)]
    edges.append(len(ids))
    return [slice(*edges[k : k + 2]) for k in range(0, len(edges), 2)]
