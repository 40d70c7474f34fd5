"""A run in progress: feed the step, evaluate, write down, save, and stop when asked."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_STOPPED
from gpt2_jax.files import disk_errors, write_atomic
from gpt2_jax.model.structure import Structure
from gpt2_jax.track.bar import Progress
from gpt2_jax.track.metrics import Row
from gpt2_jax.track.screen import status
from gpt2_jax.train import report
from gpt2_jax.train.checkpoint import Checkpoints
from gpt2_jax.train.evaluation import Evaluator, Score
from gpt2_jax.train.feed import Prefetch
from gpt2_jax.train.probe import Probe, compile_probe
from gpt2_jax.train.program import Program
from gpt2_jax.train.record import Record
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.signals import Stopped, StopSignal
from gpt2_jax.train.state import State
from gpt2_jax.train.step import Metrics

# (config, model structure, parameters, tokenizer) -> text
Sample = Callable[[ConfigDict, Structure, Any, Tokenizer], str]


@dataclass
class Run:
    """A run in progress. `step` counts the steps dispatched."""

    config: ConfigDict
    directory: RunDirectory
    corpus: Corpus
    program: Program
    sampler: Sampler
    checkpoints: Checkpoints
    state: State
    step: int
    found: int | None
    stop: StopSignal
    stopped_by: str | None = None
    record: Record = field(init=False)
    progress: Progress = field(init=False)
    evaluator: Evaluator = field(init=False)

    def __post_init__(self) -> None:
        train, program = self.config.train, self.program
        self.tokens_per_step = report.tokens_per_step(self.config)
        rows = train.batch_size // train.accumulation
        self.evaluator = Evaluator(program.structure, program.mesh, self.config.data.seq_len, rows)
        self.probe = self._compile_probe()
        self.progress = Progress(train.steps, self.step, self.tokens_per_step)
        self.record = Record(
            self.config,
            self.directory,
            program.structure,
            program.devices,
            self.checkpoints,
            self.found,
            self.progress.note,
        )
        # Metrics of a step, and figures by depth, on the devices and not read yet.
        self.pending: tuple[int, Metrics, Metrics] | None = None
        self.clock = time.monotonic()  # when the last row was read, less pauses
        self.clock_step = self.step

    def _compile_probe(self) -> Probe | None:
        if self.config.track.diagnostics_every is None:
            return None
        with self.stop.immediate(), status("compiling the figures by depth"):
            return compile_probe(self.config, self.program)

    def go(self, tokenizer: Tokenizer, sample: Sample | None) -> int:
        """Trains to the end or to a signal, and leaves the directory complete."""
        code, text = EXIT_DIVERGED, None
        try:
            try:
                with jax.transfer_guard("disallow"):
                    self._train()
                self._settle()
                if self.stopped_by is None:
                    with self.stop.immediate():
                        text = self._sample(tokenizer, sample)
            except Stopped as signal:
                self.stopped_by = str(signal)
            self._settle()
            self._finish(text)
            code = EXIT_STOPPED if self.stopped_by else EXIT_FINISHED
        finally:
            self.record.close(code)
        return code

    def _settle(self) -> None:
        self.checkpoints.wait()
        self.progress.close()

    def _train(self) -> None:
        steps, record = self.config.train.steps, self.record
        if record.saved_step is None:
            self._begin()
        elif record.unfinished is not None:
            self._complete_row(record.unfinished)
        until = self.step if record.is_stale() else steps
        if until > self.step:  # a longer run: the sample is that of its former end
            self.directory.sample_path.unlink(missing_ok=True)
        self.progress.start()
        with Prefetch(self.sampler.batch, self.program.put, self.step, until) as batches:
            before: jax.Array | None = None
            for batch in batches:
                if self.stop.requested:
                    break
                self.state, metrics = self.program.step(self.state, batch)
                self.step += 1
                # Wait for the step before: one runs, one is queued, the host is never further.
                # (A CPU's collectives lock up for good with dozens of programs in flight.)
                if before is not None:
                    before.block_until_ready()
                    self.progress.advance(self.step - 1)
                before = metrics["loss"]
                self._write_pending()
                if record.is_due(self.step):
                    self.pending = (self.step, metrics, self._figures(batch))
                if record.is_stop(self.step):
                    with self._paused():
                        self._evaluate_and_save()
                    if record.is_stale():
                        break
        self._write_pending()
        if self.stop.requested and self.step < steps and not record.is_stale():
            self.stopped_by = self.stop.requested
            if record.saved_step != self.step:
                record.save(self.step, self.state, None)
        self.progress.advance(self.step)

    def _begin(self) -> None:
        """Writes the row of the state before the first step."""
        with self._paused():
            with status("compiling the evaluation and validating at step 0"):
                score = self._score()
            self._tell(score)
            figures = self._figures(self.program.put(self.sampler.batch(0)))
            scored = score.metrics(self.corpus.bytes_per_token("val"))
            self.record.begin(scored, jax.device_get(figures) if figures else {})

    def _complete_row(self, row: Row) -> None:
        """Makes the evaluation of the last row, which a signal had cut short."""
        with self._paused():
            with status(f"compiling the evaluation and validating at step {self.step}"):
                score = self._score()
            self._tell(score)
            self.record.complete(row | score.metrics(self.corpus.bytes_per_token("val")))

    def _figures(self, batch: jax.Array) -> Metrics:
        """Returns the figures by depth that are due, on the devices; none where none are."""
        if self.probe is None or not self.record.is_probed(self.step):
            return {}
        return self.probe(self.state.params, self.state.step, batch)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Leaves the time spent inside out of the speed."""
        jax.block_until_ready(self.state)
        before = time.monotonic()
        yield
        self.clock += time.monotonic() - before
        self.progress.pause(time.monotonic() - before)

    def _evaluate_and_save(self) -> None:
        row = self._row()
        if self.record.is_evaluated(self.step):
            try:
                score = self._score()
            except Stopped:
                # The next start makes the evaluation: it needs this state and the rest of the row.
                self.record.keep_unfinished(row)
                self.record.save(self.step, self.state, None)
                raise
            self._tell(score)
            row |= score.metrics(self.corpus.bytes_per_token("val"))
        self.record.write(row)
        if "val/loss" in row:
            last = self.step == self.config.train.steps or self.record.is_stale()
            self.record.draw(last)
        if self.record.is_kept(row):
            self.record.save(self.step, self.state, row.get("val/loss"))

    def _write_pending(self) -> None:
        if self.pending is not None:
            self.record.write(self._row())

    def _row(self) -> Row:
        """Reads the pending step's metrics from the devices: the only read in the loop."""
        assert self.pending is not None
        (step, metrics, figures), self.pending = self.pending, None
        read = jax.device_get(metrics | figures)
        now = time.monotonic()
        speed = (step - self.clock_step) * self.tokens_per_step / (now - self.clock)
        self.clock, self.clock_step = now, step
        row = self.record.row(step, read, figures.keys(), speed)
        self.progress.show(row["train/loss"])
        return row

    def _score(self) -> Score:
        """Returns the validation score of the present state.

        Raises:
          Stopped: if a signal comes before it is complete.
        """

        def between_batches(done: int, total: int) -> None:
            self.stop.check()
            self.progress.validating(self.step, done, total)

        self.stop.check()  # before the evaluation is compiled
        tokens, limit = self.corpus.val, self.config.train.eval_tokens
        return self.evaluator.score(
            self.state.params, self.step, tokens, limit, between_batches=between_batches
        )

    def _tell(self, score: Score) -> None:
        self.progress.note(f"step {self.step}: validation loss {score.loss:.4f}", score.loss)

    def _sample(self, tokenizer: Tokenizer, sample: Sample | None) -> str | None:
        n = self.config.train.sample_tokens
        if sample is None or n == 0:
            return None
        with status(f"compiling the sampler and writing {n} tokens"):
            text = sample(self.config, self.program.structure, self.state.params, tokenizer)
        with disk_errors("sample.txt"):
            write_atomic(self.directory.sample_path, text + "\n")
        return text

    def _finish(self, text: str | None) -> None:
        record = self.record
        record.finish(self.step, text, self.stopped_by is not None)
        report.print_end(self.directory)
        if record.is_stale() and self.step < self.config.train.steps:
            best = record.evaluations[-1 - record.since_best()]["step"]
            print(f"stopped early after step {self.step}: step {best} was the best")
        if self.stopped_by:
            where = f"after step {self.step}, saved" if self.step else "before the first step"
            print(f"stopped by {self.stopped_by} {where}; {how_to_continue()}")


def how_to_continue() -> str:
    """Returns the words that name the command that continues this run."""
    return f"to continue: {shlex.join([sys.executable, *sys.argv])}"
