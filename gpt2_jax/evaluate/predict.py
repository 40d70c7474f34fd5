"""Applies a run's model to new texts: tags, labels and answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from gpt2_jax.data.examples.encode import Encoder, Limits
from gpt2_jax.data.examples.labels import OUTSIDE, Labels
from gpt2_jax.data.examples.records import LabeledText, Question, Record, TaggedWords
from gpt2_jax.data.examples.store import Examples, examples_in_memory
from gpt2_jax.data.json_records import parse_json_line
from gpt2_jax.data.layout.assemble import Assembler
from gpt2_jax.data.layout.padded import OrderedLayout, longest
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError, quoted
from gpt2_jax.tasks.data import row_lengths
from gpt2_jax.tasks.predictions import Answer, predicted_values, word_values
from gpt2_jax.tasks.scores.entities import entities
from gpt2_jax.tasks.task import TASKS
from gpt2_jax.train.example_evaluation import ExampleEvaluator
from gpt2_jax.train.storage.open_run import OpenedRun, open_run
from gpt2_jax.train.storage.rundir import RunDirectory

AT_ONCE = 1024  # texts read before the first are predicted
_WORD = re.compile(r"\w+|[^\w\s]")


class Predictor:
    """A run's model for one of the tasks `tag`, `classify` and `answer`.

    Args:
      step: as in `CheckpointRef`.
      top: most likely labels to list with `classify`.

    Raises:
      UserError: if the run is of another task.
    """

    def __init__(self, workdir: str, step: int | str | None, top: int | None = None) -> None:
        self._run: OpenedRun = open_run(workdir, step)
        config = self._run.config
        self.task = config.task.name
        if self.task not in _PARSERS:
            known = ", ".join(_PARSERS)
            raise UserError(
                f"{workdir} has task.name={self.task}; `gpt2-jax predict` is for {known} (use "
                "`gpt2-jax translate` or `gpt2-jax sample`)"
            )
        if top is not None and self.task != "classify":
            raise UserError(
                f"--top has no effect on a run with task.name={self.task}; leave it out"
            )
        self._top = top
        self._labels = RunDirectory(workdir).labels() or []
        if TASKS[self.task].has_labels and not self._labels:
            raise UserError(
                f"{workdir} has no labels to predict; train a model that starts from it, with "
                f"train.init_from={workdir}"
            )
        pieces = PieceEncoder(load_tokenizer(config.data.tokenizer))
        lengths, stride = row_lengths(config.task, config.data), config.data.doc_stride
        limits = Limits(lengths, doc_stride=stride)
        self._encoder = Encoder(self.task, pieces, Labels(self._labels), limits)
        rows = config.train.batch_size // config.train.accumulation
        of_run = self._run.model_def, self._run.mesh
        self._evaluator = ExampleEvaluator(*of_run, rows, probabilities=True)

    def predict_lines(self, lines: Iterator[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each line that is not empty.

        Args:
          lines: where each is, for errors; and text, or a JSON object with the fields of the task.

        Raises:
          UserError: naming the line that is not valid.
        """
        parse = _PARSERS[self.task]
        filled = ((where, line) for where, line in lines if line.strip())
        while group := list(islice(filled, AT_ONCE)):
            records = [parse(line.rstrip("\r\n"), where, self._labels) for where, line in group]
            yield from self._predict(records)

    def _predict(self, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
        encoded = list(self._encoder.encode(records, Counter()))
        examples = examples_in_memory(
            self.task, [columns for _, columns in encoded], [record for record, _ in encoded]
        )
        with_types = self._run.config.model.token_types > 0
        assembler = Assembler(examples, self._encoder.pieces.specials, with_types)
        evaluator = self._evaluator
        ordered = OrderedLayout(assembler, longest(assembler), evaluator.n_rows)
        batches = (ordered.batch(i, evaluator.rows) for i in range(ordered.n_batches))
        run = self._run
        found = evaluator.evaluate(run.params, run.step, batches, ordered.n_batches)
        yield from self._shown(examples, found.rows[: len(examples)])

    def _shown(self, examples: Examples, rows: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        """Yields the predictions of examples.

        Args:
          rows: probabilities of labels, of tokens (T, C) or of the row (C); or scores (T, 2).
        """
        if self.task == "answer":
            answers = predicted_values(self.task, examples, self._labels, rows)
            yield from map(_show_answer, examples.records, answers)
        elif self.task == "classify":
            for record, row_C in zip(examples.records, rows, strict=True):
                yield self._show_label(record, row_C)
        else:
            tags = predicted_values("tag", examples, self._labels, [row.argmax(-1) for row in rows])
            likely = word_values(examples, [row.max(-1) for row in rows])
            yield from map(_show_tags, examples.records, tags, likely)

    def _show_label(self, record: LabeledText, row_C: np.ndarray) -> dict[str, Any]:
        order = np.argsort(-row_C, kind="stable")[: self._top or 1].tolist()
        best = [{"label": self._labels[i], "probability": _rounded(row_C[i])} for i in order]
        listed = {} if self._top is None else {"top": best}
        return {"text": record.text, **best[0], **listed}


def _fields(line: str, where: str, text_field: str | None) -> dict[str, Any]:
    """Returns the fields of a JSON object, or a plain line as `text_field`."""
    if not line.lstrip().startswith("{"):
        if text_field is None:
            raise UserError(f"{where} is not a JSON object with question and context")
        return {text_field: line}
    fields: dict[str, Any] = parse_json_line(line, where)
    return fields


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} has no text in {quoted(name)}; fill it in")
    return value


def _tagged(line: str, where: str, labels: Sequence[str]) -> TaggedWords:
    fields = _fields(line, where, "text")
    context = fields.get("context") or ""
    given = fields.get("words")
    if given is not None:
        is_list = isinstance(given, list) and given
        if not is_list or not all(isinstance(w, str) and w.strip() for w in given):
            raise UserError(f"{where}: words must be a list of words")
        return TaggedWords(tuple(given), (OUTSIDE,) * len(given), where, str(context))
    text = _text(fields, "text", where)
    spans = [match.span() for match in _WORD.finditer(text)]
    words = tuple(text[a:b] for a, b in spans)
    starts, ends = tuple(a for a, _ in spans), tuple(b for _, b in spans)
    return TaggedWords(words, (OUTSIDE,) * len(words), where, str(context), text, starts, ends)


def _labeled(line: str, where: str, labels: Sequence[str]) -> LabeledText:
    fields = _fields(line, where, "text")
    second = fields.get("second")
    if second is not None and not isinstance(second, str):
        raise UserError(f"{where}: second must be text")
    return LabeledText(_text(fields, "text", where), second, labels[0], where)


def _question(line: str, where: str, labels: Sequence[str]) -> Question:
    fields = _fields(line, where, None)
    question, context = (_text(fields, name, where) for name in ("question", "context"))
    return Question(str(fields.get("id", where)), question, context, (), where)


def _show_tags(record: TaggedWords, tags: list[str], likely: list[Any]) -> dict[str, Any]:
    """Returns the tags of words; the probability of an entity is that of all its tags.

    Args:
      likely: probability of each tag; None for a word that was cut off.
    """
    found = []
    for one in entities(tags, "strict"):
        entity: dict[str, Any] = {"type": one.type, "words": [one.start, one.end]}
        if record.text:
            start, end = record.starts[one.start], record.ends[one.end - 1]
            entity |= {"start": start, "end": end, "text": record.text[start:end]}
        else:
            entity["text"] = " ".join(record.words[one.start : one.end])
        of_words = np.array(likely[one.start : one.end], np.float64)
        found.append(entity | {"probability": _rounded(of_words.prod())})
    probabilities = [None if p is None else _rounded(p) for p in likely]
    return {
        "words": list(record.words),
        "tags": tags,
        "probabilities": probabilities,
        "entities": found,
    }


def _show_answer(record: Question, answer: Answer) -> dict[str, Any]:
    found = {"answer": answer.text, "start": answer.start, "end": answer.end}
    found["probability"] = _rounded(answer.probability)
    return {"id": record.id, "question": record.question, **found}


def _rounded(probability: Any) -> float:
    """Returns a probability with 6 digits after the point."""
    return round(float(probability), 6)


_PARSERS: dict[str, Callable[[str, str, Sequence[str]], Any]] = {
    "tag": _tagged,
    "classify": _labeled,
    "answer": _question,
}
