"""Generates text: at the end of a run, for a file of prompts, or streamed to a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gpt2_jax.config.sections import TrainConfig
from gpt2_jax.config.task_rules import check_continues
from gpt2_jax.data.readers import file_format
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.evaluate.text_stream import TextStream, continuation
from gpt2_jax.files import text_lines
from gpt2_jax.model.beam import BeamParams
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.train.storage.open_run import OpenedRun, open_run
from gpt2_jax.tuning.int8 import in_int8

PROMPT = "\n"
DEFAULT_SAMPLING = SamplingParams(temperature=0.8, top_k=40)
ROWS_AT_ONCE = 32


def sample_text(
    train: TrainConfig,
    seq_len: int,
    seed: int,
    model_def: ModelDef,
    params: Any,
    tokenizer: Tokenizer,
) -> str:
    """Returns `train.sample_tokens` tokens of text that follow a line break."""
    params = jax.tree.map(on_one_device, params)
    generator = Generator(model_def, params, train.steps, seq_len)
    prompts = encode_prompts(tokenizer, [PROMPT])
    (ids,) = generator.generate(prompts, train.sample_tokens, DEFAULT_SAMPLING, seed)
    return continuation(tokenizer, prompts[0], ids)


def on_one_device(x: jax.Array) -> jax.Array:
    """Returns an array on one device of this process."""
    if not x.is_fully_replicated:
        if x.is_fully_addressable:
            return jax.device_put(x, jax.devices()[0])
        assert isinstance(x.sharding, NamedSharding)
        x = jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))
    return x.addressable_data(0)


def read_prompts(path: Path) -> list[str]:
    """Returns the prompts of a UTF-8 file, one per line: text, or JSON if its name ends in .jsonl.

    Only a line feed ends a line, with or without a carriage return before it; a byte order mark is
    ignored.

    Raises:
      UserError: naming the line that has no prompt.
    """
    if file_format(path) not in (None, ".txt", ".jsonl"):
        raise UserError(f"--batch_file={path} is not a list of prompts: pass a .txt or .jsonl file")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"--batch_file={path} is not a file")
        lines = text_lines(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--batch_file={path} cannot be read as UTF-8 text: {error}") from None
    if not lines:
        raise UserError(f"--batch_file={path} is empty; add one prompt per line")
    if file_format(path) in (None, ".txt"):
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt = value["prompt"] if isinstance(value, dict) else value
        except (ValueError, KeyError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise UserError(f"{path}:{number} is neither a JSON string nor an object with a prompt")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"--batch_file={path} has no prompt; add one per line")
    return prompts


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each prompt; an empty prompt starts a document.

    Raises:
      UserError: if a prompt contains half of a surrogate pair, which is not text.
    """
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the prompt {prompt!a} is not UTF-8 text: {error.reason}") from None
    return [ids.tolist() or [tokenizer.end_of_text] for ids in tokenizer.encode(prompts)]


def decoded_prompt(tokenizer: Tokenizer, prompt: str) -> str:
    """Encodes and decodes a prompt, so that it joins with the text generated after it."""
    (ids,) = tokenizer.encode([prompt])
    return tokenizer.decode_bytes(ids.tolist()).decode(errors="replace")


