"""The text that a run in progress generates: its sample, and the scores of its translations."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gpt2_jax.config import Config
from gpt2_jax.data.examples.records import Question, TaggedWords
from gpt2_jax.data.examples.store import Examples
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.evaluate.text_generation import on_one_device, sample_text
from gpt2_jax.evaluate.text_stream import continuation
from gpt2_jax.evaluate.translate import Translator
from gpt2_jax.model.beam import BeamParams
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.data import ExampleData, row_lengths
from gpt2_jax.tasks.predictions import predicted_values
from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.tasks.scores.rouge import rouge_scores
from gpt2_jax.tasks.scores.translation import translation_scores
from gpt2_jax.train.example_evaluation import ExampleScore
from gpt2_jax.train.run import TextFns, TrainedModel

SHOWN = 5  # examples in a sample
GREEDY = SamplingParams(temperature=0.0)
NO_INTERVALS = Bootstrap(resamples=0)


def make_translator(
    config: Config, model_def: ModelDef, params: Any, step: int, pieces: PieceEncoder
) -> Translator:
    """Returns the translator of a run, with the beam of its config."""
    source, target = row_lengths(config.task, config.data)
    beam = BeamParams(config.eval.beam, config.eval.length_penalty)
    params = jax.tree.map(on_one_device, params)
    return Translator(model_def, params, step, pieces, (source, target), beam)


def generated_scores(
    config: Config,
    data: ExampleData,
    split: str,
    hypotheses: list[str],
    bootstrap: Bootstrap = NO_INTERVALS,
) -> Scores:
    """Returns the scores of generated targets of a split: `eval.score`."""
    references = [list(record.references) for record in data.splits[split].records]
    if config.eval.score == "rouge":
        return rouge_scores(references, hypotheses, bootstrap=bootstrap)
    return translation_scores(references, hypotheses, bootstrap=bootstrap)


def _scores(model: TrainedModel) -> Scores | None:
    data = model.data
    if not isinstance(data, ExampleData) or data.task.name != "translate":
        return None
    translator = _translator(model, data)
    sources = [record.source for record in data.splits["val"].records]
    return generated_scores(model.config, data, "val", translator.translate(sources))


def _translator(model: TrainedModel, data: ExampleData) -> Translator:
    of_model = model.model_def, model.params, model.step
    return make_translator(model.config, *of_model, data.pieces)


def _sample(model: TrainedModel) -> str | None:
    config, data = model.config, model.data
    if not isinstance(data, ExampleData):
        of_model = model.model_def, model.params, model.tokenizer
        return sample_text(config.train, config.data.seq_len, config.seed, *of_model)
    if data.task.name == "sft":
        return _completions(model, data)
    if data.task.name == "translate":
        records = data.splits["val"].records[:SHOWN]
        found = _translator(model, data).translate([record.source for record in records])
        lines = [
            f"source     {record.source}\nreference  {record.references[0]}\nmodel      {text}"
            for record, text in zip(records, found, strict=True)
        ]
        return "\n\n".join(lines)
    return _predictions(data, model.score) if isinstance(model.score, ExampleScore) else None


def _completions(model: TrainedModel, data: ExampleData) -> str:
    """Returns the most likely completions of the first validation prompts, and the gold ones."""
    train, tokenizer = model.config.train, data.tokenizer
    prompts, golds = _prompts(data.splits["val"])
    params = jax.tree.map(on_one_device, model.params)
    limit = data.config.seq_len
    end = data.pieces.specials.eos
    generator = Generator(model.model_def, params, model.step, limit, end)
    found = generator.generate(prompts, min(train.sample_tokens, limit), GREEDY)
    text = lambda ids: tokenizer.decode_bytes(ids).decode(errors="replace")
    lines = [
        f"prompt  {text(prompt)}\ngold    {continuation(tokenizer, prompt, gold)}\n"
        f"model   {continuation(tokenizer, prompt, new)}"
        for prompt, gold, new in zip(prompts, golds, found, strict=True)
    ]
    return "\n\n".join(lines)


def _prompts(examples: Examples) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the ids of the first prompts, and those of their completions."""
    prompts, golds = [], []
    for i in range(min(SHOWN, len(examples))):
        ids, learn = (examples.ragged[name][i] for name in ("inputs", "learn"))
        learned = np.flatnonzero(learn[1:]) + 1
        first = int(learned[0]) if len(learned) else len(ids)
        after = np.flatnonzero(learn[first:] == 0)
        stop = first + int(after[0]) if len(after) else len(ids)
        prompts.append(ids[:first].tolist())
        golds.append(ids[first:stop].tolist())
    return prompts, golds


def _predictions(data: ExampleData, score: ExampleScore) -> str | None:
    """Returns the first predictions of the last evaluation as text, with the gold values."""
    if not score.sums.rows:
        return None
    examples, task = data.splits["val"], data.task.name
    values = predicted_values(task, examples, data.labels, score.sums.rows)
    shown = zip(examples.records[:SHOWN], values[:SHOWN], strict=True)
    return "\n\n".join(_described(record, value) for record, value in shown)


def _described(record: Any, value: Any) -> str:
    if isinstance(record, TaggedWords):
        rows = zip(record.words, record.tags, value, strict=True)
        cells = [
            f"{word}[{found}{'' if found == tag else f', not {tag}'}]" for word, tag, found in rows
        ]
        return " ".join(cell.removesuffix("[O]") for cell in cells)
    if isinstance(record, Question):
        gold = " or ".join(repr(text) for _, text in record.answers) or "none"
        return f"question  {record.question}\ngold      {gold}\nmodel     {value.text!r}"
    return f"text   {record.text}\ngold   {record.label}\nmodel  {value}"


TEXTS = TextFns(_sample, _scores)
