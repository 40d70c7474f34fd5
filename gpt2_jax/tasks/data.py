"""The examples of a run: its splits, its batches in training, and its batches in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gpt2_jax.config.sections import DataConfig, TaskConfig
from gpt2_jax.config.table import words
from gpt2_jax.data.batch import ExampleBatch
from gpt2_jax.data.dataset import open_dataset
from gpt2_jax.data.examples.chat import ChatTemplate
from gpt2_jax.data.examples.encode import Limits
from gpt2_jax.data.examples.prepare import ExampleSources, open_examples
from gpt2_jax.data.examples.records import describe_counts
from gpt2_jax.data.examples.store import Examples, window_examples
from gpt2_jax.data.layout.assemble import Assembler, Lengths
from gpt2_jax.data.layout.masking import make_masking
from gpt2_jax.data.layout.packed import PackedLayout
from gpt2_jax.data.layout.padded import OrderedLayout, PaddedLayout, longest
from gpt2_jax.data.layout.shape import Layout
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError, counted
from gpt2_jax.tasks.class_weights import ClassWeights, weigh_classes
from gpt2_jax.tasks.task import TASKS

MANY_EPOCHS = 1000.0  # a packed batch may have rows of two epochs


@dataclass(frozen=True)
class ExampleData:
    """The examples of a task.

    Attributes:
      task, config: the sections of the config.
      with_types: whether the model has token types.
      seed: of the run, which determines masks.
      pieces: the tokenizer, with its special ids.
      labels: label names by id; empty if the task has none.
      splits: by name: `train`, `val` and perhaps `test`.
      hash: identifies the content of all splits.
      template: the chat template of conversations, None if there is none.
    """

    task: TaskConfig
    config: DataConfig
    with_types: bool
    seed: int
    pieces: PieceEncoder
    labels: tuple[str, ...]
    splits: Mapping[str, Examples]
    hash: str
    template: ChatTemplate | None = None

    # What only text for language modeling has.
    is_mixture = False
    streams: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the examples."""
        return self.pieces.tokenizer

    def content_hash(self) -> str:
        """Returns a hash of all examples in order, which identifies the data of a run."""
        return self.hash

    def source_hashes(self) -> dict[str, str]:
        """Returns none: there is a single source."""
        return {}

    def keep_counts(self, known: dict[str, Any], save: Callable[[Any], None]) -> None:
        """Does nothing: no text is streamed."""

    def check_validation(self) -> None:
        """Checks that there are validation examples.

        Raises:
          UserError: if there are none.
        """
        if "val" not in self.splits:
            raise UserError(
                "there are no validation examples; set data.val_source or data.val_fraction"
            )

    def assembler(self, split: str) -> Assembler:
        """Returns what builds the batches of a split."""
        masking = None
        if self.task.name == "mlm":
            masking = make_masking(
                self.pieces, self.seed, self.task.whole_words, self.task.mask_share
            )
        return Assembler(self.splits[split], self.pieces.specials, self.with_types, masking)

    @cached_property
    def lengths(self) -> Lengths:
        """The longest row: of source and target of pairs, else one number."""
        return row_lengths(self.task, self.config)

    def sampler(self, seq_len: int, batch_size: int, seed: int) -> Layout:
        """Returns the batches of training.

        Raises:
          UserError: if the layout is not possible for the task.
        """
        assembler = self.assembler("train")
        layout: Layout
        if self.layout == "packed":
            layout = PackedLayout(assembler, self.lengths, batch_size, seed)
        else:
            layout = PaddedLayout(assembler, self._buckets(), batch_size, seed)
        weights = weigh_classes(self.task, self.labels, self.splits["train"])
        return layout if weights is None else ClassWeights(layout, weights)

    @property
    def layout(self) -> str:
        """`packed` or `padded`."""
        packs = TASKS[self.task.name].packs
        return self.config.layout or ("packed" if packs else "padded")

    def _buckets(self) -> list[Lengths]:
        """Returns the lengths of buckets: those of `data.lengths`, then the longest."""
        numbers = sorted(map(int, words(self.config.lengths)))
        shorter = [tuple(min(number, n) for n in self.lengths) for number in numbers]
        return [*shorter, self.lengths]

    def evaluation(self, split: str, rows: int) -> OrderedLayout:
        """Returns the examples of a split in order, one per row."""
        assembler = self.assembler(split)
        return OrderedLayout(assembler, longest(assembler), rows)

    def shapes(self, layout: Layout | OrderedLayout) -> list[ExampleBatch]:
        """Returns a batch without rows for each length of rows of a layout."""
        return [self.assembler("train").batch([], shape.lengths) for shape in layout.shapes]

    def n_tokens(self, split: str) -> int:
        """Returns the number of tokens of a split, on the side that is predicted."""
        return int(self.splits[split].lengths[:, -1].sum())

    def tokens_per_step(self, layout: Layout) -> int:
        """Returns the mean number of tokens per step, without padding, on the predicted side."""
        return max(1, round(self.n_tokens("train") * MANY_EPOCHS / layout.steps(MANY_EPOCHS)))

    def describe_rows(self) -> str:
        """Returns the layout and the lengths of rows in training, for the start report."""
        rows = self._buckets() if self.layout == "padded" else [self.lengths]
        lengths = [" and ".join(map(str, row)) for row in rows]
        shorter = f"{', '.join(lengths[:-1])} or " if lengths[:-1] else ""
        return f"{self.layout} rows of {shorter}{lengths[-1]}"

    def describe(self) -> str:
        """Returns the number of examples and what was repaired in them, for the start report."""
        counts = [f"{len(split):,} {name}" for name, split in self.splits.items()]
        text = f"{', '.join(counts)} examples"
        if self.labels:
            text += f", {counted(len(self.labels), 'label')}"
        notes = [f"{name}: {note}" for name, s in self.splits.items() for note in _notes(s)]
        return "; ".join([text, *notes])


