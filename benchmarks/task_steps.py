"""Our side of `benchmarks.tasks`: a process that is timed.

    python -m benchmarks.task_steps WORK FOLDER LAYOUT DTYPE

It runs all batches of a layout, or all searches, for each number of repeats on standard input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.task_arrays import load_arrays
from benchmarks.task_work import batch_of
from benchmarks.turns import serve
from gpt2_jax.config import from_json, replace
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.evaluate.translate import Translator
from gpt2_jax.model.beam import BeamParams
from gpt2_jax.train.batch_shapes import BatchShapes, batch_key
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.distributed.mesh import configure_devices
from gpt2_jax.train.malloc import keep_freed_memory
from gpt2_jax.train.pretrained import initial_state, open_source
from gpt2_jax.train.storage.open_run import open_run

Turn = Callable[[], object]


def steps(folder: Path, layout: str, dtype: str) -> Turn:
    """Returns a function that takes a train step on each batch of a layout; returns the last loss.

    Args:
      dtype: what the inputs of matrix products are rounded to.
    """
    batches = [batch_of(arrays) for arrays in load_arrays(folder / f"{layout}.npz")]
    changes = {"model.matmul_dtype": dtype, "train.batch_size": len(batches[0].weights)}
    config = replace(from_json(folder / "config.json"), changes)
    configure_devices(config.train, config.mesh)
    keep_freed_memory(config.model, config.data, config.train, config.mesh)
    empty = {batch_key(b): jax.tree.map(lambda x: x[:0], b) for b in batches}
    program = compile_step(config, batches=BatchShapes(list(empty.values()), 1))
    put = [program.put(batch) for batch in batches]
    if (folder / "run").exists():
        labels = json.loads((folder / "facts.json").read_text("utf-8"))["labels"]
        state = initial_state(config, program, labels, open_source(str(folder / "run")))
    else:
        state = program.start(batches[0])

    def turn() -> float:
        nonlocal state
        for batch in put:
            state, metrics = program.step(state, batch)
            metrics["loss"].block_until_ready()  # more than one step in flight can deadlock
        return float(metrics["loss"])

    return turn


def searches(folder: Path) -> Turn:
    """Returns a function that searches for the targets of all sources, and returns them."""
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    run = open_run(str(folder / "run"), devices=1)
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    lengths = run.config.data.seq_len, facts["length"]
    beam = BeamParams(facts["n_beams"], facts["alpha"])
    translator = Translator(run.model_def, run.params, run.step, tokenizer, lengths, beam)
    return lambda: translator.translate(facts["sources"])


def main() -> None:
    work, folder, *program = sys.argv[1:]
    serve(searches(Path(folder)) if work == "beam" else steps(Path(folder), *program))


if __name__ == "__main__":
    main()
