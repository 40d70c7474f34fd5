"""The text of a run: one corpus, or several corpora of which each has a share of the rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.manifest import MANIFEST, Manifest
from gpt2_jax.data.mixture import (
    MixtureSampler,
    is_mixture,
    parse_mixture,
    source_names,
)
from gpt2_jax.data.remote import is_remote
from gpt2_jax.data.run_data import Batches
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.stream import Counts, StreamedCorpus, StreamSampler, open_stream
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError


@dataclass(frozen=True)
class Part:
    """A corpus of a dataset.

    Attributes:
      name: short and distinct; empty if it is the only part.
      share: its fraction of the rows of a run.
    """

    name: str
    share: Fraction
    corpus: Corpus | StreamedCorpus

    def sampler(self, seq_len: int, batch_size: int, seed: int) -> Sampler | StreamSampler:
        """Returns the sampler of this corpus alone.

        Raises:
          UserError: if it has too few tokens.
        """
        if isinstance(self.corpus, StreamedCorpus):
            return self.corpus.sampler(seq_len, batch_size, seed)
        assert self.corpus.train is not None
        try:
            return Sampler(self.corpus.train, seq_len, batch_size, seed)
        except UserError as error:
            raise UserError(f"{self.name}: {error}" if self.name else str(error)) from None


@dataclass(frozen=True)
class Dataset:
    """The corpora of a run; their shares sum to 1."""

    parts: tuple[Part, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """None: text has no labels."""
        return ()

    @property
    def is_mixture(self) -> bool:
        """Whether there are several corpora."""
        return len(self.parts) > 1

    def sampler(self, seq_len: int, batch_size: int, seed: int) -> Batches:
        """Returns the batches of training text.

        Raises:
          UserError: if a corpus has too few tokens.
        """
        samplers = [part.sampler(seq_len, batch_size, seed) for part in self.parts]
        if not self.is_mixture:
            return samplers[0]
        shares = [part.share for part in self.parts]
        return MixtureSampler(samplers, shares, batch_size, seed)

    @property
    def streams(self) -> dict[str, StreamedCorpus]:
        """The corpora that are fetched while training, by name; `source` if it has none."""
        found = {part.name or "source": part.corpus for part in self.parts}
        return {name: c for name, c in found.items() if isinstance(c, StreamedCorpus)}

    def keep_counts(self, known: dict[str, Any], save: Callable[[dict[str, Counts]], None]) -> None:
        """Restores the token counts of streamed files, and saves them whenever they change.

        Args:
          known: what was saved last; may be empty.
        """
        streams = self.streams
        for name, corpus in streams.items():
            corpus.restore(known.get(name))
            corpus.on_count = lambda: save({name: c.counts for name, c in streams.items()})

    def describe(self) -> str:
        """Returns the number of tokens, or the remote files that they are fetched from."""
        texts = [stream.describe() for stream in self.streams.values()]
        if (n_train := self.n_tokens("train")) or not texts:
            texts.insert(0, f"{n_train:,} training tokens")
        return ", ".join([*texts, f"{self.n_tokens('val'):,} validation tokens"])

    def n_tokens(self, split: str) -> int:
        """Returns the number of tokens of a split in all corpora that know it."""
        return sum(part.corpus.n_tokens(split) or 0 for part in self.parts)

    def check_validation(self) -> None:
        """Checks that each validation text has at least one token to predict.

        Raises:
          UserError: naming the source and the fields to change.
        """
        for part in self.parts:
            part.corpus.check_validation()

    def bytes_per_token(self, split: str) -> float | None:
        """Returns the UTF-8 bytes per token, mixed by share; None if one of them is unknown."""
        return self._mean([part.corpus.bytes_per_token(split) for part in self.parts])

    def words_per_token(self, split: str) -> float | None:
        """Returns the words per token, mixed by share; None if one of them is unknown."""
        return self._mean([part.corpus.words_per_token(split) for part in self.parts])

    def _mean(self, of_parts: Sequence[float | None]) -> float | None:
        known = [x for x in of_parts if x is not None]
        return self.mean(known) if len(known) == len(of_parts) else None

    def mean(self, of_parts: Sequence[float]) -> float:
        """Returns the mean of a value of each corpus, weighted by share."""
        return sum(float(p.share) * x for p, x in zip(self.parts, of_parts, strict=True))

    def source_hashes(self) -> dict[str, str]:
        """Returns the hash of each corpus of a mixture by name; empty for a single corpus."""
        if not self.is_mixture:
            return {}
        return {part.name: part.corpus.content_hash() for part in self.parts}

    def content_hash(self) -> str:
        """Returns a hash of all tokens and shares, which identifies the text of a run.

        It does not depend on where local text is. That of a single corpus is its own.
        """
        if not self.is_mixture:
            return self.parts[0].corpus.content_hash()
        facts = [[str(part.share), part.corpus.content_hash()] for part in self.parts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def single(corpus: Corpus | StreamedCorpus) -> Dataset:
    """Returns the dataset of one corpus."""
    return Dataset((Part("", Fraction(1), corpus),))


def open_dataset(
    source: str,
    val_source: str | None,
    tokenizer_name: str,
    val_fraction: float,
    document_separator: str | None = None,
    stream_files: int = 1,
) -> tuple[Dataset, Tokenizer]:
    """Opens a value of `data.source`, and the tokenizer; the arguments are fields of `data`.

    Raises:
      UserError: if a mixture is not valid, its sources were prepared with different tokenizers, or
        as `open_corpus`.
    """

    def open_one(source: str, val_source: str | None) -> tuple[Corpus | StreamedCorpus, Tokenizer]:
        separator = document_separator
        if is_remote(source):
            return open_stream(source, val_source, tokenizer_name, separator, stream_files)
        return open_corpus(source, val_source, tokenizer_name, val_fraction, separator)

    if not is_mixture(source):
        corpus, tokenizer = open_one(source, val_source)
        return single(corpus), tokenizer
    shares = parse_mixture(source)
    if val_source is not None:
        raise UserError(
            f"data.val_source={val_source} cannot be used with a mixture, each source of which has "
            "its own validation part; unset it"
        )
    _check_same_tokenizer(shares)
    opened = [open_one(one, None) for one in shares]
    named = zip(source_names(list(shares)), shares.values(), opened, strict=True)
    parts = tuple(Part(name, share, corpus) for name, share, (corpus, _) in named)
    return Dataset(parts), opened[0][1]


def _check_same_tokenizer(sources: Iterable[str]) -> None:
    """Refuses prepared folders with different tokenizers, naming two of them."""
    first: tuple[str, dict] | None = None
    for source in sources:
        if not os.path.isfile(os.path.join(source, MANIFEST)):
            continue
        tokenizer = Manifest.read(Path(source)).tokenizer
        if first is None:
            first = source, tokenizer
        elif first[1]["fingerprint"] != tokenizer["fingerprint"]:
            raise UserError(
                f"data.source mixes {first[0]}, prepared with data.tokenizer={first[1]['name']}, "
                f"and {source}, prepared with {tokenizer['name']}; prepare both with the same one"
            )
