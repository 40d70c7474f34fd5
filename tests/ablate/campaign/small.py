"""What the tests of campaigns share: a model that trains in a second."""

import json

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign import Campaign, Search, grid
from gpt2_jax.ablate.campaign.definition import Definition, write
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.track.display import Display
from gpt2_jax.train.signals import StopSignal

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


P, LR = "model.placement", "optimizer.peak_lr"
CAMPAIGN = Campaign(
    grid({P: ("pre_ln", "post_ln")}),
    {P: "pre_ln"},
    seeds=(1, 2, 3),
    search=Search(2.0**-7, n=3, seeds=(0,), contenders=1),
    at_once=2,
)


def base(text, **changes):
    config = configs.default()
    for section, fields in BASE.items():
        config[section].update(fields)
    config.data.source = str(text)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def conduct(workdir, config, campaign=CAMPAIGN):
    """Carries a campaign out in this process."""
    write(workdir, Definition("a.py", config, config, campaign))
    worker = Worker(config, campaign, workdir)
    worker.check()
    with StopSignal() as stop:
        code = worker.work(Display(), stop)
    return worker, code


def results(workdir):
    return json.loads((workdir / "results.json").read_text())
