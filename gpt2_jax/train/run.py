"""A run in progress: the training loop with its evaluations, checkpoints and stops."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from gpt2_jax.config import Config
from gpt2_jax.data.batch import Batch
from gpt2_jax.data.dataset import Dataset
from gpt2_jax.data.run_data import Batches, RunData
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_STOPPED, Unavailable
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.tasks.scores.result import Scores
from gpt2_jax.tasks.task import TASKS
from gpt2_jax.track.console import status
from gpt2_jax.track.metrics import Row
from gpt2_jax.track.progress import Progress
from gpt2_jax.track.wandb_log import Sample
from gpt2_jax.train import report
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.diagnostics import DiagnosticsFn, compile_diagnostics
from gpt2_jax.train.distributed.processes import ALONE, Processes
from gpt2_jax.train.distributed.signals import Stopped, StopSignal
from gpt2_jax.train.evaluation import DatasetScore
from gpt2_jax.train.example_evaluation import ExampleEvaluator, ExampleScore, score_examples
from gpt2_jax.train.prefetch import Prefetch
from gpt2_jax.train.profiling.profile import Profile
from gpt2_jax.train.run_logger import RunLogger
from gpt2_jax.train.state import State
from gpt2_jax.train.step import Metrics
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.rundir import RunDirectory


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run in progress, and its data.

    Attributes:
      params: on the run's mesh. step: steps they were trained for.
      score: of the last evaluation, with the predictions of the validation examples; None before.
    """

    config: Config
    model_def: ModelDef
    params: Any
    step: int
    tokenizer: Tokenizer
    data: RunData
    score: DatasetScore | ExampleScore | None


@dataclass(frozen=True)
class TextFns:
    """Functions that generate text, which are in packages above this one.

    Attributes:
      sample: returns what to show at the end of a run, None if there is nothing.
      scores: returns the scores of text generated for the validation examples of a task, None if
        the task does not generate text.
    """

    sample: Callable[[TrainedModel], Sample | None]
    scores: Callable[[TrainedModel], Scores | None]


