"""Reads questions in SQuAD's format, and texts with labeled spans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpt2_jax.data.examples.fields import Row
from gpt2_jax.data.examples.records import Counts, Question, Span, SpanText, TaggedWords
from gpt2_jax.errors import UserError, counted, quoted

_WORD = re.compile(r"\w+|[^\w\s]")


def is_squad(row: Row) -> bool:
    """Returns whether a row is an article in SQuAD's format."""
    return isinstance(row.value, dict) and isinstance(row.value.get("paragraphs"), list)


def squad_questions(article: Row) -> Iterator[Question]:
    """Yields the questions of an article, in SQuAD's format 1.1 or 2.0 (Rajpurkar et al. 2016).

    Raises:
      UserError: naming the file and line of the article and the question if a field is missing, or
        an answer is not in its context at its position.
    """
    for paragraph in article.rows("paragraphs"):
        context = paragraph.text("context")
        for found in paragraph.rows("qas"):
            name = found.text("id")
            row = Row(found.value, f"{article.where} question {name}")
            answers = tuple(
                (answer.integer("answer_start"), answer.text("text"))
                for answer in row.rows("answers", [])
            )
            yield checked(Question(name, row.text("question"), context, answers, row.where))


def question_of(row: Row, columns: dict[str, str]) -> Question:
    """Returns the question of a row with `context`, `question`, and `answers` as in SQuAD.

    `answers` is a list of objects with `text` and `answer_start`, or an object with two such lists.

    Raises:
      UserError: as `squad_questions`.
    """
    found = row.get(columns["answers"], [])
    if isinstance(found, dict):
        both = Row(found, row.where)
        starts = [one.value for one in both.rows("answer_start")]
        texts = [one.value for one in both.rows("text")]
        if len(starts) != len(texts):
            raise UserError(
                f"{row.where} has {counted(len(texts), 'answer')} but "
                f"{counted(len(starts), 'position')}"
            )
        found = [{"answer_start": a, "text": t} for a, t in zip(starts, texts, strict=True)]
    items = Row({"answers": found}, row.where).rows("answers")
    answers = tuple((item.integer("answer_start"), item.text("text")) for item in items)
    name = str(row.get(columns["id"], row.where))
    question, context = row.text(columns["question"]), row.text(columns["context"])
    return checked(Question(name, question, context, answers, row.where))


def checked(question: Question) -> Question:
    """Returns a question after comparing its answers with its context.

    Raises:
      UserError: if the context or an answer is empty, or an answer is outside the context or
        differs from it, naming the file and line.
    """
    if not question.context.strip():
        raise UserError(f"{question.where}: the context is empty; remove the question")
    for start, text in question.answers:
        if not text:
            raise UserError(f"{question.where}: an answer is empty; remove it")
        if start < 0 or start + len(text) > len(question.context):
            raise UserError(
                f"{question.where}: the answer {quoted(text, 40)} at answer_start={start} is "
                f"outside its context of {len(question.context)} characters; correct answer_start"
            )
        there = question.context[start : start + len(text)]
        if there != text:
            raise UserError(
                f"{question.where}: the answer is {quoted(text, 40)}, but the context has "
                f"{quoted(there, 40)} at answer_start={start}; correct answer_start"
            )
    return question


def span_text(row: Row, columns: dict[str, str]) -> SpanText:
    """Returns a text with labeled spans.

    The list of spans may be missing, which means none; a missing start is 0. If the list in
    `context` is missing, the context is empty.

    Args:
      columns: of the row, `text`, `spans`, `context`; of a span, `span_label`, `span_start` and
        `span_end`.

    Raises:
      UserError: if a span is empty or outside its text, naming the file and line.
    """
    text = row.text(columns["text"])
    if not text.strip():
        raise UserError(f"{row.where}: the text is empty; remove it")
    spans = []
    for found in row.rows(columns["spans"], []):
        start = found.integer(columns["span_start"], 0)
        span = Span(found.text(columns["span_label"]), start, found.integer(columns["span_end"]))
        if not 0 <= span.start < span.end <= len(text):
            raise UserError(
                f"{row.where}: the span {span.start}:{span.end} ({span.label}) is outside its text "
                f"of {len(text)} characters; correct it"
            )
        spans.append(span)
    context: Any = row.get(columns["context"], "") if columns["context"] else ""
    spans.sort(key=lambda span: (span.start, span.end, span.label))
    return SpanText(text, tuple(spans), row.where, row.text_of(context, columns["context"]))


def span_questions(record: SpanText, labels: Sequence[str]) -> Iterator[Question]:
    """Yields a question for each label, whose answers are the spans with this label.

    The question is the label, its punctuation replaced by spaces, and the context.
    """
    for label in labels:
        name = re.sub(r"[\W_]+", " ", label).strip()
        answers = tuple(
            (span.start, record.text[span.start : span.end])
            for span in record.spans
            if span.label == label
        )
        question = f"{name} {record.context}".strip()
        yield Question(f"{record.where} {label}", question, record.text, answers, record.where)


def span_tags(record: SpanText, counts: Counts) -> TaggedWords:
    """Returns the words of a text with the labeled spans as tags in IOB2.

    Words are runs of letters and digits, and single other characters. A span that starts or ends
    within a word is widened to it. Of overlapping spans, the first is kept. Both are counted.
    """
    found = [match.span() for match in _WORD.finditer(record.text)]
    tags = ["O"] * len(found)
    for span in record.spans:
        inside = [i for i, (a, b) in enumerate(found) if a < span.end and span.start < b]
        if not inside or any(tags[i] != "O" for i in inside):
            counts["spans_overlapping"] += 1
            continue
        edges = found[inside[0]][0], found[inside[-1]][1]
        if record.text[slice(*edges)] != record.text[span.start : span.end].strip():
            counts["spans_widened"] += 1
        tags[inside[0]] = f"B-{span.label}"
        for i in inside[1:]:
            tags[i] = f"I-{span.label}"
    starts, ends = (tuple(edge[k] for edge in found) for k in (0, 1))
    words = tuple(record.text[a:b] for a, b in found)
    return TaggedWords(words, tuple(tags), record.where, record.context, record.text, starts, ends)
