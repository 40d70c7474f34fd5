"""A trial batch: trials trained together, each in its own ordinary run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gpt2_jax import config as configs
from gpt2_jax.ablation.study.definition import describe_changes
from gpt2_jax.ablation.study.trials import MOVABLE, RESULT_NEUTRAL
from gpt2_jax.ablation.vectorized import (
    STEPS_PER_DISPATCH,
    VectorizedPrograms,
    VectorizedTrainer,
)
from gpt2_jax.config import Config
from gpt2_jax.data.dataset import Dataset
from gpt2_jax.data.run_data import Batches
from gpt2_jax.data.shards import Tokens
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_STOPPED, Diverged, UserError
from gpt2_jax.track.metrics import Row
from gpt2_jax.train import report
from gpt2_jax.train.distributed.signals import StopSignal
from gpt2_jax.train.evaluation import (
    DatasetScore,
    Score,
    Window,
    choose_windows,
    evaluation_batches,
    share_of,
)
from gpt2_jax.train.run_logger import RunLogger
from gpt2_jax.train.state import State
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.train.storage.verify import find_resume_point, is_usable, open_checkpoints


@dataclass
class OpenTrial:
    """A trial whose directory is locked by this process.

    Attributes:
      config: resolved config.
      is_leased: called before saving; false once another worker has taken over the trial.
      newest: step of the newest usable checkpoint, None if there is none.
      diverged: why it diverged, if it has.
      taken_over: whether another worker has taken over the trial.
    """

    name: str
    config: Config
    directory: RunDirectory
    is_leased: Callable[[], bool]
    sampler: Batches
    checkpoints: Checkpoints
    newest: int | None
    logger: RunLogger = field(init=False)
    diverged: str | None = None
    taken_over: bool = False

    @property
    def is_active(self) -> bool:
        """Whether its metrics are still being written."""
        return self.diverged is None and not self.taken_over

    def close(self, code: int, say: Callable[[str], None]) -> None:
        """Closes its logger, unlocks its directory, and reports any problem with wandb."""
        with ExitStack() as last:
            last.callback(self.directory.unlock)
            last.callback(self.logger.close, code)
        if self.logger.wandb.problem is not None:
            say(f"{self.name}: {self.logger.wandb.problem}")


def open_trial(
    name: str,
    config: Config,
    path: str,
    corpus: Dataset,
    tokenizer: Tokenizer,
    is_leased: Callable[[], bool],
) -> OpenTrial:
    """Locks a trial's directory and finds its newest checkpoint.

    Raises:
      UserError: if the directory belongs to another run, or another process is training in it.
    """
    directory = RunDirectory(path)
    directory.lock()
    try:
        check_trial(directory, config)
        directory.check_data(corpus, tokenizer, f"data.source={config.data.source}")
        resume = find_resume_point(directory)
        directory.claim(config, corpus, tokenizer)
        checkpoints = open_checkpoints(directory, max(2, config.train.keep_checkpoints), resume)
        batch, length = config.train.batch_size, config.data.seq_len
        sampler = corpus.sampler(length, batch, config.seed)
    except BaseException:
        directory.unlock()
        raise
    return OpenTrial(name, config, directory, is_leased, sampler, checkpoints, resume.step)


def check_trial(directory: RunDirectory, config: Config) -> None:
    """Checks that a trial was begun with this config; unlike a run, it cannot be extended.

    Raises:
      UserError: naming the fields that differ.
    """
    if not (directory.config_path.exists() and (directory.is_started() or directory.has_results())):
        return
    # A recorded hash identifies the text, wherever it is; `check_data` compares it.
    movable = MOVABLE if "corpus" in directory.read_info() else ()
    begun = directory.comparable_config(config)
    if changed := configs.difference(begun, config, (*RESULT_NEUTRAL, *movable)):
        raise UserError(f"{directory.path} {describe_changes(changed)}")


class TrialBatch:
    """Trials that start together, at the newest step that all have a checkpoint of.

    Args:
      on_progress: called with the number of steps done since the last call, and the latest losses.
      say: called with lines to print.
    """

    def __init__(
        self,
        trials: Sequence[OpenTrial],
        programs: VectorizedPrograms,
        corpus: Dataset,
        on_progress: Callable[[int, str], None],
        say: Callable[[str], None],
    ) -> None:
        self.trials, self.corpus, self.on_progress, self.say = trials, corpus, on_progress, say
        self.config = trials[0].config
        self.first = _common_step(trials)
        for trial in trials:
            if self.first is None:
                trial.directory.record_first_checkpoint(None)
            # Before later rows are removed, so that a kill cannot leave a checkpoint without rows.
            trial.checkpoints.forget_after(self.first or 0)
        for trial in trials:
            self._open_logger(trial, programs)
        states = [self._state(trial, programs) for trial in trials]
        self.trainer = VectorizedTrainer([trial.config for trial in trials], programs, states)
        self.step = self.first or 0
        length, limit = self.config.data.seq_len, self.config.train.eval_tokens
        self.windows = [
            choose_windows(len(part.corpus.val), length, share_of(limit, part))
            for part in corpus.parts
        ]

    def _open_logger(self, trial: OpenTrial, programs: VectorizedPrograms) -> None:
        devices, model_def = [programs.device_kind], programs.model_def
        counts = report.counts(
            trial.config,
            model_def,
            devices,
            programs.attention,
            programs.peak_bytes,
            report.total_tokens(trial.config),
        )
        trial.directory.describe(trial.config, counts, self.first or 0)
        trial.logger = RunLogger(
            trial.config,
            trial.directory,
            model_def,
            devices,
            report.tokens_per_step(trial.config),
            trial.checkpoints,
            self.first,
            lambda line: None,  # wandb would print its own lines for each trial
        )

    def _state(self, trial: OpenTrial, programs: VectorizedPrograms) -> State:
        initial = programs.initial_state(trial.config)
        if self.first is None:
            return initial
        like = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), initial)
        return jax.device_get(trial.checkpoints.restore(self.first, like))

    def run(self, stop: StopSignal) -> None:
        """Trains until the end or a signal, and closes every trial."""
        code = EXIT_FINISHED
        try:
            self._train(stop)
            for trial in self.trials:
                if trial.is_active:
                    trial.checkpoints.wait()
                    stopped = bool(stop.requested) and self.step < self.config.train.steps
                    trial.logger.finish(self.step, None, stopped)
            if stop.requested:
                code = EXIT_STOPPED
        except BaseException:
            code = EXIT_DIVERGED
            raise
        finally:
            with ExitStack() as last:
                for trial in self.trials:
                    last.callback(trial.close, code if trial.is_active else EXIT_DIVERGED, self.say)

    def _train(self, stop: StopSignal) -> None:
        steps = self.config.train.steps
        if self.first is None:
            measured = zip(self.trials, self._scores(), self._diagnostics(), strict=True)
            for trial, scored, diagnostics in measured:
                trial.logger.begin(scored, diagnostics)
        tokens, n = self._tokens()
        while self.step < steps and not stop.requested:
            if not any(trial.is_active for trial in self.trials):
                return
            started = time.monotonic()
            metrics = self.trainer.advance(tokens, n)
            before, last_batches = self.step, tokens[:, n - 1]
            self.step += n
            tokens, n_next = self._tokens()  # while the devices are working
            jax.block_until_ready(metrics)
            speed = n * report.tokens_per_step(self.config) / (time.monotonic() - started)
            self._record(before, n, self.trainer.read(metrics), last_batches, speed)
            n = n_next
        if stop.requested and self.step < steps:
            self._save({trial.name: {} for trial in self.trials})

    def _tokens(self) -> tuple[np.ndarray, int]:
        """Returns the next batches (R, N, B, T+1), padded, and the number of steps to take."""
        logger, steps = self.trials[0].logger, self.config.train.steps
        n = 0
        while n < STEPS_PER_DISPATCH and self.step + n < steps:
            n += 1
            if logger.is_stop(self.step + n) or logger.has_diagnostics(self.step + n):
                break
        batches = [
            [t.sampler.batch(self.step + i).tokens_BT1 for i in range(n)] for t in self.trials
        ]
        shape = (self.config.train.batch_size, self.config.data.seq_len + 1)
        tokens = np.zeros((len(self.trials), STEPS_PER_DISPATCH, *shape), np.int32)
        if n:
            tokens[:, :n] = batches
        return tokens, n

    def _record(
        self, before: int, n: int, read: list[Any], last_batches: np.ndarray, speed: float
    ) -> None:
        """Writes the rows of n steps; evaluates and saves after the last one if due."""
        logger = self.trials[0].logger
        none: list[Any] = [{} for _ in self.trials]
        diagnostics = self._diagnostics(last_batches) if logger.has_diagnostics(self.step) else none
        scores = self._scores() if logger.is_evaluated(self.step) else none
        to_save: dict[str, dict[str, float]] = {}
        for i, trial in enumerate(self.trials):
            for step in range(before + 1, self.step + 1):
                if not trial.is_active or not logger.is_due(step):
                    continue
                extra, scored = (diagnostics[i], scores[i]) if step == self.step else ({}, {})
                values = {name: x[step - before - 1] for name, x in read[i].items()}
                row = trial.logger.row(step, values | extra, extra.keys(), speed)
                row |= scored
                self._write_row(trial, row)
            if trial.is_active and logger.is_stop(self.step) and trial.logger.is_kept(row):
                to_save[trial.name] = scores[i]
        self._save(to_save)
        losses = [f"{read[i]['loss'][n - 1]:.3f}" for i, t in enumerate(self.trials) if t.is_active]
        self.on_progress(n * len(self.trials), " ".join(losses))

    def _write_row(self, trial: OpenTrial, row: Row) -> None:
        try:
            trial.logger.write(row)
        except Diverged as error:
            trial.diverged = error.reason
            trial.logger.wandb.summarize({"diverged_at": row["step"]})

    def _save(self, scored: dict[str, dict[str, float]]) -> None:
        """Starts saving each of these trials, unless another worker has taken it over."""
        for i, trial in enumerate(self.trials):
            if trial.name not in scored or not trial.is_active:
                continue
            if trial.logger.saved_step == self.step:
                continue
            if not trial.is_leased():
                trial.taken_over = True
                self.say(f"{trial.name}: another worker has taken it over")
                continue
            trial.logger.save(self.step, self.trainer.state(i), scored[trial.name])

    def _scores(self) -> list[dict[str, float]]:
        of_parts = [
            self._scores_of(part.corpus.val, windows)
            for part, windows in zip(self.corpus.parts, self.windows, strict=True)
        ]
        of_trials = zip(*of_parts, strict=True)
        return [DatasetScore(self.corpus, scores).metrics() for scores in of_trials]

    def _scores_of(self, tokens: Tokens, windows: list[Window]) -> list[Score]:
        """Returns each trial's score of one validation text."""
        rows = self.config.train.batch_size // self.config.train.accumulation
        batches = evaluation_batches(tokens, windows, rows, self.config.data.seq_len)
        sums = [self.trainer.eval_sums(self.step, batch) for batch in batches]
        total_R2 = np.asarray(jax.device_get(sums), np.float64).sum(0)
        n_scored = sum(scored for _, _, scored in windows)
        return [
            Score(nats, round(hits), n_scored)
            for nats, hits in total_R2[: len(self.trials)].tolist()
        ]

    def _diagnostics(self, batches: np.ndarray | None = None) -> list[Any]:
        """Returns each trial's diagnostics on batches (R, B, T+1), empty if they are disabled."""
        if self.config.track.diagnostics_every is None:
            return [{} for _ in self.trials]
        if batches is None:
            batches = np.stack([trial.sampler.batch(0).tokens_BT1 for trial in self.trials])
        return self.trainer.diagnostics(self.step, batches)


def _common_step(trials: Sequence[OpenTrial]) -> int | None:
    """Returns the newest step that every trial has a checkpoint of, None if there is none."""
    if any(trial.newest is None for trial in trials):
        return None
    shared = set.intersection(*(set(trial.checkpoints.steps()) for trial in trials))
    for step in sorted(shared, reverse=True):
        if all(t.newest == step or is_usable(t.directory, step) for t in trials):
            return step
    return None
