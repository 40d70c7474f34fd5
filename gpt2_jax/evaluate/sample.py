"""Text from a run's model.

python -m gpt2_jax.evaluate.sample --workdir=runs/quickstart --prompt="def " [--stream]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from gpt2_jax import cli
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.choice import Choice
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.text import TextStream
from gpt2_jax.model.structure import Structure

PROMPT = "\n"
USUAL = Choice(temperature=0.8, top_k=40)

_WORKDIR = flags.DEFINE_string("workdir", None, "the run")
_STEP = flags.DEFINE_integer("step", None, "its checkpoint; unset: the latest")
_PROMPT = flags.DEFINE_string("prompt", "", "text to go on from; empty: a new document")
_BATCH = flags.DEFINE_string(
    "batch_file", None, "prompts, one a line (.jsonl: strings, or objects with a prompt)"
)
_SAMPLES = flags.DEFINE_integer("num_samples", 1, "texts for each prompt", 1)
_NEW = flags.DEFINE_integer("max_new_tokens", 200, "tokens at most", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", USUAL.temperature, "0 takes the likeliest token")
_TOP_K = flags.DEFINE_integer("top_k", USUAL.top_k, "draw among so many likeliest tokens; 0: all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among the likeliest that hold this probability")
_PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "above 1: less of what was said before")
_STOP = flags.DEFINE_multi_string("stop", [], "text that ends a sample; may be given several times")
_SEED = flags.DEFINE_integer("seed", 0, "chooses the text", 0)
_STREAM = flags.DEFINE_bool("stream", False, "show the text as it is made")
_SHOW_TOP = flags.DEFINE_integer(
    "show_top", None, "print the likeliest next tokens and their probabilities instead", 1
)


def sample_text(config: ConfigDict, structure: Structure, params: Any, tokenizer: Tokenizer) -> str:
    """Returns `train.sample_tokens` of text after a line break, at temperature 0.8, top 40."""
    import jax

    params = jax.tree.map(lambda x: x.addressable_data(0), params)
    prompts = [ids.tolist() for ids in tokenizer.encode([PROMPT])]
    generator = Generator(structure, params, config.data.seq_len)
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
    prompts: Sequence[str],
    n_new: int,
    choice: Choice,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> list[str]:
    """Returns the text that goes on from each prompt, up to its end, a stop or `n_new` tokens."""
    ids = encode_prompts(tokenizer, prompts)
    if not stops:  # the whole loop is one program
        new = generator.generate(ids, n_new, choice, seed)
        return [tokenizer.decode_bytes(one).decode(errors="replace") for one in new]
    streams = [TextStream(tokenizer, stops) for _ in prompts]
    for column in generator.stream(ids, n_new, choice, seed):
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
        if token_id is None or stream.stopped:
            break
        out.write(stream.push(token_id))
        out.flush()
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


def main(argv: list[str]) -> None:
    """Prints what the flags ask for."""
    del argv
    if not _WORKDIR.value:
        raise UserError("give --workdir, the directory of a run")
    choice = Choice(_PENALTY.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    choice.check()
    prompts = [_PROMPT.value] if _BATCH.value is None else read_prompts(Path(_BATCH.value))
    if _STREAM.value and (len(prompts) > 1 or _SAMPLES.value > 1):
        raise UserError("--stream shows one text: leave out --num_samples and --batch_file")
    generator, tokenizer = open_generator(_WORKDIR.value, _STEP.value)
    how = (_NEW.value, choice, _SEED.value, _STOP.value)
    if _SHOW_TOP.value is not None:
        print(show_top(generator, tokenizer, prompts[0], _SHOW_TOP.value))
    elif _STREAM.value:
        sys.stdout.write(prompts[0])
        stream_to(sys.stdout, generator, tokenizer, prompts[0], *how)
    else:
        asked = [prompt for prompt in prompts for _ in range(_SAMPLES.value)]
        texts = write(generator, tokenizer, asked, *how)
        for number, (prompt, text) in enumerate(zip(asked, texts, strict=True), start=1):
            if _BATCH.value is not None:
                print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            else:
                title = f"--- sample {number} ---\n" if _SAMPLES.value > 1 else ""
                print(f"{title}{prompt}{text}")


def open_generator(workdir: str, step: int | None = None) -> tuple[Generator, Tokenizer]:
    """Returns what continues texts under a run's checkpoint, and its tokenizer.

    Raises:
      UserError: if there is no run, or no such checkpoint.
    """
    from gpt2_jax.train.restore import open_run

    run = open_run(workdir, step, devices=1)
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    window, end = run.config.data.seq_len, tokenizer.end_of_text
    return Generator(run.structure, run.params, window, end), tokenizer


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
