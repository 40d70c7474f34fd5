"""What the tests of campaigns share: a model that trains in a second."""

import json

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
