"""Text from a run's model.

gpt2-jax sample --workdir=runs/quickstart --prompt="def " [--stream]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.evaluate.text_generation import (
    DEFAULT_SAMPLING,
    decoded_prompt,
    encode_prompts,
    format_top_tokens,
    generate_texts,
    open_generator,
    read_prompts,
    stream_text,
)
from gpt2_jax.files import to_json

_WORKDIR = flags.DEFINE_string("workdir", None, "the run")
_STEP = flags.DEFINE_string("step", None, "checkpoint: a step, or best; unset: the latest")
_PROMPT = flags.DEFINE_string("prompt", None, "text to continue; unset or empty: a new document")
_BATCH = flags.DEFINE_string(
    "batch_file", None, "prompts, one per line (.jsonl: strings, or objects with a prompt)"
)
_SAMPLES = flags.DEFINE_integer("num_samples", 1, "texts for each prompt", 1, 100_000)
_NEW = flags.DEFINE_integer("max_new_tokens", 200, "tokens at most", 1, 1_000_000)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", DEFAULT_SAMPLING.temperature, "0 takes the likeliest token"
)
_TOP_K = flags.DEFINE_integer(
    "top_k", DEFAULT_SAMPLING.top_k, "draw among so many likeliest tokens; 0: all", 0
)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among the likeliest that hold this probability")
_PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "above 1: less of what was said before")
_STOP = flags.DEFINE_multi_string("stop", [], "text that ends a sample; may be given several times")
_SEED = flags.DEFINE_integer("seed", 0, "chooses the text", 0, 2**32 - 1)
_STREAM = flags.DEFINE_bool("stream", False, "show the text as it is made")
_SHOW_TOP = flags.DEFINE_integer(
    "show_top", None, "print the likeliest next tokens and their probabilities instead", 1
)
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Prints what the flags ask for."""
    del argv
    if not _WORKDIR.value:
        raise UserError("give --workdir, the directory of a run")
    sampling = SamplingParams(_PENALTY.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    sampling.check()
    if "" in _STOP.value:
        raise UserError("--stop= is empty; give the text that ends a sample, or leave it out")
    if _BATCH.value is None:
        prompts = [cli.typed(_PROMPT.value or "")]
    elif _PROMPT.value is None:
        prompts = read_prompts(Path(_BATCH.value))
    else:
        raise UserError("give --prompt or --batch_file, not both")
    for flag, given in (("--stream", _STREAM.value), ("--show_top", _SHOW_TOP.value is not None)):
        if given and (len(prompts) > 1 or _SAMPLES.value > 1):
            raise UserError(f"{flag} shows one text: leave out --num_samples and --batch_file")
    generator, tokenizer = open_generator(_WORKDIR.value, _STEP.value)
    options = (_NEW.value, sampling, _SEED.value, [cli.typed(stop) for stop in _STOP.value])
    if _SHOW_TOP.value is not None:
        print(format_top_tokens(generator, tokenizer, prompts[0], _SHOW_TOP.value))
    elif _STREAM.value:
        stream_text(sys.stdout, generator, tokenizer, prompts[0], *options)
    else:
        asked = [prompt for prompt in prompts for _ in range(_SAMPLES.value)]
        texts = generate_texts(generator, tokenizer, encode_prompts(tokenizer, asked), *options)
        for number, (prompt, text) in enumerate(zip(asked, texts, strict=True), start=1):
            if _BATCH.value is not None:
                print(to_json({"prompt": prompt, "text": text}, ascii_only=False))
            else:
                title = f"--- sample {number} ---\n" if _SAMPLES.value > 1 else ""
                print(f"{title}{decoded_prompt(tokenizer, prompt)}{text}")


def run(argv: Sequence[str]) -> None:
    """Parses the command line and runs the command."""
    app.run(cli.guarded(main), argv=list(argv), flags_parser=cli.parse_flags)
