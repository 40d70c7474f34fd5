"""Estimates a study's duration on this machine by timing a few steps of one variant."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

import jax

from gpt2_jax.ablation.study.labels import labels
from gpt2_jax.ablation.study.trials import Trial
from gpt2_jax.ablation.study.worker import Worker
from gpt2_jax.ablation.vectorized import program_key
from gpt2_jax.errors import counted
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.compiled_step import compile_step, memory_errors
from gpt2_jax.train.evaluation import choose_windows
from gpt2_jax.train.loop import batch_shapes

FORWARD = 1 / 3  # fraction of a training step's FLOPs per token
SAVED = "/jax/compilation_cache/compile_time_saved_sec"


def expected_time(worker: Worker, examples: Mapping[int, Trial], left: Mapping[int, int]) -> str:
    """Returns the remaining time, including compilation, and what it was estimated from.

    Args:
      examples: one trial per variant.
      left: number of trials left to train per variant.
    """
    open_ = [i for i in examples if left[i]]
    configs = {i: worker.config(examples[i]) for i in open_}
    i = next((i for i in open_ if worker.width(configs[i]) > 1), open_[0])
    compiling, per_step = _measure(worker, examples[i])
    n_programs = len({program_key(configs[j]) for j in open_})
    training = sum(
        left[j] * per_step * configs[i].train.steps * _cost(worker, examples[j], examples[i])
        for j in open_
    )
    name = labels(worker.study)[i]
    return (
        f"{_shown(training + n_programs * compiling)} on this machine alone: {_shown(training)} of "
        f"training and evaluation, {_shown(n_programs * compiling)} to compile "
        f"{counted(n_programs, 'variant')} (estimated from {name}, which took {compiling:.0f} s to "
        f"compile and {per_step * 1e3:.1f} ms per step; others by their FLOPs)"
    )


def _shown(seconds: float) -> str:
    """Formats a duration as in `1:02:00`, rounded to minutes from ten minutes on."""
    whole = round(seconds / 60) * 60 if seconds >= 600 else round(seconds)
    return str(timedelta(seconds=whole))


class CompileTimer:
    """Measures compile time as if jax's disk cache were empty, as it is for the other variants."""

    def __init__(self) -> None:
        self._saved = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._started = time.monotonic()

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event == SAVED:
            self._saved += max(0.0, duration_secs)

    def seconds(self) -> float:
        """Returns the time since creation, plus the time that the cache saved."""
        return time.monotonic() - self._started + self._saved


def _measure(worker: Worker, trial: Trial) -> tuple[float, float]:
    """Returns the seconds to compile a trial's programs, and the seconds per step of one trial."""
    config = worker.config(trial)
    with memory_errors():
        timer = CompileTimer()
        if (width := worker.width(config)) > 1:
            programs = worker.programs(config)
            programs.compile_all()
            compiling = timer.seconds()
            return compiling, programs.seconds_per_step() / width
        corpus = worker.corpus(config)
        sampler = corpus.sampler(config.data.seq_len, config.train.batch_size, config.seed)
        program = compile_step(config, batches=batch_shapes(config, corpus, sampler))
        compiling = timer.seconds()
        return compiling, program.trial_seconds(sampler.batch(0, program.rows))


def _cost(worker: Worker, trial: Trial, measured: Trial) -> float:
    """Returns a trial's cost, including evaluations, relative to the measured trial's training."""
    configs = [worker.config(trial), worker.config(measured)]
    heads = [head_of(c.task, c.head) for c in configs]
    costs = [
        define_model(c.model, c.placement, head=head).flops_per_token(c.data.seq_len)
        for c, head in zip(configs, heads, strict=True)
    ]
    return (
        costs[0] * _equivalent_tokens(worker, trial) / (costs[1] * worker.total_tokens(configs[1]))
    )


def _equivalent_tokens(worker: Worker, trial: Trial) -> float:
    """Returns the number of training tokens that cost as much as a trial with its evaluations."""
    config = worker.config(trial)
    train = config.train
    n_val = worker.corpus(config).n_tokens("val")
    windows = choose_windows(n_val, config.data.seq_len, train.eval_tokens)
    evaluations = 1 + -(-train.steps // train.eval_every)
    evaluated = evaluations * sum(length for _, length, _ in windows)
    return worker.total_tokens(config) + evaluated * FORWARD
