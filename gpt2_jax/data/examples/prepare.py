"""Prepares the examples of a task once, into the cache, and opens them memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2_jax.data.examples.chat import ChatTemplate, find_chat_template, load_chat_template
from gpt2_jax.data.examples.columns import check_columns
from gpt2_jax.data.examples.encode import Encoder, Limits
from gpt2_jax.data.examples.labels import Labels, labels_of
from gpt2_jax.data.examples.records import (
    Completion,
    Counts,
    LabeledText,
    Pair,
    PlainText,
    Question,
    Record,
    SpanText,
    TaggedWords,
)
from gpt2_jax.data.examples.sources import RecordSource
from gpt2_jax.data.examples.store import (
    EXAMPLES,
    ExampleManifest,
    Examples,
    open_split,
    write_split,
)
from gpt2_jax.data.examples.toy import is_toy
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.preparation import exclusive_lock
from gpt2_jax.data.text import short_list
from gpt2_jax.data.tokenizer import Tokenizer, is_tokenizer_file, load_tokenizer
from gpt2_jax.data.trained_tokenizer import is_trained, trained_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import cache_dir, disk_errors

KEY_VERSION = 3  # increment when a change of the code changes the examples
LABELED = ("classify", "tag", "answer")


@dataclass(frozen=True)
class ExampleSources:
    """The sources of the splits of a task, as in the config.

    Attributes:
      train, val, test: as in `data.source`, `data.val_source`, `data.test_source`; None for none.
        Generated records have splits of their own.
      val_fraction: part of the training records held out if there is no `val`.
      columns, tag_scheme: as for `RecordSource`.
    """

    task: str
    train: str | None
    val: str | None = None
    test: str | None = None
    val_fraction: float = 0.0
    columns: str = ""
    tag_scheme: str = "iob2"

    def source(self, split: str) -> RecordSource | None:
        """Returns the source of a split; None if it has none of its own."""
        spec = {"train": self.train, "val": self.val, "test": self.test}[split]
        toy, _, own_split = (self.train or "").partition("#")
        if spec is None and is_toy(toy) and own_split in ("", "train"):
            spec = f"{toy}#{split}"
        return RecordSource(self.task, spec, self.columns, self.tag_scheme) if spec else None

    @property
    def splits(self) -> list[str]:
        """The splits that have records."""
        named = [name for name in ("train", "val", "test") if self.source(name) is not None]
        held_out = self.train and self.source("val") is None and self.val_fraction
        return [*named[:1], "val", *named[1:]] if held_out else named

    def check_columns(self) -> None:
        """Refuses a name in `columns` that no source uses.

        Raises:
          UserError: naming it, or if a source cannot be read.
        """
        found = [self.source(name) for name in ("train", "val", "test")]
        forms = ((source.spec, form) for source in found if source for form in source.forms())
        check_columns(self.task, self.columns, forms)

    def check_training(self) -> None:
        """Checks that there are training records, and that not all are held out for validation.

        Raises:
          UserError: if there are none, or if one is not valid.
        """
        has = lambda split: next(self.records(split, Counter()), None) is not None
        if self.train is None or has("train"):
            return
        if self.source("val") is not None or not has("val"):
            raise UserError(_no_records(self.train))
        raise UserError(
            f"all records of {self.train} are held out for validation with data.val_fraction="
            f"{self.val_fraction:g}, since records with the same text stay together; add others, "
            "or set data.val_source"
        )

    def fingerprint(self) -> str:
        """Returns a hash of everything that determines the records of each split.

        Raises:
          UserError: if a source cannot be read.
        """
        found = {
            name: source.fingerprint()
            for name in ("train", "val", "test")
            if (source := self.source(name))
        }
        fraction = None if self.source("val") else self.val_fraction
        return hashlib.sha256(json.dumps([found, fraction]).encode()).hexdigest()

    def records(self, split: str, counts: Counts) -> Iterator[Record]:
        """Yields the records of a split in order.

        Raises:
          UserError: if one is not valid, naming its file and line.
        """
        own = self.source(split)
        if split == "test" or self.source("val") is not None:
            if own is not None:
                yield from own.records(counts)
            return
        train = self.source("train")
        if train is None:
            return
        # The splits of generated records are by the same hash without salt.
        salt = "toy " if is_toy(train.spec) else ""
        repairs: Counts = Counter()  # since the last record
        for record in train.records(repairs):
            if is_held_out(record, self.val_fraction, salt) == (split == "val"):
                counts.update(repairs)
                yield record
            repairs.clear()


def is_held_out(record: Record, fraction: float, salt: str = "") -> bool:
    """Returns whether a record is for validation, as a function of its group and the salt alone.

    Records with the same text or context are in the same split.
    """
    digest = hashlib.sha256(f"{salt}{record.group}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@dataclass(frozen=True)
class TaskData:
    """The examples of a task, its tokenizer and its labels.

    Attributes:
      tokenizer: as used for the examples; a run saves it with `save_tokenizer`.
      splits: by name.
      template: the chat template of conversations, or None.
    """

    manifest: ExampleManifest
    tokenizer: Tokenizer
    pieces: PieceEncoder
    labels: Labels
    splits: Mapping[str, Examples]
    template: ChatTemplate | None

    def content_hash(self) -> str:
        """Returns a hash of all examples in order, which identifies the data of a run."""
        sums = {
            name: {column: [one.sha256 for one in found] for column, found in split.columns.items()}
            for name, split in self.manifest.splits.items()
        }
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def open_examples(
    sources: ExampleSources,
    tokenizer_name: str,
    limits: Limits,
    labels: Iterable[str] | None = None,
    chat_template: str | None = None,
) -> TaskData:
    """Opens the examples of a task, which are prepared once and then cached.

    Args:
      tokenizer_name: as in `data.tokenizer`; `bpe:N` and `wordpiece:N` are trained on the training
        records, on both sides of pairs.
      limits: the longest sequences.
      labels: label names by id of an earlier run; None for those of the training records.
      chat_template: path of a chat template; None for one next to the tokenizer's file.

    Raises:
      UserError: if a source cannot be read, a record is not valid, or a split is empty.
    """
    limits.check()
    sources.check_columns()
    sources.check_training()
    fingerprint = sources.fingerprint()
    tokenizer = _open_tokenizer(sources, tokenizer_name)
    pieces = PieceEncoder(tokenizer)
    template = _open_template(sources.task, pieces, chat_template)
    known = None if labels is None else list(labels)
    of_labels = lambda labels: _key(fingerprint, tokenizer, limits, labels, template)
    key, folder = of_labels(known), _folder(of_labels(known))
    found = _folder(of_labels(None))  # from the start of the run
    if (found / EXAMPLES).is_file() and ExampleManifest.read(found).labels == known:
        folder = found
    if not (folder / EXAMPLES).is_file():
        encoder = Encoder(sources.task, pieces, Labels(known or ()), limits, template)
        _Preparation(sources, encoder, folder, key, known is None).run()
    manifest = ExampleManifest.read(folder)
    splits = {name: open_split(folder, name, manifest) for name in manifest.splits}
    return TaskData(manifest, tokenizer, pieces, Labels(manifest.labels), splits, template)


def _folder(key: str) -> Path:
    """Returns where the examples with a key are prepared."""
    return cache_dir() / "examples" / key[:24]


def _no_records(source: str) -> str:
    return f"source {source} has no records; add some, or use another file"


def _open_tokenizer(sources: ExampleSources, name: str) -> Tokenizer:
    if not is_trained(name):
        return load_tokenizer(name)
    if sources.train is None:
        raise UserError(f"data.tokenizer={name} is trained on data.source, which is not set")
    trained_on = replace(sources, test=None)
    fingerprint = trained_on.fingerprint()
    texts = lambda: _texts(sources.records("train", Counter()))
    return trained_tokenizer(name, fingerprint, texts)


def _texts(records: Iterable[Record]) -> Iterator[str]:
    """Yields the texts of records, to train a tokenizer on."""
    for record in records:
        match record:
            case Pair():
                yield from (record.source, record.references[0])
            case PlainText() | SpanText():
                yield record.text
            case LabeledText():
                yield from (record.text, record.second or "")
            case TaggedWords():
                yield " ".join(record.words)
            case Question():
                yield from (record.question, record.context)
            case Completion():
                yield from (record.prompt, record.completion)
            case _:
                yield from (str(message["content"]) for message in record.messages)


def _open_template(
    task: str, pieces: PieceEncoder, chat_template: str | None
) -> ChatTemplate | None:
    if task != "sft":
        return None
    special, token = pieces.specials, pieces.tokenizer.token
    tokens = {
        "bos_token": token(special.bos),
        "eos_token": token(special.eos),
        "pad_token": token(special.pad),
    }
    name = pieces.tokenizer.name
    path = Path(chat_template) if chat_template else None
    if path is None and is_tokenizer_file(name):
        path = find_chat_template(name)
    return load_chat_template(path, tokens) if path else None


def _key(
    fingerprint: str,
    tokenizer: Tokenizer,
    limits: Limits,
    labels: list[str] | None,
    template: ChatTemplate | None,
) -> str:
    facts = [
        KEY_VERSION,
        fingerprint,
        tokenizer.fingerprint,
        list(limits.lengths),
        limits.too_long,
        limits.doc_stride,
        labels,
        [template.source, sorted(template.tokens.items())] if template else None,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass
class _Preparation:
    """Writes the examples of all splits. A preparation that was killed starts again."""

    sources: ExampleSources
    encoder: Encoder
    folder: Path
    key: str
    find_labels: bool

    def run(self) -> None:
        """Writes the examples unless another process does so first."""
        with disk_errors("the cache (set XDG_CACHE_HOME)"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(self.folder):
                if (self.folder / EXAMPLES).is_file():
                    return
                self._clear()
                try:
                    self._write()
                except BaseException:
                    self._clear()
                    raise

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != ".lock":
                path.unlink()

    def _write(self) -> None:
        if self.sources.task in LABELED:
            if self.find_labels:
                self.encoder = replace(self.encoder, labels=Labels(self._labels()))
            else:
                self._check_labels()
        size = self.encoder.pieces.tokenizer.size
        splits = {}
        for name in self.sources.splits:
            counts: Counts = Counter()
            encoded = self.encoder.encode(self.sources.records(name, counts), counts)
            facts = write_split(self.folder, name, self.sources.task, encoded, size > 2**16)
            if not facts.examples:
                raise UserError(self._missing(name))
            facts.counts = dict(counts)
            splits[name] = facts
        tokenizer = self.encoder.pieces.tokenizer
        facts_of = {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "size": tokenizer.size,
        }
        labels = list(self.encoder.labels.names)
        ExampleManifest(self.key, self.sources.task, facts_of, labels, splits).write(self.folder)

    def _labels(self) -> tuple[str, ...]:
        if self.sources.train is None:
            raise UserError("label names are those of data.source, which is not set")
        names = labels_of(self.sources.records("train", Counter()))
        if len(names) < 2 and self.sources.task == "classify":
            raise UserError(
                f"source {self.sources.train} has {len(names)} label; classification needs two"
            )
        return names

    def _check_labels(self) -> None:
        """Refuses training records with labels that the run does not have."""
        known = self.encoder.labels.names
        found = labels_of(self.sources.records("train", Counter()))
        if new := [name for name in found if name not in known]:
            raise UserError(
                f"data.source={self.sources.train} has labels that the run does not have "
                f"({short_list(new)}; it has {short_list(list(known))}): the data has changed; "
                "choose another --workdir, or restore the old data"
            )

    def _missing(self, split: str) -> str:
        """Returns an error for a split without records."""
        source = self.sources.source(split)
        if source is not None:
            return _no_records(source.spec)
        return (
            f"no record of {self.sources.train} is held out for validation with data.val_fraction="
            f"{self.sources.val_fraction:g}; raise it, or set data.val_source"
        )
