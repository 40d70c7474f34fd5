"""Encodes records as columns of integers.

Columns have non-negative integers. `targets` is 0 where there is no target, else the label id + 1;
`start` and `end` likewise; `learn` is 1 for tokens to predict.

| task | columns |
|---|---|
| translate | `source`, `target`: framed ids |
| mlm | `inputs`: framed ids |
| classify | `inputs`, `types`; `label` |
| tag | `inputs`, `types`; `targets` at the first token of each word; `words`: word + 1 |
| answer | `inputs`, `types`; `char_starts`, `char_ends`: of tokens of the context; `start`, `end` |
| sft | `inputs`: ids, eos; `learn` |

The scalar `window` of `answer` is the first token of the context that is in the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from gpt2_jax.data.examples.chat import ChatTemplate
from gpt2_jax.data.examples.labels import Labels
from gpt2_jax.data.examples.records import (
    Completion,
    Counts,
    Dialogue,
    LabeledText,
    Pair,
    PlainText,
    Question,
    Record,
    SpanText,
    TaggedWords,
)
from gpt2_jax.data.examples.spans import span_questions
from gpt2_jax.data.pieces import PieceEncoder, Pieces
from gpt2_jax.errors import UserError, counted

# The ragged columns of each task with one length, first those that determine the length of a row.
SEQUENCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "translate": (("source",), ("target",)),
    "mlm": (("inputs",),),
    "classify": (("inputs", "types"),),
    "tag": (("inputs", "types", "targets", "words"),),
    "answer": (("inputs", "types", "char_starts", "char_ends"),),
    "sft": (("inputs", "learn"),),
}
SCALARS: dict[str, tuple[str, ...]] = {"classify": ("label",), "answer": ("start", "end", "window")}
SOURCE, CONTEXT = "source", "context"  # of pairs and of questions, in errors
_BATCH = 1024  # records tokenized at once
Columns = dict[str, Any]  # ragged: an integer array; scalar: an integer


@dataclass(frozen=True)
class Limits:
    """The longest sequences, in tokens with special ones.

    Attributes:
      lengths: of each side: (source, target) of pairs, else one.
      too_long: `cut` or `refuse` longer ones.
      doc_stride: tokens from the start of one window of a context to that of the next; None to cut
        contexts.
    """

    lengths: tuple[int, ...]
    too_long: str = "cut"
    doc_stride: int | None = None

    def check(self) -> None:
        """Checks the values.

        Raises:
          UserError: naming the field.
        """
        if self.too_long not in ("cut", "refuse"):
            raise UserError(f"data.too_long={self.too_long} must be cut or refuse")
        if min(self.lengths) < 4:
            raise UserError(f"a maximum length of {min(self.lengths)} tokens is too short; use 4")

    def fit(self, n: int, room: int, what: str, where: str, counts: Counts) -> int:
        """Returns how many of `n` tokens to keep where there is room for `room`.

        Raises:
          UserError: if some are too many and `too_long` is `refuse`, naming the file and line.
        """
        if n <= room:
            return n
        if self.too_long == "refuse":
            raise UserError(
                f"{where}: the {what} has {counted(n, 'token')}, but at most {room} fit; raise "
                f"{self._fix(what)}, shorten the {what}, or set data.too_long=cut"
            )
        counts["cut"] += 1
        return max(room, 0)

    def _fix(self, what: str) -> str:
        """Returns the field to raise for a text that is too long, and what else to set."""
        if what == SOURCE and self.lengths[0] != self.lengths[-1]:
            return "data.source_len"
        windows = what == CONTEXT and self.doc_stride is None
        return "data.seq_len" + ", set data.doc_stride to read it in windows" * windows


@dataclass(frozen=True)
class Encoder:
    """Encodes records of one task.

    Attributes:
      template: for conversations; None if there is none.
    """

    task: str
    pieces: PieceEncoder
    labels: Labels
    limits: Limits
    template: ChatTemplate | None = None

    def encode(self, records: Iterable[Record], counts: Counts) -> Iterator[tuple[Record, Columns]]:
        """Yields each record with its columns; texts with labeled spans as a question per label.

        A question is repeated for each window of its context.

        Args:
          counts: where cuts are counted.

        Raises:
          UserError: if a record cannot be encoded, naming its file and line.
        """
        self.limits.check()
        expanded = self._expanded(records)
        while group := list(islice(expanded, _BATCH)):
            if self.task == "answer":
                yield from self._questions(group, counts)
            else:
                yield from zip(group, self._encode(group, counts), strict=True)

    def _expanded(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if isinstance(record, SpanText):
                for span in record.spans:
                    self.labels.id(span.label, record.where)
                yield from span_questions(record, self.labels.names)
            else:
                yield record

    def _encode(self, group: Sequence[Any], counts: Counts) -> Iterator[Columns]:
        match group[0]:
            case Pair():
                return self._pairs(group, counts)
            case PlainText() | LabeledText():
                return self._texts(group, counts)
            case TaggedWords():
                return self._tagged(group, counts)
        return (self._conversation(record, counts) for record in group)

    def _pairs(self, group: Sequence[Pair], counts: Counts) -> Iterator[Columns]:
        sources = self.pieces.tokenizer.encode([pair.source for pair in group])
        targets = self.pieces.tokenizer.encode_targets([pair.references[0] for pair in group])
        for pair, source, target in zip(group, sources, targets, strict=True):
            yield {
                "source": self._side(source, 0, SOURCE, pair.where, counts),
                "target": self._side(target, 1, "target", pair.where, counts),
            }

    def _side(
        self, ids: np.ndarray, side: int, what: str, where: str, counts: Counts
    ) -> np.ndarray:
        """Returns framed ids; a cut target has no suffix, since it does not end there."""
        frame = self.pieces.tokenizer.side_frame
        whole = frame.around(ids)
        kept = self.limits.fit(len(whole), self.limits.lengths[side], what, where, counts)
        return frame.cut(whole, kept) if what == SOURCE else whole[:kept]

    def _texts(self, group: Sequence[Any], counts: Counts) -> Iterator[Columns]:
        firsts = self.pieces.tokenizer.encode([record.text for record in group])
        seconds = [getattr(record, "second", None) for record in group]
        others = self.pieces.tokenizer.encode([second or "" for second in seconds])
        for record, a, b, second in zip(group, firsts, others, seconds, strict=True):
            framed = self._framed(a, None if second is None else b, record.where, counts)
            columns: Columns = {"inputs": framed.ids}
            if isinstance(record, LabeledText):
                columns["types"] = framed.types
                columns["label"] = self.labels.id(record.label, record.where)
            yield columns

    def _framed(
        self,
        a: np.ndarray,
        b: np.ndarray | None,
        where: str,
        counts: Counts,
        names: tuple[str, str] = ("text", "second text"),
    ) -> _Framed:
        """Returns one or two sequences with special ids; the last is cut if they are too long.

        Args:
          names: of the sequences, for errors.
        """
        frame = self.pieces.frame
        room = self.limits.lengths[0]
        if b is None:
            room -= len(frame.prefix) + len(frame.single_suffix)
            a = a[: self.limits.fit(len(a), room, names[0], where, counts)]
            return _joined([(frame.prefix, a, frame.single_suffix)], 0)
        room -= len(frame.pair_prefix) + len(frame.middle) + len(frame.suffix)
        if len(a) >= room:
            a = a[: self.limits.fit(len(a), max(room // 2, 1), names[0], where, counts)]
        b = b[: self.limits.fit(len(b), room - len(a), names[1], where, counts)]
        parts = [(frame.pair_prefix, a, frame.middle), ((), b, frame.suffix)]
        return _joined(parts, frame.second_type)

    def _tagged(self, group: Sequence[TaggedWords], counts: Counts) -> Iterator[Columns]:
        encoded = self.pieces.encode_words([record.words for record in group])
        contexts = self.pieces.tokenizer.encode([record.context for record in group])
        for record, (ids, words), context in zip(group, encoded, contexts, strict=True):
            if record.context:
                framed = self._framed(
                    context, ids, record.where, counts, ("context column", "text")
                )
            else:
                framed = self._framed(ids, None, record.where, counts)
            first = np.append(True, words[1:] != words[:-1])[: len(words)]
            if lost := len(record.words) - len(np.unique(words)):
                counts["words_without_pieces"] += lost
            labels = [self.labels.id(tag, record.where) + 1 for tag in record.tags]
            target = np.where(first, np.array(labels, np.int64)[words], 0)
            yield {
                "inputs": framed.ids,
                "types": framed.types,
                "targets": framed.place(target),
                "words": framed.place(words + 1),
            }

    def _questions(
        self, group: Sequence[Any], counts: Counts
    ) -> Iterator[tuple[Question, Columns]]:
        questions = self.pieces.tokenizer.encode([record.question for record in group])
        contexts = self.pieces.encode([record.context for record in group])
        for record, question, context in zip(group, questions, contexts, strict=True):
            answer = _answer_tokens(record.answers, context)
            after_space = _after_space(context, record.context)
            windows = self._windows(len(question), len(context.ids))
            if len(windows) > 1:
                counts.update(contexts_split=1, windows=len(windows))
            cuts = [Counter() if w.start else counts for w in windows]  # of the question, once
            framed = [
                self._framed(question, context.ids[w], record.where, cut, ("question", CONTEXT))
                for w, cut in zip(windows, cuts, strict=True)
            ]
            spans = [one.span(answer, w.start) for one, w in zip(framed, windows, strict=True)]
            no_answer = (1, 1)
            if record.answers and not any(spans):
                counts["answers_cut"] += 1
                no_answer = (0, 0)
            for w, one, span in zip(windows, framed, spans, strict=True):
                start, end = span or no_answer
                columns = {
                    "inputs": one.ids,
                    "types": one.types,
                    "char_starts": one.place(after_space[w]),
                    "char_ends": one.place(context.ends[w]),
                    "start": start,
                    "end": end,
                    "window": w.start,
                }
                yield record, columns

    def _windows(self, n_question: int, n_context: int) -> list[slice]:
        """Returns the tokens of a context in each of its windows, which overlap."""
        stride, frame = self.limits.doc_stride, self.pieces.frame
        room = self.limits.lengths[0]
        room -= len(frame.pair_prefix) + len(frame.middle) + len(frame.suffix)
        room -= n_question if n_question < room else max(room // 2, 1)  # as in `_framed`
        if stride is None or n_context <= room:
            return [slice(0, n_context)]
        step = min(stride, max(room, 1))
        return [slice(at, at + room) for at in range(0, n_context - room + step, step)]

    def _conversation(self, record: Completion | Dialogue, counts: Counts) -> Columns:
        if isinstance(record, Completion):
            prompt, completion = self.pieces.tokenizer.encode([record.prompt, record.completion])
            ids = np.concatenate([prompt, completion]).astype(np.int64)
            ids = np.append(ids, self.pieces.specials.eos)
            learn = (np.arange(len(ids)) >= len(prompt)).astype(np.int64)
        else:
            ids, learn = self._chat(record)
        kept = self.limits.fit(len(ids), self.limits.lengths[0] + 1, "text", record.where, counts)
        if not learn[1:kept].any():
            counts["targets_cut"] += 1
        return {"inputs": ids[:kept], "learn": learn[:kept]}

    def _chat(self, record: Dialogue) -> tuple[np.ndarray, np.ndarray]:
        if self.template is None:
            raise UserError(
                f"{record.where} has messages, but data.tokenizer={self.pieces.tokenizer.name} has "
                "no chat template; set data.chat_template to a chat_template.jinja"
            )
        text, spans = self.template.completions(record)
        pieces = self.pieces.encode_specials(text)
        learn = np.zeros(len(pieces.ids), np.int64)
        for start, end in spans:
            learn |= (pieces.starts < end) & (pieces.ends > start)
        return pieces.ids, learn


@dataclass(frozen=True)
class _Framed:
    """Sequences with special ids around them.

    Attributes:
      ids, types: (n,).
      last: where the last sequence is.
    """

    ids: np.ndarray
    types: np.ndarray
    last: slice

    def place(self, values: np.ndarray) -> np.ndarray:
        """Returns values of the last sequence's tokens at their positions, and 0 elsewhere."""
        out = np.zeros(len(self.ids), np.int64)
        out[self.last] = values[: self.last.stop - self.last.start]
        return out

    def span(self, answer: tuple[int, int] | None, at: int) -> tuple[int, int] | None:
        """Returns the first and last position of the answer, plus 1; None if `last` has not all.

        Args:
          answer: its first and last token in the context, None if there is none.
          at: the first token of the context in `last`.
        """
        if answer is None:
            return None
        first, last = answer[0] - at, answer[1] - at
        if first < 0 or last >= self.last.stop - self.last.start:
            return None
        return self.last.start + 1 + first, self.last.start + 1 + last


