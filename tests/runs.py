"""Training runs of the `tiny` model on a text file."""

import dataclasses
from contextlib import contextmanager

import jax
import pytest

from gpt2_jax import config as configs
from gpt2_jax.config import replace
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from tests import tools


def config(text_file, **changes):
    """Returns a config of 20 steps on two devices."""
    made = tools.tiny(
        **{
            "model.vocab_size": None,
            "data.source": str(text_file),
            "train.log_every": 5,
            "train.eval_every": 10,
            "train.checkpoint_every": 20,
            "train.eval_tokens": 192,
            "track.wandb.mode": "disabled",
            "mesh.data": 2,
            **changes,
        }
    )
    return replace(made, {"model.vocab_size": 257})


def begin(text_file, source, **changes):
    """Returns a config without model fields of 10 steps from the weights of a run."""
    fields = {"train__init_from": str(source), "train__steps": 10, "train__sample_tokens": 20}
    made = config(text_file, **(fields | changes))
    return dataclasses.replace(made, model=configs.Config().model)


def losses(workdir):
    """Returns the validation losses of a run by step."""
    rows = read_rows(workdir / "metrics.jsonl")
    return {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}


# Fields that a program does not depend on.
UNSEEN = (
    "data.source",
    "data.val_source",
    "eval.generate_every",
    *(f"train.{name}_every" for name in ("log", "eval", "checkpoint")),
    *(f"train.{name}" for name in ("keep_checkpoints", "eval_tokens", "sample_tokens")),
    *(f"train.{name}" for name in ("patience", "init_from")),
)


def program_key(config, batches, others):
    """Returns what distinguishes the programs of runs; the arguments are those of compile_step."""
    fields = {n: v for n, v in configs.flatten(config).items() if n not in UNSEEN}
    if config.optimizer.schedule == "constant" and not config.optimizer.warmup_fraction:
        del fields["train.steps"]
    shapes = [x.shape for x in jax.tree.leaves((batches.train, batches.evaluation))]
    return repr((sorted(fields.items()), shapes, batches.tokens_per_step, others))


@contextmanager
def compiling_once():
    """Compiles one program for all runs in this process with the same `program_key`."""
    programs, real = {}, loop.compile_step

    def compile_once(config, batches, others=False, teacher=None):
        key = program_key(config, batches, others)
        if teacher is not None or key not in programs:
            programs[key] = real(config, batches=batches, others=others, teacher=teacher)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_step", compile_once)
        yield
