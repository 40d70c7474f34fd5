"""How long a campaign takes on this machine, from one variant tried on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax.ablate.campaign.design import count
from gpt2_jax.ablate.campaign.labels import labels
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.ablate.population import program_key
from gpt2_jax.model.structure import structure
from gpt2_jax.train.evaluation import choose_windows
from gpt2_jax.train.program import compile_program, memory_errors
from gpt2_jax.train.report import total_tokens

FORWARD = 1 / 3  # of a training step's FLOPs per token
SAVED = "/jax/compilation_cache/compile_time_saved_sec"


def expected(worker: Worker, firsts: Mapping[int, ConfigDict], left: Mapping[int, int]) -> str:
    """Returns the time that is left, compilation included, and what it was estimated from.

    Args:
      firsts: the config of a cell of each variant. left: cells of each that are still to train.
    """
    open_ = [i for i in firsts if left[i]]
    i = next((i for i in open_ if worker.width(firsts[i]) > 1), open_[0])
    compiling, per_step = _trial(worker, firsts[i])
    n_programs = len({program_key(firsts[j]) for j in open_})
    training = sum(
        left[j] * per_step * firsts[i].train.steps * _size(worker, firsts[j], firsts[i])
        for j in open_
    )
    name = labels(worker.campaign)[i]
    return (
        f"{_shown(training + n_programs * compiling)} on this machine alone: {_shown(training)} of "
        f"training and evaluation, {_shown(n_programs * compiling)} to compile "
        f"{count(n_programs, 'variant')} (estimated from {name}, which took {compiling:.0f} s to "
        f"compile and {per_step * 1e3:.1f} ms per step; others by their FLOPs)"
    )


def _shown(seconds: float) -> str:
    """Returns `1:02:00`, in whole minutes from ten minutes on: no estimate is better than that."""
    whole = round(seconds / 60) * 60 if seconds >= 600 else round(seconds)
    return str(timedelta(seconds=whole))


class Stopwatch:
    """Measures compilation as if jax's cache on disk were empty: other variants are not in it."""

    def __init__(self) -> None:
        self._saved = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        self._started = time.monotonic()

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event == SAVED:
            self._saved += max(0.0, duration_secs)

    def seconds(self) -> float:
        """Returns the time since it was made, and what the cache saved of it."""
        return time.monotonic() - self._started + self._saved


def _trial(worker: Worker, config: ConfigDict) -> tuple[float, float]:
    """Returns the seconds to compile a cell's programs, and those of one of its steps."""
    with memory_errors():
        watch = Stopwatch()
        if (width := worker.width(config)) > 1:
            lanes = worker.lanes(config)
            lanes.compile_all()
            compiling = watch.seconds()
            return compiling, lanes.trial_seconds() / width
        program = compile_program(config)
        compiling = watch.seconds()
        batch = np.zeros((config.train.batch_size, config.data.seq_len + 1), np.int32)
        return compiling, program.trial_seconds(batch)


def _size(worker: Worker, config: ConfigDict, tried: ConfigDict) -> float:
    """Returns how much longer a cell takes, its evaluations included, than another's training."""
    per_token = [structure(c.model).flops_per_token(c.data.seq_len) for c in (config, tried)]
    return per_token[0] * _tokens_equal(worker, config) / (per_token[1] * total_tokens(tried))


def _tokens_equal(worker: Worker, config: ConfigDict) -> float:
    """Returns the tokens whose training would take as long as a whole cell with its evaluations."""
    train = config.train
    n_val = len(worker.corpus(config).val)
    windows = choose_windows(n_val, config.data.seq_len, train.eval_tokens)
    evaluations = 1 + -(-train.steps // train.eval_every)
    evaluated = evaluations * sum(length for _, length, _ in windows)
    return total_tokens(config) + evaluated * FORWARD