@dataclass
class Run:
    """A run in progress.

    Attributes:
      step: number of steps dispatched.
      resumed_from: the step that the run continues after, None for a new run.
    """

    config: Config
    directory: RunDirectory
    corpus: RunData
    compiled: CompiledStep
    sampler: Batches
    checkpoints: Checkpoints
    state: State
    step: int
    resumed_from: int | None
    stop: StopSignal
    processes: Processes = ALONE
    stopped_by: str | None = None
    logger: RunLogger = field(init=False)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        train, compiled = self.config.train, self.compiled
        self.tokens_per_step = compiled.tokens_per_step
        self.diagnostics = self._compile_diagnostics()
        self.progress = Progress(train.steps, self.step, self.tokens_per_step)
        self.logger = RunLogger(
            self.config,
            self.directory,
            compiled.model_def,
            compiled.devices,
            self.tokens_per_step,
            self.checkpoints,
            self.resumed_from,
            self.progress.note,
            self.processes,
        )
        self.profile = Profile(
            self.config.track.profiled_steps,
            self.step,
            self.directory.profile_path,
            compiled.hlo,
            self.progress.note,
        )
        # A step's metrics and per-block diagnostics, still on the devices.
        self.pending: tuple[int, Metrics, Metrics] | None = None
        self.last_score: DatasetScore | ExampleScore | None = None
        self.clock = time.monotonic()  # when the last row was read, excluding pauses
        self.clock_step = self.step

    def _compile_diagnostics(self) -> DiagnosticsFn | None:
        if self.config.track.diagnostics_every is None:
            return None
        with self.stop.immediate(), status("compiling the diagnostics"):
            return compile_diagnostics(self.config.track, self.config.train, self.compiled)

    def train(self, tokenizer: Tokenizer, texts: TextFns | None) -> int:
        """Trains until the end or a signal, leaves a complete directory, and returns the exit code.

        Raises:
          Diverged: if too many consecutive steps had to be skipped.
        """
        self.tokenizer, self.texts = tokenizer, texts
        code, sample = EXIT_DIVERGED, None
        try:
            try:
                with jax.transfer_guard("disallow"):
                    self._train()
                self._finish_saving()
                if self.stopped_by is None:
                    with self.stop.immediate():
                        sample = self._sample()
            except Stopped as signal:
                self.stopped_by = str(signal)
            self._finish_saving()
            self._finish(sample)
            code = EXIT_STOPPED if self.stopped_by else EXIT_FINISHED
        finally:
            self.profile.close()
            self.logger.close(code)
        return code

    def _finish_saving(self) -> None:
        self.logger.finish_saving()
        self.progress.close()

    def _train(self) -> None:
        logger = self.logger
        if logger.saved_step is None:
            self._begin()
        elif logger.unfinished is not None:
            self._complete_row(logger.unfinished)
        last = self.step if logger.is_stale() else self.config.train.steps
        if last > self.step:  # the run was extended, so its sample is outdated
            self.directory.write_sample(None)
        self.progress.begin()
        stopped = lambda: self.stop.requested
        unavailable: str | None = None
        with Prefetch(self._batch, self.step, last, stopped) as batches:
            try:
                self._train_on(batches)
            except Unavailable as error:
                unavailable = f"a failed download ({error})"
            if self.profile.is_active:  # the run stops early
                with self._paused():
                    self.profile.end(self.step)
        self._write_pending()
        reason = self.stop.requested or unavailable
        if reason and self.step < self.config.train.steps and not logger.is_stale():
            self.stopped_by = reason
            if logger.saved_step != self.step:
                logger.save(self.step, self.state, {})
        self.progress.advance_to(self.step)

    def _batch(self, step: int) -> Batch:
        return self.compiled.put(self.sampler.batch(step, self.compiled.rows))

    def _train_on(self, batches: Prefetch) -> None:
        before: jax.Array | None = None
        for batch in batches:
            if self.stop.poll():
                return
            self._profile()
            with jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1):
                self.state, metrics = self.compiled.step(self.state, batch)
            self.step += 1
            # Wait for the previous step, so that at most one step runs and one is queued. (With
            # dozens of programs in flight, collectives on a CPU deadlock.)
            if before is not None:
                before.block_until_ready()
                self.progress.advance_to(self.step - 1)
            before = metrics["loss"]
            self._profile()
            self._write_pending()
            if self.logger.is_due(self.step):
                self.pending = (self.step, metrics, self._diagnose(batch))
            if self.logger.is_stop(self.step):
                with self._paused():
                    self._evaluate_and_save()
                if self.logger.is_stale():
                    return

    def _profile(self) -> None:
        """Starts or ends the trace of `track.profile` if it is due."""
        if self.profile.is_due(self.step):
            with self._paused():
                if self.profile.is_active:
                    self.profile.end(self.step)
                else:
                    self.profile.begin()

    def _begin(self) -> None:
        with self._paused():
            with status("validating at step 0"):
                score = self._score()
            self._report(score)
            diagnostics = self._diagnose(self._batch(0))
            scored = score.metrics()
            self.logger.begin(scored, jax.device_get(diagnostics) if diagnostics else {})

    def _complete_row(self, row: Row) -> None:
        """Repeats the evaluation of the last row, which a signal interrupted."""
        with self._paused():
            with status(f"validating at step {self.step}"):
                row = self._evaluated(row)
            self.logger.complete(row)

    def _diagnose(self, batch: Batch) -> Metrics:
        """Returns per-block diagnostics, on the devices; empty if none are due."""
        if self.diagnostics is None or not self.logger.has_diagnostics(self.step):
            return {}
        return self.diagnostics(self.state.all_params, self.state.step, batch)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Excludes the time spent in the context from the measured speed."""
        jax.block_until_ready(self.state)
        before, profiling = time.monotonic(), self.profile.is_active
        yield
        seconds = time.monotonic() - before
        self.clock += seconds
        self.progress.pause(seconds)
        if profiling:
            self.profile.pause(seconds)

    def _evaluate_and_save(self) -> None:
        row = self._row()
        if self.logger.is_evaluated(self.step):
            try:
                row = self._evaluated(row)
            except Stopped:
                # The next start repeats the evaluation, from this state and the rest of the row.
                self.logger.keep_unfinished(row)
                self.logger.save(self.step, self.state, {})
                raise
        self.logger.write(row)
        if "val/loss" in row:
            last = self.step == self.config.train.steps or self.logger.is_stale()
            self.logger.draw(last)
        if self.logger.is_kept(row):
            self.logger.save(self.step, self.state, row)

    def _evaluated(self, row: Row) -> Row:
        """Returns a row with the validation scores of the current state.

        Raises:
          Stopped: if a signal arrives before they are complete.
        """
        score = self._score()
        row = row | score.metrics()
        row |= self._generated_scores(self.logger.is_last(row))
        self._report(score)
        return row

    def _write_pending(self) -> None:
        if self.pending is not None:
            self.logger.write(self._row())

    def _row(self) -> Row:
        """Reads the pending step's metrics from the devices: the only read in the loop."""
        assert self.pending is not None
        (step, metrics, diagnostics), self.pending = self.pending, None
        read = jax.device_get(metrics | diagnostics)
        now = time.monotonic()
        speed = (step - self.clock_step) * self.tokens_per_step / (now - self.clock)
        self.clock, self.clock_step = now, step
        row = self.logger.row(step, read, diagnostics.keys(), speed)
        self.progress.show(loss=f"{row['train/loss']:.4f}")
        return row

    def _score(self) -> DatasetScore | ExampleScore:
        """Returns the validation score of the current state.

        Raises:
          Stopped: if a signal arrives before it is complete.
        """

        def between_batches(done: int, total: int) -> None:
            self.stop.check()
            self.progress.validating(self.step, done, total)

        self.stop.check()  # before the evaluation is compiled
        evaluator, corpus = self.compiled.evaluator, self.corpus
        of_step = self.state.all_params, self.step
        if isinstance(evaluator, ExampleEvaluator):
            assert isinstance(corpus, ExampleData)
            outside = self.config.eval.out_of_scope
            score = score_examples(evaluator, *of_step, corpus, outside, between_batches)
            self.last_score = score
            return score
        assert isinstance(corpus, Dataset)
        limit = self.config.train.eval_tokens
        return evaluator.score_dataset(*of_step, corpus, limit, between_batches=between_batches)

    def _report(self, score: DatasetScore | ExampleScore) -> None:
        scores = TASKS[self.config.task.name].describe(score.metrics(), self.config.train.best_by)
        self.progress.show(val=f"{score.loss:.4f}")
        text = f"validation loss {score.loss:.4f}" + (f", {scores}" if scores else "")
        self.progress.note(f"step {self.step}: {text}")

    def _sample(self) -> Sample | None:
        n = self.config.train.sample_tokens
        if self.texts is None or n == 0:
            return None
        if self.last_score is None and isinstance(self.corpus, ExampleData):
            self._score()  # the last evaluation was by an earlier process
        of_text = f"compiling the sampler and generating {n} tokens"
        with status(of_text if self.config.task.name == "lm" else "applying the model to examples"):
            sample = self.texts.sample(self._model())
        self.directory.write_sample(None if sample is None else sample.text)
        return sample

    def _generated_scores(self, is_last: bool) -> dict[str, float]:
        """Returns the scores of generated text, if they are due at this step."""
        every = self.config.eval.generate_every
        is_due = is_last or (every is not None and self.step % every == 0)
        if self.texts is None or not is_due:
            return {}
        self.stop.check()
        with self.stop.immediate(), jax.transfer_guard("allow"):
            scores = self.texts.scores(self._model())
        if scores is None:
            return {}
        names = dict.fromkeys([next(iter(scores.values)), self.config.train.best_by or ""])
        shown = {name: scores.values[name] for name in names if name in scores.values}
        listed = (f"{name} {x.estimate:.{scores.decimals}f}" for name, x in shown.items())
        self.progress.note(f"step {self.step}: {', '.join(listed)}")
        return scores.metrics("val/")

    def _model(self) -> TrainedModel:
        model_def, params = self.compiled.model_def.merged(self.state.all_params)
        of_data = self.tokenizer, self.corpus, self.last_score
        return TrainedModel(self.config, model_def, params, self.step, *of_data)

    def _finish(self, sample: Sample | None) -> None:
        logger = self.logger
        logger.finish(self.step, sample, self.stopped_by is not None)
        if line := logger.record_saves():
            print(line)
        report.print_end(self.directory, TASKS[self.config.task.name])
        if logger.is_stale() and self.step < self.config.train.steps:
            print(f"stopped early after step {self.step}: {self._best()}")
        if self.stopped_by:
            where = f"after step {self.step}, saved" if self.step else "before the first step"
            print(f"stopped by {self.stopped_by} {where}; {how_to_continue()}")

    def _best(self) -> str:
        found = report.best_of(self.logger.best(), self.config)
        assert found is not None
        return f"step {found['step']} was the best, with val/{found['by']} {found['value']:.4f}"


def how_to_continue() -> str:
    """Returns the command that continues this run, for messages."""
    return f"to continue: {shlex.join([sys.executable, *sys.argv])}"
