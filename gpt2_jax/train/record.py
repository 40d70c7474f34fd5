"""What a run leaves in its directory as it goes: rows, checkpoints, a picture, wandb's copy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from gpt2_jax.errors import Diverged
from gpt2_jax.model.structure import Structure
from gpt2_jax.track.metrics import MetricsFile, Row, evaluations_since_best, read_rows
from gpt2_jax.track.plot import plot_loss
from gpt2_jax.track.throughput import utilisation
from gpt2_jax.track.wandb_log import WandbLog
from gpt2_jax.train import report
from gpt2_jax.train.checkpoint import Checkpoints
from gpt2_jax.train.probe import by_block
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.state import State
from gpt2_jax.train.step import BLOCK_GRAD_NORMS

METRICS = ("loss", "grad_norm", "lr", "skipped")


def is_stale(config: ConfigDict, rows: list[Row]) -> bool:
    """Returns whether the validation loss has not fallen for `train.patience` evaluations."""
    patience = config.train.patience
    return patience is not None and evaluations_since_best(rows) >= patience


@dataclass
class Record:
    """The record of a run in progress.

    Attributes:
      devices: kinds of those that the run has.
      found: the step that it goes on from, None for a new run.
      say: told what wandb has to say.
    """

    config: ConfigDict
    directory: RunDirectory
    structure: Structure
    devices: list[str]
    checkpoints: Checkpoints
    found: int | None
    say: Callable[[str], None]
    metrics: MetricsFile = field(init=False)
    wandb: WandbLog = field(init=False)

    def __post_init__(self) -> None:
        first = -1 if self.found is None else self.found
        self.metrics = MetricsFile(self.directory.metrics_path, first)
        self.checkpoints.before_commit = self.metrics.sync
        self.checkpoints.seal = self.metrics.seal
        rows = read_rows(self.directory.metrics_path)
        options = report.wandb_options(self.config, self.directory)
        self.wandb = WandbLog(options, self.config.to_dict(), rows, self.say)
        self.evaluations = [row for row in rows if "val/loss" in row]
        self.saved_step = self.found
        self._longest_skipped = 0
        self._flops_per_token = self.structure.flops_per_token(self.config.data.seq_len)

    def since_best(self) -> int:
        """Returns the evaluations after the best one."""
        return evaluations_since_best(self.evaluations)

    def is_stale(self) -> bool:
        """Returns whether `train.patience` is at its end."""
        return is_stale(self.config, self.evaluations)

    def is_due(self, step: int) -> bool:
        """Returns whether a row belongs to a step."""
        every = self.config.train.log_every
        return step % every == 0 or self.is_stop(step) or self.is_probed(step)

    def is_probed(self, step: int) -> bool:
        """Returns whether figures by depth belong to a step."""
        every = self.config.track.diagnostics_every
        return every is not None and (step % every == 0 or step == self.config.train.steps)

    def is_stop(self, step: int) -> bool:
        """Returns whether the run pauses behind a step, to be evaluated or saved."""
        train = self.config.train
        every = (train.eval_every, train.checkpoint_every)
        return step == train.steps or any(step % n == 0 for n in every)

    def is_evaluated(self, step: int) -> bool:
        """Returns whether a validation loss belongs to a step."""
        return step == self.config.train.steps or step % self.config.train.eval_every == 0

    def begin(self, scored: Mapping[str, float], figures: Mapping[str, Any]) -> None:
        """Writes the row of the state before the first update."""
        row = {"step": 0, "tokens": 0, **scored, **by_block(dict(figures))}
        self.evaluations = [row]
        self.write(row)

    def row(
        self, step: int, read: Mapping[str, Any], figures: Collection[str], speed: float
    ) -> Row:
        """Returns the row of a step.

        Args:
          read: from the devices: the train step's metrics, and figures by depth (L).
          figures: names of the latter, none where none are due.
          speed: tokens a second.
        """
        by_depth = {name: read[name] for name in figures}
        if by_depth:
            by_depth["grad_norm"] = read[BLOCK_GRAD_NORMS]
        self._longest_skipped = read["longest_skipped"].item()
        tokens = report.tokens_per_step(self.config)
        row = {
            "step": step,
            "tokens": step * tokens,
            **{f"train/{name}": read[name].item() for name in METRICS},
            "perf/tokens_per_sec": speed,
            "perf/step_ms": tokens / speed * 1e3,
            **by_block(by_depth),
        }
        mfu = utilisation(speed, self._flops_per_token, self.devices[0], len(self.devices))
        return row if mfu is None else row | {"perf/mfu": mfu}

    def write(self, row: Row) -> None:
        """Writes a row.

        Raises:
          Diverged: if too many updates in a row had to be skipped by then.
        """
        if "val/loss" in row and row["step"]:
            self.evaluations.append(row)
        self.metrics.write(row)
        self.wandb.log(row)
        if self._longest_skipped >= self.config.optimizer.max_skipped:
            raise Diverged(
                f"by update {row['step']}, {self._longest_skipped} updates in a row had a gradient "
                "that was not finite or an outlier, and were skipped; lower optimizer.peak_lr, "
                "lengthen the warm-up or raise optimizer.skip_outliers, in another --workdir "
                f"({self.directory.path} keeps the record of this one)"
            )

    def is_kept(self, row: Row) -> bool:
        """Returns whether a checkpoint belongs to a row that was just written."""
        train, step = self.config.train, row["step"]
        # With patience the weights that are wanted at the end are those of the best evaluation.
        best = train.patience and row is self.evaluations[-1 - self.since_best()]
        last = step == train.steps
        return bool(last or best or self.is_stale() or step % train.checkpoint_every == 0)

    def save(self, step: int, state: State, val_loss: float | None) -> None:
        """Starts saving a checkpoint."""
        self.checkpoints.save(step, state, val_loss)
        self.saved_step = step

    def finish(self, step: int, text: str | None) -> None:
        """Draws the losses and tells wandb the end."""
        config = self.config
        rows = read_rows(self.directory.metrics_path)
        title = f"{config.model.placement} on {config.data.source}"
        subtitle = f"{self.structure.n_params():,} parameters, {rows[-1]['tokens']:,} tokens"
        if speeds := [row["perf/tokens_per_sec"] for row in rows if "perf/tokens_per_sec" in row]:
            subtitle += f", {statistics.median(speeds):,.0f} tokens/s on {self.devices[0]}"
        plot_loss(rows, self.directory.plot_path, title, subtitle)
        self.wandb.show(step, self.directory.plot_path, text)
        final = {k: v for row in rows for k, v in row.items() if k.startswith("val/")}
        tokens = report.total_tokens(config)
        counts = {
            "parameters": self.structure.n_params(),
            "flops": self._flops_per_token * tokens,
            "tokens": tokens,
        }
        self.wandb.summarize({f"final/{name}": value for name, value in final.items()} | counts)

    def close(self, code: int) -> None:
        """Ends threads and files, each of them whatever the others meet."""
        with ExitStack() as last:
            last.callback(self.wandb.close, code)
            last.callback(self.metrics.close)
            last.callback(self.checkpoints.close)