def _notes(split: Examples) -> list[str]:
    return describe_counts(dict(split.counts))


def row_lengths(task: TaskConfig, data: DataConfig) -> Lengths:
    """Returns the longest row: of source and target of pairs, else one number."""
    if task.name == "translate":
        return data.source_len or data.seq_len, data.seq_len
    return (data.seq_len,)


def open_example_data(
    task: TaskConfig,
    data: DataConfig,
    with_types: bool,
    seed: int,
    labels: Sequence[str] | None = None,
) -> ExampleData:
    """Opens the examples of a task, which are prepared once and then cached.

    Args:
      with_types: whether the model has token types.
      labels: label names by id of an earlier run, None for those of the training examples.

    Raises:
      UserError: as `open_examples`, or as `open_dataset` for masked language modeling.
    """
    common = (task, data, with_types, seed)
    if task.name == "mlm":
        return _open_windows(*common)
    sources = ExampleSources(
        task.name,
        data.source,
        data.val_source,
        data.test_source,
        0.0 if data.val_source else data.val_fraction,
        data.columns or "",
        data.tag_scheme,
    )
    limits = Limits(row_lengths(task, data), data.too_long, data.doc_stride)
    known = labels if TASKS[task.name].has_labels or task.name == "answer" else None
    found = open_examples(sources, data.tokenizer, limits, known, data.chat_template)
    return ExampleData(
        *common,
        found.pieces,
        found.labels.names,
        found.splits,
        found.content_hash(),
        found.template,
    )


def _open_windows(task: TaskConfig, data: DataConfig, with_types: bool, seed: int) -> ExampleData:
    """Opens the text of masked language modeling, cut into windows."""
    dataset, tokenizer = open_dataset(
        data.source,
        data.val_source,
        data.tokenizer,
        data.val_fraction,
        data.document_separator,
        data.stream_files,
    )
    corpora = [part.corpus for part in dataset.parts]
    if len(corpora) > 1 or not isinstance(corpora[0], Corpus):
        raise UserError(
            f"data.source={data.source}: task.name=mlm reads one source of local text; prepare a "
            "mixture or remote files as one folder with `gpt2-jax prepare`"
        )
    corpus, pieces = corpora[0], PieceEncoder(tokenizer)
    texts = {"train": corpus.train, "val": corpus.val}
    splits = {
        name: window_examples(tokens, data.seq_len, pieces.frame)
        for name, tokens in texts.items()
        if tokens is not None
    }
    return ExampleData(task, data, with_types, seed, pieces, (), splits, dataset.content_hash())
