"""Applies a fine-tuned model to texts.

gpt2-jax predict --workdir=runs/ner [--input=FILE]          tags, labels or answers as JSON lines
gpt2-jax translate --workdir=runs/translate [--input=FILE]  a line of text for each line
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from absl import flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError
from gpt2_jax.files import to_json

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory")
_STEP = flags.DEFINE_string("step", None, "checkpoint: a step, or best; default: the latest")
_INPUT = flags.DEFINE_string(
    "input", "-", "UTF-8 file with a text or JSON object per line; -: stdin"
)
_TOP = flags.DEFINE_integer("top", None, "predict: most likely labels to list", 1, 1000)
_BEAM = flags.DEFINE_integer("beam", None, "translate: beams; default: those of the run", 1, 64)
_PENALTY = flags.DEFINE_float(
    "length_penalty", None, "translate: exponent of the length; default: that of the run"
)
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Runs the command `predict` or `translate`, the last word of the program's name."""
    workdir, command = _WORKDIR.value, argv[0].rpartition(" ")[2]
    if not workdir:
        raise UserError("pass --workdir, the directory of a run")
    with _opened(_INPUT.value) as file:
        (translate if command == "translate" else predict)(workdir, _lines(file))


def predict(workdir: str, lines: Iterator[tuple[str, str]]) -> None:
    """Prints a JSON object for each line; lines come with where they are."""
    from gpt2_jax.evaluate.predict import Predictor

    predictor = Predictor(workdir, _STEP.value, _TOP.value)
    for found in predictor.predict_lines(lines):
        print(to_json(found, ascii_only=False), flush=True)


def translate(workdir: str, lines: Iterator[tuple[str, str]]) -> None:
    """Prints a line of text for each line; lines come with where they are."""
    from gpt2_jax.evaluate.translate_lines import translate_lines

    texts = (text for _, text in lines)
    for text in translate_lines(workdir, _STEP.value, texts, _BEAM.value, _PENALTY.value):
        print(text, flush=True)


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"--input={path} cannot be read: {error.strerror}") from None
    with file:
        yield file


def _lines(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Yields where each line is, such as `FILE line 3`, and its text."""
    name = "standard input," if _INPUT.value == "-" else _INPUT.value
    for number, line in enumerate(file, 1):
        where = f"{name} line {number}"
        try:
            yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} is not UTF-8 text ({error.reason}); convert the input, for example with "
                "iconv"
            ) from None
