"""Writes a run's metrics, checkpoints and loss curve, and logs to wandb."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from gpt2_jax.config import Config
from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.errors import Diverged, counted
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.diagnostics import by_tower
from gpt2_jax.tasks.task import TASKS
from gpt2_jax.track.metrics import (
    MetricsFile,
    Row,
    UnwrittenMetrics,
    best_row,
    evaluations_since_best,
    read_rows,
)
from gpt2_jax.track.plot import LossCurve, Picture, UndrawnCurve
from gpt2_jax.track.throughput import mfu
from gpt2_jax.track.wandb_log import Sample, WandbLog
from gpt2_jax.train import report
from gpt2_jax.train.diagnostics import by_block
from gpt2_jax.train.distributed.processes import ALONE, Processes
from gpt2_jax.train.state import State
from gpt2_jax.train.step import BLOCK_GRAD_NORMS
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.rundir import RunDirectory

METRICS = ("loss", "grad_norm", "lr", "skipped")


def is_stale(config: Config, rows: list[Row]) -> bool:
    """Returns whether `train.patience` evaluations have not been better than one before them."""
    patience, best_by = config.train.patience, config.train.best_by or LOSS
    return patience is not None and evaluations_since_best(rows, best_by) >= patience


@dataclass
class RunLogger:
    """Writes the metrics, checkpoints and plots of a run in progress.

    Attributes:
      devices: the kind of each device. tokens_per_step: mean number, without padding.
      resumed_from: the step that the run continues after, None for a new run.
      say: called with each line that wandb reports.
      processes: those that train together. All have the same rows, and process 0 writes them.
      unfinished: the row of `resumed_from` if a signal interrupted its evaluation, else None.
      saved_step: step of the last checkpoint, None if there is none yet.
      evaluations: rows that have a validation loss.
    """

    config: Config
    directory: RunDirectory
    model_def: ModelDef
    devices: list[str]
    tokens_per_step: int
    checkpoints: Checkpoints
    resumed_from: int | None
    say: Callable[[str], None]
    processes: Processes = ALONE
    metrics: MetricsFile = field(init=False)
    wandb: WandbLog = field(init=False)
    unfinished: Row | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        first = -1 if self.resumed_from is None else self.resumed_from
        rows = self._open_metrics(first)
        self.checkpoints.before_commit = self.metrics.sync
        self.checkpoints.digest_rows = self.metrics.digest
        self._flops_per_token = self.model_def.flops_per_token(self.config.data.seq_len)
        self._seconds_step = rows[-1]["step"] if rows else 0
        self._seconds = (rows[-1].get("perf/seconds") or 0.0) if rows else 0.0
        self._max_consecutive_skipped = 0
        self._save_seconds: list[float] = []  # that each save of this process held up training
        self._unreported_save_seconds = 0.0
        is_main = self.processes.is_main
        path = self.directory.plot_path
        self._curve = LossCurve(path, self._picture) if is_main else UndrawnCurve()
        self.saved_step = self.resumed_from
        if rows and rows[-1]["step"] == self.resumed_from and self._lacks_evaluation(rows[-1]):
            self.unfinished = rows.pop()
        self.evaluations = [row for row in rows if "val/loss" in row]
        options = report.wandb_options(self.config, self.directory, is_main)
        described = report.wandb_config(self.config, self.directory, self.model_def)
        self.wandb = WandbLog(options, described, rows, self.say)

    def _open_metrics(self, last_step: int) -> list[Row]:
        """Opens metrics.jsonl and returns its rows up to a step."""
        rows: list[Row] = []
        with self.processes.together("open metrics"):
            if self.processes.is_main:
                self.metrics = MetricsFile(self.directory.metrics_path, last_step)
                rows = read_rows(self.directory.metrics_path)
            else:
                self.metrics = UnwrittenMetrics()
        return self.processes.broadcast("rows", rows)

    def _lacks_evaluation(self, row: Row) -> bool:
        return self.is_evaluated(row["step"]) and "val/loss" not in row

    def best(self) -> Row | None:
        """Returns the best evaluation by `train.best_by`; None before the first that has it."""
        return best_row(self.evaluations, self.config.train.best_by or LOSS)

    def is_stale(self) -> bool:
        """Returns whether `train.patience` is exhausted."""
        return is_stale(self.config, self.evaluations)

    def is_last(self, row: Row) -> bool:
        """Returns whether the run ends with a row that has a validation loss."""
        rows = [*self.evaluations, row]
        return row["step"] == self.config.train.steps or is_stale(self.config, rows)

    def is_due(self, step: int) -> bool:
        """Returns whether a step has a row."""
        every = self.config.train.log_every
        return step % every == 0 or self.is_stop(step) or self.has_diagnostics(step)

    def has_diagnostics(self, step: int) -> bool:
        """Returns whether a step has per-block diagnostics."""
        every = self.config.track.diagnostics_every
        return every is not None and (step % every == 0 or step == self.config.train.steps)

    def is_stop(self, step: int) -> bool:
        """Returns whether the run pauses after a step, for an evaluation or a checkpoint."""
        train = self.config.train
        every = (train.eval_every, train.checkpoint_every)
        return step == train.steps or any(step % n == 0 for n in every)

    def is_evaluated(self, step: int) -> bool:
        """Returns whether a step has a validation loss."""
        return step == self.config.train.steps or step % self.config.train.eval_every == 0

    def begin(self, scored: Mapping[str, float], diagnostics: Mapping[str, Any]) -> None:
        """Writes the row of the state before the first step."""
        counts = {"step": 0, "tokens": 0, "perf/seconds": 0.0, "perf/flops": 0}
        self.write({**counts, **scored, **by_block(dict(diagnostics))})

    def row(
        self, step: int, read: Mapping[str, Any], diagnostics: Collection[str], speed: float
    ) -> Row:
        """Returns the row of a step.

        Args:
          read: the train step's metrics and per-block diagnostics (L), read from the devices.
          diagnostics: names of the diagnostics; empty if none are due.
          speed: tokens per second.
        """
        per_block = {name: read[name] for name in diagnostics}
        if per_block:
            norms = read[BLOCK_GRAD_NORMS]
            per_block |= by_tower(self.config.model.towers, "grad_norm", norms)
        self._max_consecutive_skipped = read["max_consecutive_skipped"].item()
        tokens = self.tokens_per_step
        self._seconds += (step - self._seconds_step) * tokens / speed
        self._seconds_step = step
        row = {
            "step": step,
            "tokens": step * tokens,
            **{f"train/{name}": read[name].item() for name in METRICS},
            "perf/tokens_per_sec": speed,
            "perf/step_ms": tokens / speed * 1e3,
            "perf/seconds": self._seconds,
            "perf/flops": step * tokens * self._flops_per_token,
            **by_block(per_block),
        }
        if self._unreported_save_seconds:
            row["perf/save_seconds"] = self._unreported_save_seconds
            self._unreported_save_seconds = 0.0
        share = mfu(speed, self._flops_per_token, self.devices[0], len(self.devices))
        return row if share is None else row | {"perf/mfu": share}

    def write(self, row: Row) -> None:
        """Writes a row.

        Raises:
          Diverged: if too many consecutive steps before it were skipped.
        """
        self._note_evaluation(row)
        self.metrics.write(row)
        self._send(row)
        if self._max_consecutive_skipped >= self.config.optimizer.max_skipped:
            raise Diverged(
                f"by step {row['step']}, {self._max_consecutive_skipped} steps in a row were "
                "skipped because their gradient was not finite or an outlier",
                "lower optimizer.peak_lr, lengthen the warm-up or raise optimizer.skip_outliers, "
                f"in another --workdir ({self.directory.path} keeps the metrics of this run)",
            )

    def keep_unfinished(self, row: Row) -> None:
        """Writes the row of a step whose evaluation was interrupted, but not to wandb yet."""
        self.metrics.write(row)

    def complete(self, row: Row) -> None:
        """Replaces the `unfinished` row by one with its evaluation."""
        self._note_evaluation(row)
        self.metrics.replace_last(row)
        self.unfinished = None
        self._send(row)
        self.draw()

    def _note_evaluation(self, row: Row) -> None:
        if "val/loss" in row:
            self.evaluations.append(row)

    def _send(self, row: Row) -> None:
        self.wandb.log(row)
        if "val/loss" in row:
            self._summarize_best()

    def _summarize_best(self) -> None:
        if (best := self.best()) is None:
            return
        found = {"best/val_loss": best["val/loss"], "best/step": best["step"]}
        if (best_by := self.config.train.best_by or LOSS) != LOSS:
            found[f"best/{best_by}"] = best[f"val/{best_by}"]
        self.wandb.summarize(found)

    def is_kept(self, row: Row) -> bool:
        """Returns whether to save a checkpoint after the row that was just written."""
        train, step = self.config.train, row["step"]
        # With patience, the weights of the best evaluation are the result of the run.
        best = train.patience and row is self.best()
        last = step == train.steps
        return bool(last or best or self.is_stale() or step % train.checkpoint_every == 0)

    def save(self, step: int, state: State, scored: Mapping[str, Any]) -> None:
        """Starts saving a checkpoint; `scored` is as in `Checkpoints.save`."""
        started = time.monotonic()
        self.checkpoints.save(step, state, scored)
        seconds = time.monotonic() - started
        self._save_seconds.append(seconds)
        self._unreported_save_seconds += seconds
        self.saved_step = step

    def finish_saving(self) -> None:
        """Waits until the last checkpoint is valid."""
        started = time.monotonic()
        self.checkpoints.wait()
        if self._save_seconds:
            self._save_seconds[-1] += time.monotonic() - started

    def record_saves(self) -> str | None:
        """Adds the time that saves held up training to run.json, and returns it as text."""
        if not self._save_seconds:
            return None
        n, seconds = len(self._save_seconds), sum(self._save_seconds)
        longest = max(self._save_seconds)
        old = self.directory.read_info().get("saves") or {}
        total = {
            "count": old.get("count", 0) + n,
            "seconds": old.get("seconds", 0.0) + seconds,
            "longest_seconds": max(old.get("longest_seconds", 0.0), longest),
        }
        self.directory.change_info(saves=total)
        self.wandb.summarize({f"saves/{name}": value for name, value in total.items()})
        saves = counted(n, "save")
        return f"{saves} held up training for {seconds:.2f} s, the longest for {longest:.2f} s"

    def draw(self, last: bool = False) -> None:
        """Draws the losses up to the last evaluation in another thread; waits if `last`."""
        self._curve.draw(self.evaluations[-1]["step"], wait=last)

    def finish(self, step: int, sample: Sample | None, stopped: bool = False) -> None:
        """Draws the losses and, unless the run was stopped, sends the final results to wandb."""
        rows = read_rows(self.directory.metrics_path)
        if rows:
            self._curve.draw(rows[-1]["step"], wait=True)
        self.directory.change_info(best=report.best_of(self.best(), self.config))
        if stopped:
            return
        self.wandb.show(step, self.directory.plot_path, sample)
        final = {k: v for row in rows for k, v in row.items() if k.startswith("val/")}
        tokens = self.tokens_per_step * self.config.train.steps
        counts = {
            "parameters": self.model_def.n_params(),
            "flops": self._flops_per_token * tokens,
            "tokens": tokens,
        }
        self.wandb.summarize({f"final/{name}": value for name, value in final.items()} | counts)

    def _picture(self) -> Picture:
        rows = read_rows(self.directory.metrics_path)
        title = report.curve_title(self.config, self.directory)
        subtitle = f"{self.model_def.n_params():,} parameters"
        if rows:
            subtitle += f", {rows[-1]['tokens']:,} tokens"
        if speeds := [row["perf/tokens_per_sec"] for row in rows if "perf/tokens_per_sec" in row]:
            subtitle += f", {statistics.median(speeds):,.0f} tokens/s on {self.devices[0]}"
        target, smoothing = (
            TASKS[self.config.task.name].target,
            self.config.optimizer.label_smoothing,
        )
        return rows, title, subtitle, target, smoothing

    def close(self, code: int) -> None:
        """Stops threads and closes files, all of them even if one fails."""
        with ExitStack() as last:
            last.callback(self.wandb.close, code)
            last.callback(self._curve.close)
            last.callback(self.metrics.close)
            last.callback(self.checkpoints.close)
