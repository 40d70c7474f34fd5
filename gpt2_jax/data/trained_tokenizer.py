"""Tokenizers trained on the corpus: `bpe:4000`, `wordpiece:8000`."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpt2_jax.data.json_tokenizer import JsonTokenizer, library_errors
from gpt2_jax.errors import UserError, quoted
from gpt2_jax.files import cache_dir, disk_errors, read_file, write_atomic

Texts = Callable[[], Iterable[str]]  # returns all texts, from the first, at each call
_NAME = re.compile(r"(bpe|wordpiece):(\d{1,7})", re.ASCII)
_BYTES = 256
_CHUNK = 4096  # characters; the library is slow with long texts and trains in parallel over short
_VERSION = 1  # increment when a change of the code changes the tokenizers
BPE_SPECIALS = ("<pad>", "<s>", "</s>", "<mask>")
WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_ALPHABET = 1000  # characters that WordPiece keeps, as many as BERT's


def is_trained(name: str) -> bool:
    """Returns whether a value of `data.tokenizer` is a tokenizer to train."""
    return name.partition(":")[0] in ("bpe", "wordpiece")


def parse_trained(name: str) -> tuple[str, int]:
    """Returns the kind and vocabulary size of a tokenizer to train.

    Raises:
      UserError: if it is not valid, or the size leaves no ids for merged tokens.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"data.tokenizer={quoted(name)} needs a vocabulary size, as in bpe:4000 or "
            "wordpiece:8000"
        )
    kind, size = found[1], int(found[2])
    least = len(BPE_SPECIALS) + _BYTES + 1 if kind == "bpe" else 2 * len(WORDPIECE_SPECIALS)
    if size < least:
        raise UserError(f"data.tokenizer={name} needs a vocabulary size of at least {least}")
    return kind, size


def trained_tokenizer(name: str, fingerprint: str, texts: Texts) -> JsonTokenizer:
    """Returns a tokenizer trained on texts, from the cache if it was trained before.

    `bpe:N` is byte-level BPE with GPT-2's pre-tokenization, which represents every text.
    `wordpiece:N` is BERT's uncased WordPiece.

    Args:
      name: as in `data.tokenizer`.
      fingerprint: identifies the texts.
      texts: returns the texts to train on.

    Raises:
      UserError: if the name is not valid or there is no text.
    """
    kind, size = parse_trained(name)
    facts = json.dumps([_VERSION, kind, size, fingerprint])
    path = cache_dir() / "tokenizers" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        trained = (_train_bpe if kind == "bpe" else _train_wordpiece)(
            size, lambda: _chunks(texts())
        )
        with disk_errors("the cache (set XDG_CACHE_HOME)"):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, trained)
    return JsonTokenizer(name, read_file(path))


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts in chunks that end with a line."""
    for text in texts:
        start = 0
        while len(text) - start > _CHUNK:
            end = text.find("\n", start + _CHUNK) + 1 or len(text)
            yield text[start:end]
            start = end
        yield text[start:]


def _train_bpe(size: int, texts: Texts) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(BPE_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    return _train(tokenizer, trainer, texts, "<s>", "</s>")


def _train_wordpiece(size: int, texts: Texts) -> str:
    """Trains WordPiece with `##` tokens for all characters in a fixed order.

    The library adds them in the order of a hash map, which differs between processes, and breaks
    ties between merges by it. Passing them as special tokens fixes their order.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    alphabet = _alphabet(map(tokenizer.normalizer.normalize_str, texts()), size)
    continuing = [f"##{one}" for one in alphabet if not one.isascii() or one.isalnum()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*WORDPIECE_SPECIALS, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = json.loads(_train(tokenizer, trainer, texts, "[CLS]", "[SEP]"))
    added = trained["added_tokens"]
    trained["added_tokens"] = [one for one in added if one["content"] in WORDPIECE_SPECIALS]
    return json.dumps(trained, ensure_ascii=False)


def _alphabet(texts: Iterable[str], size: int) -> list[str]:
    """Returns the most frequent characters, sorted, for a vocabulary of `size`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for space in filter(str.isspace, list(counts)):
        del counts[space]
    limit = min(_MAX_ALPHABET, max(size // 16, 64), (size - len(WORDPIECE_SPECIALS)) // 3)
    return sorted(sorted(counts, key=lambda one: (-counts[one], one))[:limit])


def _train(tokenizer: Any, trainer: Any, texts: Texts, cls: str, sep: str) -> str:
    """Trains a tokenizer that frames sequences as `cls A sep` and `cls A sep B sep`.

    Returns its tokenizer.json.
    """
    from tokenizers import processors

    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts():
            seen += bool(text)
            yield text

    with library_errors("the tokenizer cannot be trained"):
        tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise UserError("there is no text to train the tokenizer on; check data.source")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in (cls, sep)],
    )
    content: str = tokenizer.to_str()
    return content
