"""Examples as text, before tokenization, and their form in JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

# What readers and encoders count instead of refusing, with its description in reports.
COUNTED = {
    "tags_repaired": "I- tags after another type were changed to B-",
    "document_starts": "-DOCSTART- lines were skipped",
    "spans_widened": "spans were widened to whole words",
    "spans_overlapping": "spans that overlap an earlier one were dropped",
    "cut": "sequences were cut to the maximum length",
    "answers_cut": "answers were cut off with their text and are not trained on",
    "contexts_split": "contexts were cut into several windows",
    "windows": "windows of those contexts",
    "targets_cut": "completions were cut off entirely and are not trained on",
    "words_without_pieces": "words have no token and are predicted as O",
}
Counts = Counter[str]


@dataclass(frozen=True)
class Pair:
    """A source and its target.

    Attributes:
      references: all valid targets; the first is trained on.
      where: file and line, for error messages, as in all records.
    """

    source: str
    references: tuple[str, ...]
    where: str

    @property
    def group(self) -> str:
        """Records with the same group are never split between training and validation."""
        return self.source


@dataclass(frozen=True)
class PlainText:
    """A text without a target, for masked language modeling."""

    text: str
    where: str

    @property
    def group(self) -> str:
        return self.text


@dataclass(frozen=True)
class LabeledText:
    """A text, or two, with a label."""

    text: str
    second: str | None
    label: str
    where: str

    @property
    def group(self) -> str:
        return f"{self.text}\0{self.second or ''}"


@dataclass(frozen=True)
class TaggedWords:
    """Words with an IOB2 tag each: `O`, or `B-` or `I-` and an entity type.

    Attributes:
      context: text to read together with the words, such as the question that they answer.
      text, starts, ends: the text that the words are from and the characters of each word; empty
        for records that are words in their file.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str
    context: str = ""
    text: str = ""
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def group(self) -> str:
        return "\0".join((self.context, *self.words))


@dataclass(frozen=True)
class Span:
    """A labeled part of a text: characters start to end, exclusive."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class SpanText:
    """A text with labeled spans, in order of their start."""

    text: str
    spans: tuple[Span, ...]
    where: str
    context: str = ""

    @property
    def group(self) -> str:
        return f"{self.context}\0{self.text}"


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
      answers: all valid answers as (first character, text); the first is trained on. Empty if the
        context has no answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]
    where: str

    @property
    def group(self) -> str:
        return self.context


@dataclass(frozen=True)
class Completion:
    """A prompt and the completion to learn."""

    prompt: str
    completion: str
    where: str

    @property
    def group(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Dialogue:
    """A conversation, as a list of JSON objects with `role` and `content`.

    Attributes:
      tools: what the template receives as `tools`, or None.
    """

    messages: list[dict[str, Any]]
    tools: Any
    where: str

    @property
    def group(self) -> str:
        return str(self.messages)


Record = Pair | PlainText | LabeledText | TaggedWords | SpanText | Question | Completion | Dialogue
_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Pair,
        PlainText,
        LabeledText,
        TaggedWords,
        SpanText,
        Question,
        Completion,
        Dialogue,
    )
}


def record_to_json(record: Record) -> dict[str, Any]:
    """Returns the fields of a record and its type."""
    return {"type": type(record).__name__, **dataclasses.asdict(record)}


def record_from_json(fields: dict[str, Any]) -> Any:
    """Returns the record that `record_to_json` described.

    Raises:
      KeyError, TypeError: if it is not one.
    """
    kind = _TYPES[fields["type"]]
    values = {name: value for name, value in fields.items() if name != "type"}
    if "spans" in values:
        values["spans"] = tuple(Span(**span) for span in values["spans"])
    if "answers" in values:
        values["answers"] = tuple((start, text) for start, text in values["answers"])
    for name in ("references", "words", "tags", "starts", "ends"):
        if name in values:
            values[name] = tuple(values[name])
    return kind(**values)


def describe_counts(counts: dict[str, int]) -> list[str]:
    """Returns a line such as `3 I- tags after another type were changed to B-` for each count."""
    return [f"{counts[name]:,} {what}" for name, what in COUNTED.items() if counts.get(name)]
