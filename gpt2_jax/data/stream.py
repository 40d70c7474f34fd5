"""Training on remote files while they are fetched, in an order that is a function of the seed.

Files are taken in random order, a new one in each epoch, and in groups. Within a group, windows are
shuffled as those of any corpus. Where a step's rows are depends on how many windows earlier groups
have, so the number of tokens of each file is recorded once it is known, and a resumed run reads
only the files that it needs.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.fetch import Fetcher, Job, jobs_of
from gpt2_jax.data.remote import RemoteFile, is_remote, list_remote
from gpt2_jax.data.sampler import PHI, Sampler, mix, permute
from gpt2_jax.data.shards import Corpus, Tokens
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError, counted, without_credentials

Counts = list[int | None]  # tokens of each file, None if unknown


class StreamedCorpus:
    """Remote files to train on, and local validation text.

    Args:
      source: as in `data.source`.
      group: files that are shuffled together.
      end_of_text: the id between documents.

    Attributes:
      counts: tokens of each file, filled in during training.
      on_count: called when they have changed.
    """

    def __init__(
        self, source: str, jobs: Sequence[Job], group: int, validation: Corpus, end_of_text: int
    ) -> None:
        self.source, self.jobs, self.group = source, jobs, group
        self.validation, self.end_of_text = validation, end_of_text
        self.counts: Counts = [None] * len(jobs)
        self.on_count: Callable[[], None] = lambda: None

    @property
    def val(self) -> Tokens:
        """The validation tokens."""
        return self.validation.val

    def content_hash(self) -> str:
        """Returns a hash of the list of files, their sizes and versions, and of the tokenizer."""
        files = [[job.file.url, job.file.size, job.file.version] for job in self.jobs]
        tokenized = [self.jobs[0].fingerprint, self.jobs[0].separator]
        facts = [files, tokenized, self.validation.content_hash()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def n_tokens(self, split: str) -> int | None:
        """Returns the number of tokens of a split; None for training tokens, which are unknown."""
        return None if split == "train" else len(self.val)

    def check_validation(self) -> None:
        """Checks that the validation text has at least one token to predict.

        Raises:
          UserError: naming the fields.
        """
        if len(self.val) < 2:
            raise UserError(
                f"the validation text of data.source={self.source} has fewer than two tokens; set "
                "data.val_source to more text"
            )

    def bytes_per_token(self, split: str) -> float | None:
        return self.validation.bytes_per_token("val") if split == "val" else None

    def words_per_token(self, split: str) -> float | None:
        return self.validation.words_per_token("val") if split == "val" else None

    def describe(self) -> str:
        """Returns the number and size of the files, for the report before the first step."""
        sizes = [job.file.size for job in self.jobs]
        known = sum(size or 0 for size in sizes) / 1e9
        total = "of unknown size" if None in sizes else f"of {known:,.3g} GB"
        return f"{len(self.jobs):,} remote files {total}, fetched while training"

    def restore(self, known: Any) -> None:
        """Fills in the counts that an earlier start recorded; invalid ones are counted again."""
        if isinstance(known, list) and len(known) == len(self.jobs):
            self.counts[:] = [n if type(n) is int and n > 0 else None for n in known]

    def sampler(self, seq_len: int, batch_size: int, seed: int) -> StreamSampler:
        """Returns the batches of training text."""
        return StreamSampler(self, seq_len, batch_size, seed)


@dataclass(frozen=True)
class _Group:
    """Files whose windows are shuffled together.

    Attributes:
      first: index of the first window in the run. n: number of windows.
    """

    epoch: int
    number: int
    files: tuple[int, ...]
    first: int
    n: int


class StreamSampler:
    """Batches of windows from remote files; the arguments are those of `Sampler`.

    Batches are expected in order, apart from occasional jumps: the files of a group are deleted
    after a later group is opened.
    """

    def __init__(self, corpus: StreamedCorpus, seq_len: int, batch_size: int, seed: int) -> None:
        self._corpus, self._seq_len, self._batch_size = corpus, seq_len, batch_size
        self._key = mix(np.array([seed], np.uint64) + PHI)
        self._fetcher = Fetcher(corpus.jobs)
        self._groups: list[_Group] = []
        self._opened: OrderedDict[int, Sampler] = OrderedDict()  # the last two, by first window

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> Batch:
        """Returns batch `step`; the arguments are those of `Batches.batch`."""
        first = step * self._batch_size
        index = np.arange(first, first + self._batch_size, dtype=np.uint64)[rows]
        return Batch(np.stack(self.windows(index)))

    def windows(self, index: np.ndarray) -> list[np.ndarray]:
        """Returns the windows with these indices in the order of the run, as int32 ids.

        Raises:
          Unavailable: if a file cannot be fetched.
          UserError: if it differs from what an earlier start read, or is not valid text.
        """
        windows: list[np.ndarray] = []
        for group, part in groupby(index.tolist(), self._group_of):
            places = np.array(list(part), np.uint64) - np.uint64(group.first)
            windows += self._open(group).windows(places)
        return windows

    def _group_of(self, index: int) -> _Group:
        while not self._groups or index >= self._groups[-1].first + self._groups[-1].n:
            self._groups.append(self._next_group())
        at = bisect.bisect_right(self._groups, index, key=lambda group: group.first) - 1
        return self._groups[at]

    def _next_group(self) -> _Group:
        """Returns the next group that has windows, after counting its tokens."""
        last = self._groups[-1] if self._groups else None
        first, place = (last.first + last.n, self._after(last)) if last else (0, (0, 0))
        for _ in range(2 * self._groups_per_epoch):
            group = _Group(*place, self._files(*place), first, 0)
            n_tokens = self._count(group, last)
            if n_tokens > 2 * self._seq_len:
                n = (n_tokens - self._seq_len) // self._seq_len  # as in `Sampler`
                return dataclasses.replace(group, n=n)
            place = self._after(group)
        raise UserError(
            f"data.source={self._corpus.source}: no {self._corpus.group} files together have "
            f"enough tokens for windows of data.seq_len={self._seq_len}; raise data.stream_files"
        )

    def _count(self, group: _Group, last: _Group | None) -> int:
        """Returns the number of tokens of a group; fetches the files of which it is unknown."""
        counts = self._corpus.counts
        if unknown := [i for i in group.files if counts[i] is None]:
            self._fetcher.keep_only({*group.files, *(last.files if last else ())})
            for i in unknown:
                self._fetcher.request(i)
            for i in unknown:
                counts[i] = len(self._fetcher.open(i).val)
            self._corpus.on_count()
        return sum((counts[i] or 0) + 1 for i in group.files)  # with an end-of-text before each

    def _open(self, group: _Group) -> Sampler:
        """Returns the sampler of a group's windows; begins to fetch the files of the next."""
        if group.first in self._opened:
            return self._opened[group.first]
        for i in group.files:
            self._fetcher.request(i)
        tokens = Tokens.joined([self._tokens(i) for i in group.files], self._corpus.end_of_text)
        key = mix(self._epoch_key(group.epoch) + PHI * np.array([group.number + 1], np.uint64))
        sampler = self._opened[group.first] = Sampler(tokens, self._seq_len, 1, int(key[0]))
        while len(self._opened) > 2:
            self._opened.popitem(last=False)
        upcoming = self._files(*self._after(group))
        self._fetcher.keep_only({*group.files, *upcoming})
        for i in upcoming:
            self._fetcher.request(i)
        return sampler

    def _tokens(self, i: int) -> Tokens:
        tokens = self._fetcher.open(i).val
        if len(tokens) != self._corpus.counts[i]:
            raise UserError(
                f"{without_credentials(self._corpus.jobs[i].file.url)} has "
                f"{counted(len(tokens), 'token')}, but the run recorded {self._corpus.counts[i]}; "
                "choose another --workdir"
            )
        return tokens

    @property
    def _groups_per_epoch(self) -> int:
        return -(-len(self._corpus.jobs) // self._corpus.group)

    def _after(self, group: _Group) -> tuple[int, int]:
        """Returns the epoch and the number of the group after this one."""
        number = group.number + 1
        return (group.epoch + 1, 0) if number == self._groups_per_epoch else (group.epoch, number)

    def _files(self, epoch: int, number: int) -> tuple[int, ...]:
        """Returns the files of a group, in the random order of its epoch."""
        n, size = len(self._corpus.jobs), self._corpus.group
        places = np.arange(number * size, min(n, (number + 1) * size), dtype=np.uint64)
        key = np.repeat(self._epoch_key(epoch), len(places))
        return tuple(permute(places, n, key).tolist())

    def _epoch_key(self, epoch: int) -> np.ndarray:
        return mix(self._key + np.uint64(epoch))


def open_stream(
    source: str,
    val_source: str | None,
    tokenizer_name: str,
    separator: str | None,
    group: int,
) -> tuple[StreamedCorpus, Tokenizer]:
    """Lists remote files, and opens their validation text.

    The arguments are fields of the `data` section; `group` is `data.stream_files`. Without
    `val_source`, the last file is held out for validation.

    Raises:
      UserError: if there are no files, or the validation text cannot be read.
    """
    tokenizer, files = load_tokenizer(tokenizer_name), list_remote(source)
    if val_source is None:
        held_out = files.pop()
        if not files:
            raise UserError(
                f"data.source={source} is one remote file, so none can be held out for validation; "
                "set data.val_source"
            )
        validation = _fetch_one(held_out, tokenizer, separator)
    elif is_remote(val_source):
        listed = list_remote(val_source)
        if len(listed) > 1:
            raise UserError(f"data.val_source={val_source} must be one remote file, or local text")
        validation = _fetch_one(listed[0], tokenizer, separator)
    else:
        validation, _ = open_corpus(None, val_source, tokenizer_name, 0.0, separator)
    jobs = jobs_of(files, tokenizer, separator)
    return StreamedCorpus(source, jobs, group, validation, tokenizer.end_of_text), tokenizer


def _fetch_one(file: RemoteFile, tokenizer: Tokenizer, separator: str | None) -> Corpus:
    return Fetcher(jobs_of([file], tokenizer, separator)).open(0)
