"""Pretrains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

from __future__ import annotations

import sys

from absl import flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError
from gpt2_jax.train.signals import StopSignal

_CONFIG = cli.define_config("config file; --config.section.field=value changes a field")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory, created if missing")


def main(argv: list[str]) -> None:
    """Starts or resumes a training run."""
    del argv
    if _CONFIG.value is None:
        raise UserError("pass --config, for example --config=configs/quickstart.py")
    if not _WORKDIR.value:
        raise UserError("pass --workdir, for example --workdir=runs/quickstart")
    config = cli.read_config(_CONFIG)
    with StopSignal() as stop:
        # Imported after the flags are validated: jax takes a second to load.
        from gpt2_jax.evaluate.text_generation import sample_text
        from gpt2_jax.train.loop import train

        sys.exit(train(config, _WORKDIR.value, sample_text, stop))
