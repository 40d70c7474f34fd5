"""Texts from a model: of a run, for a file of prompts, or on a terminal while they are made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.choice import Choice
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.text import TextStream
from gpt2_jax.model.structure import Structure
from gpt2_jax.train.restore import open_run

PROMPT = "\n"
USUAL = Choice(temperature=0.8, top_k=40)
ROWS_AT_ONCE = 32


def sample_text(config: ConfigDict, structure: Structure, params: Any, tokenizer: Tokenizer) -> str:
    """Returns `train.sample_tokens` of text after a line break, at temperature 0.8, top 40."""
    params = jax.tree.map(lambda x: x.addressable_data(0), params)
    generator = Generator(structure, params, config.train.steps, config.data.seq_len)
    prompts = encode_prompts(tokenizer, [PROMPT])
    (ids,) = generator.generate(prompts, config.train.sample_tokens, USUAL, config.seed)
    return tokenizer.decode_bytes(ids).decode(errors="replace")


def read_prompts(path: Path) -> list[str]:
    """Returns the prompts of a file, one a line.

    Raises:
      UserError: naming the line that holds none.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--batch_file={path} cannot be read: {error}") from None
    if not lines:
        raise UserError(f"--batch_file={path} is empty")
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            prompt = value["prompt"] if isinstance(value, dict) else value
        except (ValueError, KeyError):
            prompt = None
        if not isinstance(prompt, str):
            raise UserError(f"{path}:{number} is neither a JSON string nor an object with a prompt")
        prompts.append(prompt)
    return prompts


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each prompt; an empty one begins a document."""
    return [ids.tolist() or [tokenizer.end_of_text] for ids in tokenizer.encode(prompts)]


def write(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    choice: Choice,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> list[str]:
    """Returns the text that goes on from each prompt, up to its end, a stop or `n_new` tokens.

    Args:
      prompts: of `encode_prompts`; any number, which share the memory of `ROWS_AT_ONCE`.
      seed: of the first such batch; the next ones count on from it.
    """
    texts: list[str] = []
    for batch in range(0, len(prompts), ROWS_AT_ONCE):
        some = prompts[batch : batch + ROWS_AT_ONCE]
        how = (n_new, choice, seed + batch // ROWS_AT_ONCE)
        if stops:
            texts += _write_until(generator, tokenizer, some, stops, *how)
        else:  # the whole loop is one program
            new = generator.generate(some, *how)
            texts += [tokenizer.decode_bytes(one).decode(errors="replace") for one in new]
    return texts


def _write_until(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    *how: Any,
) -> list[str]:
    streams = [TextStream(tokenizer, stops) for _ in prompts]
    for column in generator.stream(prompts, *how):
        for stream, token_id in zip(streams, column, strict=True):
            if token_id is not None:
                stream.push(token_id)
        if all(s.stopped or i is None for s, i in zip(streams, column, strict=True)):
            break
    for stream in streams:
        stream.finish()
    return [stream.text for stream in streams]


def stream_to(
    out: Any,
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: str,
    n_new: int,
    choice: Choice,
    seed: int,
    stops: Sequence[str],
) -> None:
    """Writes the text that goes on from a prompt while it is made."""
    stream = TextStream(tokenizer, stops)
    for (token_id,) in generator.stream(encode_prompts(tokenizer, [prompt]), n_new, choice, seed):
        if token_id is None:
            break
        out.write(stream.push(token_id))
        out.flush()
        if stream.stopped:
            break
    out.write(stream.finish() + "\n")


def show_top(generator: Generator, tokenizer: Tokenizer, prompt: str, k: int) -> str:
    """Returns a table of the likeliest next tokens."""
    (ids,) = encode_prompts(tokenizer, [prompt])
    log_p = generator.next_distribution(ids)
    lines = []
    for i in log_p.argsort()[::-1][:k]:
        data = tokenizer.decode_bytes([int(i)])
        shown = repr(data.decode(errors="backslashreplace")) if data else "end of text"
        lines.append(f"{math.exp(log_p[i]):8.4f}  {i:>6}  {shown}")
    return "\n".join(lines)


def open_generator(workdir: str, step: int | str | None = None) -> tuple[Generator, Tokenizer]:
    """Returns what continues texts under a run's checkpoint, and its tokenizer.

    Raises:
      UserError: if there is no run, or no such checkpoint.
    """
    run = open_run(workdir, step, devices=1)
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    end = None if tokenizer.name.startswith("ids:") else tokenizer.end_of_text
    return Generator(run.structure, run.params, run.step, run.config.data.seq_len, end), tokenizer
