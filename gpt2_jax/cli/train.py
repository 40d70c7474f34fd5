"""Pretrains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

from __future__ import annotations

import os
import sys

from absl import flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError
from gpt2_jax.train.distributed.launch import find_launch, indicates_several
from gpt2_jax.train.distributed.signals import StopSignal

_CONFIG = cli.define_config("config file; --config.section.field=value changes a field")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory, created if missing")
# Named as the arguments of `jax.distributed.initialize`.
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0 of a run of several processes; unset: detected",
)
_N_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "processes that train together; 1: this one alone; unset: detected",
    lower_bound=1,
)
_PROCESS = flags.DEFINE_integer(
    "process_id", None, "number of this process, from 0; unset: detected"
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout_seconds",
    100,
    "seconds without a heartbeat after which a process counts as lost and the others end",
    lower_bound=2,
)
_CONNECT = flags.DEFINE_integer(
    "initialization_timeout",
    300,
    "seconds that a process waits for the others at the start",
    lower_bound=1,
)


def main(argv: list[str]) -> None:
    """Starts or resumes a training run."""
    del argv
    if _CONFIG.value is None:
        raise UserError("pass --config, for example --config=configs/quickstart.py")
    if not _WORKDIR.value:
        raise UserError("pass --workdir, for example --workdir=runs/quickstart")
    config = cli.read_config(_CONFIG)
    if (_N_PROCESSES.value or 0) > 1 or indicates_several(os.environ):
        # Otherwise jaxlib reports a lost process in many lines. It reads this when it is imported.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with StopSignal() as stop:
        # Imported after the flags are validated: jax takes a second to load.
        from gpt2_jax.evaluate.run_texts import TEXTS
        from gpt2_jax.train.distributed.connection import connected
        from gpt2_jax.train.distributed.shared_stop import shared_by
        from gpt2_jax.train.loop import train

        launch = find_launch(_COORDINATOR.value, _N_PROCESSES.value, _PROCESS.value, os.environ)
        seconds = (_HEARTBEAT.value, _CONNECT.value)
        with connected(launch, *seconds, stop) as processes, shared_by(processes, stop) as shared:
            code = train(config, _WORKDIR.value, TEXTS, shared, processes)
    sys.exit(code)
