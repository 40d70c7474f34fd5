"""Helpers for tests of studies: a model that trains in a second."""

import json

from gpt2_jax.ablation.study import Search, Study, grid
from gpt2_jax.ablation.study.definition import Definition, write
from gpt2_jax.ablation.study.worker import Worker
from gpt2_jax.config import Config, replace
from gpt2_jax.track.progress import StudyProgress
from gpt2_jax.train.distributed.signals import StopSignal

BASE = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "unroll": False},
    "data": {"seq_len": 16},
    "optimizer": {"warmup_steps": 4, "schedule": "linear"},
    "train": {
        "steps": 24, "batch_size": 4, "log_every": 4, "eval_every": 12, "eval_tokens": 512,
        "checkpoint_every": 8,
    },
    "track": {"diagnostics_every": 12},
}  # fmt: skip


def starts(path):
    return json.loads((path / "run.json").read_text())["starts"]


P, LR = "placement.preset", "optimizer.peak_lr"
STUDY = Study(
    grid({P: ("pre_ln", "post_ln")}),
    {P: "pre_ln"},
    seeds=(1, 2, 3),
    search=Search(2.0**-7, n=3, seeds=(0,), max_contenders=1),
    trials_per_batch=2,
)


def base(text, **changes):
    own = {f"{name}.{key}": value for name, fields in BASE.items() for key, value in fields.items()}
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return replace(Config(), own | {"data.source": str(text)} | given)


def run_study(workdir, config, study=STUDY):
    """Runs a study in this process."""
    write(workdir, Definition("a.py", config, config, study))
    worker = Worker(config, study, workdir)
    worker.check()
    with StopSignal() as stop:
        code = worker.work(StudyProgress(), stop)
    return worker, code


def results(workdir):
    return json.loads((workdir / "results.json").read_text())