def _answer_tokens(answers: Sequence[tuple[int, str]], context: Pieces) -> tuple[int, int] | None:
    """Returns the first and last token of the first answer; None if there is none."""
    if not answers:
        return None
    start, text = answers[0]
    found = np.flatnonzero((context.ends > start) & (context.starts < start + len(text)))
    return (int(found[0]), int(found[-1])) if len(found) else None


def _after_space(pieces: Pieces, text: str) -> np.ndarray:
    """Returns the first character of each token, without the space before a word."""
    is_space = np.array([character.isspace() for character in text] + [False])
    return pieces.starts + (is_space[pieces.starts] & (pieces.ends - pieces.starts > 1))


def _joined(
    parts: Sequence[tuple[tuple[int, ...], np.ndarray, tuple[int, ...]]], second_type: int
) -> _Framed:
    ids: list[np.ndarray] = []
    types: list[int] = []
    last = slice(0, 0)
    for n, (before, sequence, after) in enumerate(parts):
        start = len(types) + len(before)
        last = slice(start, start + len(sequence))
        ids += [np.array(before, np.int64), sequence.astype(np.int64), np.array(after, np.int64)]
        types += [second_type * n] * (len(before) + len(sequence) + len(after))
    return _Framed(np.concatenate(ids), np.array(types, np.int64), last)
