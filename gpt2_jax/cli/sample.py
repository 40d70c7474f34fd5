"""Generates text with a run's model.

gpt2-jax sample --workdir=runs/quickstart --prompt="def " [--stream]
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from gpt2_jax import cli
from gpt2_jax.data.tokenizer import Tokenizer
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
    search_texts,
    stream_text,
)
from gpt2_jax.files import to_json
from gpt2_jax.model.beam import BeamParams

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory")
_STEP = flags.DEFINE_string("step", None, "checkpoint: a step, or best; default: the latest")
_PROMPT = flags.DEFINE_string("prompt", None, "text to continue; default: start a new document")
_BATCH = flags.DEFINE_string(
    "batch_file", None, "prompts, one per line (.jsonl: strings, or objects with a prompt)"
)
_SAMPLES = flags.DEFINE_integer("num_samples", 1, "samples per prompt", 1, 100_000)
_NEW = flags.DEFINE_integer("max_new_tokens", 200, "maximum length of a sample", 1, 1_000_000)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", DEFAULT_SAMPLING.temperature, "divides the logits; 0: greedy decoding"
)
_TOP_K = flags.DEFINE_integer(
    "top_k", DEFAULT_SAMPLING.top_k, "sample from the k most likely tokens; 0: from all", 0
)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "sample from the fewest tokens with at least this total probability"
)
_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "above 1: tokens already in the text become less likely"
)
_BEAM = flags.DEFINE_integer(
    "beam", None, "beam search with this many hypotheses, instead of sampling", 1, 1000
)
_LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty",
    BeamParams.alpha,
    "beam search: hypotheses are ranked by log p / length^x; larger favors longer ones",
)
_STOP = flags.DEFINE_multi_string("stop", [], "text that ends a sample; may be repeated")
_SEED = flags.DEFINE_integer("seed", 0, "random seed", 0, 2**32 - 1)
_STREAM = flags.DEFINE_bool("stream", False, "show the text as it is generated")
_INT8 = flags.DEFINE_bool("int8", False, "store the weights in 8 bits")
_SHOW_TOP = flags.DEFINE_integer(
    "show_top", None, "print the k most likely next tokens and their probabilities instead", 1
)
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Prints samples, or the most likely next tokens."""
    del argv
    if not _WORKDIR.value:
        raise UserError("pass --workdir, the directory of a run")
    sampling = SamplingParams(_PENALTY.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    sampling.check()
    if "" in _STOP.value:
        raise UserError("--stop= is empty; set it to the text that ends a sample, or omit it")
    if _BATCH.value is None:
        prompts = [cli.typed(_PROMPT.value or "")]
    elif _PROMPT.value is None:
        prompts = read_prompts(Path(_BATCH.value))
    else:
        raise UserError("pass --prompt or --batch_file, not both")
    beam = _beam()
    for flag, is_set in (("--stream", _STREAM.value), ("--show_top", _SHOW_TOP.value is not None)):
        if is_set and (len(prompts) > 1 or _SAMPLES.value > 1):
            raise UserError(f"{flag} shows one text: omit --num_samples and --batch_file")
    generator, tokenizer = open_generator(_WORKDIR.value, _STEP.value, _INT8.value)
    stops = [cli.typed(stop) for stop in _STOP.value]
    options = (_NEW.value, sampling, _SEED.value, stops)
    if beam is not None:
        ids, n = encode_prompts(tokenizer, prompts), _SAMPLES.value
        found = search_texts(generator, tokenizer, ids, _NEW.value, beam, n, stops)
        pairs = [(prompt, one) for prompt, best in zip(prompts, found, strict=True) for one in best]
        _print(tokenizer, pairs)
    elif _SHOW_TOP.value is not None:
        print(format_top_tokens(generator, tokenizer, prompts[0], _SHOW_TOP.value))
    elif _STREAM.value:
        stream_text(sys.stdout, generator, tokenizer, prompts[0], *options)
    else:
        repeated = [prompt for prompt in prompts for _ in range(_SAMPLES.value)]
        texts = generate_texts(generator, tokenizer, encode_prompts(tokenizer, repeated), *options)
        _print(tokenizer, list(zip(repeated, texts, strict=True)))


def _beam() -> BeamParams | None:
    """Returns the parameters of the beam search; None for sampling.

    Raises:
      UserError: if a flag has no effect, or a value is out of range.
    """
    if _BEAM.value is None:
        if _LENGTH_PENALTY.present:
            raise UserError("--length_penalty is for beam search; also pass --beam, or omit it")
        return None
    for flag in (_TEMPERATURE, _TOP_K, _TOP_P, _PENALTY, _SEED, _STREAM, _SHOW_TOP):
        if flag.present:
            raise UserError(f"--{flag.name} has no effect with --beam; omit one of them")
    if _SAMPLES.value > _BEAM.value:
        raise UserError(f"--num_samples={_SAMPLES.value} must be at most --beam={_BEAM.value}")
    params = BeamParams(_BEAM.value, _LENGTH_PENALTY.value)
    params.check()
    return params


def _print(tokenizer: Tokenizer, texts: list[tuple[str, str]]) -> None:
    """Prints each prompt with its text: as JSON lines for a file of prompts, else as text."""
    for number, (prompt, text) in enumerate(texts, start=1):
        if _BATCH.value is not None:
            print(to_json({"prompt": prompt, "text": text}, ascii_only=False))
        else:
            title = f"--- sample {number} ---\n" if _SAMPLES.value > 1 else ""
            print(f"{title}{decoded_prompt(tokenizer, prompt)}{text}")
