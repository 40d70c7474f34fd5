"""The text that a run in progress generates: its sample, and the scores of its translations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gpt2_jax.config.sections import EvalConfig
from gpt2_jax.data.examples.labels import OUTSIDE
from gpt2_jax.data.examples.records import Question, TaggedWords
from gpt2_jax.data.layout.assemble import Lengths
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import GREEDY
from gpt2_jax.evaluate.text_generation import generate_texts, on_one_device, sample_text
from gpt2_jax.evaluate.translate import Translator
from gpt2_jax.model.beam import BeamParams
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.tasks.predictions import predicted_values
from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.tasks.scores.rouge import rouge_scores
from gpt2_jax.tasks.scores.translation import translation_scores
from gpt2_jax.track.wandb_log import Sample
from gpt2_jax.train.example_evaluation import ExampleScore
from gpt2_jax.train.run import TextFns, TrainedModel

SHOWN = 5  # examples in a sample
NO_INTERVALS = Bootstrap(resamples=0)


def with_decoding(
    evaluation: EvalConfig, beam: int | None, length_penalty: float | None
) -> EvalConfig:
    """Returns how a run decodes, with what is given replaced."""
    given: dict[str, Any] = {"beam": beam, "length_penalty": length_penalty}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(evaluation, **changes)


def make_translator(
    evaluation: EvalConfig,
    lengths: Lengths,
    model_def: ModelDef,
    params: Any,
    step: int,
    tokenizer: Tokenizer,
) -> Translator:
    """Returns the translator of a run.

    Args:
      lengths: most tokens of a source and of a target.
      params: on the run's mesh. step: steps they were trained for.
    """
    source, target = lengths
    beam = BeamParams(evaluation.beam, evaluation.length_penalty)
    params = jax.tree.map(on_one_device, params)
    return Translator(model_def, params, step, tokenizer, (source, target), beam)


def generated_scores(
    score: str,
    data: ExampleData,
    split: str,
    hypotheses: list[str],
    bootstrap: Bootstrap = NO_INTERVALS,
) -> Scores:
    """Returns the scores of generated targets of a split.

    Args:
      score: as in `eval.score`.
    """
    references = [list(record.references) for record in data.splits[split].records]
    if score == "rouge":
        return rouge_scores(references, hypotheses, bootstrap=bootstrap)
    return translation_scores(references, hypotheses, bootstrap=bootstrap)


def _scores(model: TrainedModel) -> Scores | None:
    data = model.data
    if not isinstance(data, ExampleData) or data.task.name != "translate":
        return None
    translator = _translator(model, data)
    sources = [record.source for record in data.splits["val"].records]
    return generated_scores(model.config.eval.score, data, "val", translator.translate(sources))


def _translator(model: TrainedModel, data: ExampleData) -> Translator:
    of_model = model.model_def, model.params, model.step
    return make_translator(model.config.eval, data.lengths, *of_model, data.tokenizer)


def _sample(model: TrainedModel) -> Sample | None:
    config, data = model.config, model.data
    if not isinstance(data, ExampleData):
        of_model = model.model_def, model.params, model.tokenizer
        return Sample(sample_text(config.train, config.data.seq_len, config.seed, *of_model))
    if data.task.name == "translate":
        return _shown(_translations(model, data))
    if data.task.name == "sft":
        return _shown(_completions(model, data))
    return _predictions(data, model.score) if isinstance(model.score, ExampleScore) else None


def _shown(rows: list[dict[str, str]]) -> Sample:
    """Returns examples, with the same fields each, as text and as a table."""
    columns = list(rows[0])
    width = max(map(len, columns)) + 2
    texts = ["\n".join(f"{name:<{width}}{value}" for name, value in row.items()) for row in rows]
    return Sample("\n\n".join(texts), (columns, [list(row.values()) for row in rows]))


def _translations(model: TrainedModel, data: ExampleData) -> list[dict[str, str]]:
    records = data.splits["val"].records[:SHOWN]
    found = _translator(model, data).translate([record.source for record in records])
    return [
        {"source": record.source, "reference": record.references[0], "model": text}
        for record, text in zip(records, found, strict=True)
    ]


def _completions(model: TrainedModel, data: ExampleData) -> list[dict[str, str]]:
    """Returns the first completions of validation examples, as the model continues them."""
    examples, tokenizer, end = data.splits["val"], data.tokenizer, data.pieces.specials.eos
    decode = lambda ids: tokenizer.decode_bytes(ids).decode(errors="replace")
    prompts, gold = [], []
    for i in range(min(SHOWN, len(examples))):
        ids, learn = examples.ragged["inputs"][i].tolist(), examples.ragged["learn"][i]
        first = int(np.argmax(learn)) if learn.any() else len(ids)
        prompts.append(ids[:first] or [end])
        gold.append(decode(ids[first:]))
    params = jax.tree.map(on_one_device, model.params)
    generator = Generator(model.model_def, params, model.step, model.config.data.seq_len, end)
    n = model.config.train.sample_tokens
    found = generate_texts(generator, tokenizer, prompts, n, GREEDY)
    return [
        {"prompt": decode(prompt), "gold": true, "model": text}
        for prompt, true, text in zip(prompts, gold, found, strict=True)
    ]


def _predictions(data: ExampleData, score: ExampleScore) -> Sample | None:
    """Returns the first predictions of the last evaluation, with the gold values."""
    if not score.sums.rows:
        return None
    examples, task = data.splits["val"], data.task.name
    values = predicted_values(task, examples, data.labels, score.sums.rows)
    shown = zip(examples.records[:SHOWN], values[:SHOWN], strict=True)
    return _shown([_described(record, value) for record, value in shown])


def _described(record: Any, value: Any) -> dict[str, str]:
    if isinstance(record, TaggedWords):
        return {"gold": _tagged(record.words, record.tags), "model": _tagged(record.words, value)}
    if isinstance(record, Question):
        gold = " or ".join(text for _, text in record.answers) or "(no answer)"
        answer = value.text or "(no answer)"
        return {"context": record.context, "question": record.question, "gold": gold} | {
            "model": answer
        }
    return {"text": record.text, "gold": record.label, "model": value}


def _tagged(words: Sequence[str], tags: Sequence[str]) -> str:
    """Returns words with their tags, as in `Ada[B-PER] slept`."""
    pairs = zip(words, tags, strict=True)
    return " ".join(word if tag == OUTSIDE else f"{word}[{tag}]" for word, tag in pairs)


TEXTS = TextFns(_sample, _scores)