def generate_texts(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    sampling: SamplingParams,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> list[str]:
    """Returns a continuation of each prompt, up to end-of-text, a stop string or `n_new` tokens.

    Args:
      prompts: from `encode_prompts`; processed in batches of `ROWS_AT_ONCE`.
      seed: seed of the first batch; batch i uses seed + i.
    """
    texts: list[str] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        batch = prompts[start : start + ROWS_AT_ONCE]
        options = (n_new, sampling, seed + start // ROWS_AT_ONCE)
        if stops:
            texts += _generate_until(generator, tokenizer, batch, stops, *options)
        else:  # one program for the whole loop
            new = generator.generate(batch, *options)
            pairs = zip(batch, new, strict=True)
            texts += [continuation(tokenizer, prompt, one) for prompt, one in pairs]
    return texts


def _generate_until(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    n_new: int,
    sampling: SamplingParams,
    seed: int,
) -> list[str]:
    streams = [TextStream(tokenizer, stops, prompt) for prompt in prompts]
    for column in generator.stream(prompts, n_new, sampling, seed):
        for stream, token_id in zip(streams, column, strict=True):
            if token_id is not None:
                stream.push(token_id)
        if all(s.stopped or i is None for s, i in zip(streams, column, strict=True)):
            break
    for stream in streams:
        stream.finish()
    return [stream.text for stream in streams]


def search_texts(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    params: BeamParams,
    n_best: int = 1,
    stops: Sequence[str] = (),
) -> list[list[str]]:
    """Returns the best continuations of each prompt by beam search, the best first.

    A search ends where the model's window is full. Stop strings cut its results.

    Args:
      prompts: from `encode_prompts`; processed in batches of `ROWS_AT_ONCE`.
      n_best: number of continuations per prompt, at most `params.n_beams`.
    """
    texts: list[list[str]] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        batch = prompts[start : start + ROWS_AT_ONCE]
        for prompt, found in zip(batch, generator.search(batch, n_new, params), strict=True):
            whole = [continuation(tokenizer, prompt, ids) for ids, _ in found[:n_best]]
            texts.append([_until_stop(text, stops) for text in whole])
    return texts


def _until_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def stream_text(
    out: TextIO,
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: str,
    n_new: int,
    sampling: SamplingParams,
    seed: int,
    stops: Sequence[str],
) -> None:
    """Writes a prompt and its continuation to a stream, as it is generated."""
    (ids,) = encode_prompts(tokenizer, [prompt])
    stream = TextStream(tokenizer, stops, ids)
    out.write(decoded_prompt(tokenizer, prompt))
    out.flush()
    for (token_id,) in generator.stream([ids], n_new, sampling, seed):
        if token_id is None:
            break
        out.write(stream.push(token_id))
        out.flush()
        if stream.stopped:
            break
    out.write(stream.finish() + "\n")


def format_top_tokens(generator: Generator, tokenizer: Tokenizer, prompt: str, k: int) -> str:
    """Returns a table of the k most likely next tokens."""
    (ids,) = encode_prompts(tokenizer, [prompt])
    log_p = generator.next_distribution(ids)
    lines = []
    before = len(tokenizer.decode_bytes(ids))
    for i in log_p.argsort()[::-1][:k]:
        data = tokenizer.decode_bytes([*ids, int(i)])[before:]
        text = repr(data.decode(errors="backslashreplace"))
        shown = "end of text" if i == tokenizer.end_of_text and not data else text
        lines.append(f"{math.exp(log_p[i]):8.4f}  {i:>6}  {shown}")
    return "\n".join(lines)


def open_generator(
    workdir: str, step: int | str | None = None, int8: bool = False
) -> tuple[Generator, Tokenizer]:
    """Returns a generator for a run's checkpoint, and the run's tokenizer.

    From Python, for example in a notebook:

        generator, tokenizer = open_generator("runs/quickstart")
        prompts = encode_prompts(tokenizer, ["def ", "import "])
        texts = generate_texts(generator, tokenizer, prompts, 100, DEFAULT_SAMPLING)
        logits_BTV = generator.logits(prompts[:1])  # V is the size of the vocabulary

    It runs on the first jax device, whether or not jax was used before.

    Args:
      int8: whether to store the weights in 8 bits.

    Raises:
      UserError: if there is no run, or no such checkpoint.
    """
    run = open_run(workdir, step, devices=1)
    if int8:
        model, params = in_int8(run.model_def, run.params)
        run = replace(run, model_def=model, params=params)
    return make_generator(run)


def make_generator(run: OpenedRun) -> tuple[Generator, Tokenizer]:
    """Returns a generator for an opened run, and the run's tokenizer."""
    check_continues(run.config.task, "the run")
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    end = None if tokenizer.name.startswith("ids:") else tokenizer.end_of_text
    return Generator(run.model_def, run.params, run.step, run.config.data.seq_len, end), tokenizer
