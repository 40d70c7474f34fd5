"""Translates lines of text with a run's model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.run_texts import make_translator, with_decoding
from gpt2_jax.evaluate.translate import ROWS_AT_ONCE
from gpt2_jax.tasks.data import row_lengths
from gpt2_jax.train.storage.open_run import open_run

LINES_AT_ONCE = 8 * ROWS_AT_ONCE  # sorted by length before they are divided into batches


def translate_lines(
    workdir: str,
    step: int | str | None,
    lines: Iterator[str],
    beam: int | None = None,
    length_penalty: float | None = None,
) -> Iterator[str]:
    """Yields the best target for each line; an empty line for an empty one.

    Args:
      step: as in `CheckpointRef`.
      beam, length_penalty: as in `EvalConfig`; None for those of the run.

    Raises:
      UserError: if there is no such run, or it is of another task.
    """
    run = open_run(workdir, step)
    if run.config.task.name != "translate":
        raise UserError(
            f"{workdir} has task.name={run.config.task.name}; `gpt2-jax translate` needs a run "
            "with task.name=translate (use `gpt2-jax predict` or `gpt2-jax sample`)"
        )
    evaluation = with_decoding(run.config.eval, beam, length_penalty)
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    lengths = row_lengths(run.config.task, run.config.data)
    of_model = run.model_def, run.params, run.step
    translator = make_translator(evaluation, lengths, *of_model, tokenizer)
    while group := [line.strip() for line in islice(lines, LINES_AT_ONCE)]:
        found = iter(translator.translate([line for line in group if line]))
        yield from (" ".join(next(found).splitlines()) if line else "" for line in group)
