"""A study's directory.

study.json                  the study (`definition.py`)
trials/NAME/                one ordinary run directory per trial
outcomes/NAME.json          how the trial ended
leases/                     which worker trains which trial (`leases.py`)
results.json, report.*      derived from the above
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from gpt2_jax.ablation.study.outcomes import Outcome, read_outcome, write_outcome
from gpt2_jax.ablation.study.trials import Trial
from gpt2_jax.config import from_json
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, remove_temporary
from gpt2_jax.track.metrics import Row, best_row, read_rows

DEFINITION = "study.json"
TRIALS, OUTCOMES, LEASES = "trials", "outcomes", "leases"
OLD_DEFINITION = "campaign.json"  # name of study.json before format 3
WRITTEN = (f"{TRIALS}/*", LEASES, OUTCOMES, "report")  # folders that workers write to


class TrialStore:
    """The trials in a study's directory."""

    def __init__(self, workdir: Path) -> None:
        self._folder, self._outcomes = workdir / TRIALS, workdir / OUTCOMES
        self._definition = workdir / DEFINITION
        self._final: dict[str, Outcome] = {}

    def exists(self) -> bool:
        """Returns whether the directory contains a study, with or without trials.

        study.json may have been lost: trials and outcomes are checked one by one.
        """
        return self._definition.exists() or (self._folder.is_dir() and self._outcomes.is_dir())

    def path(self, name: str) -> Path:
        """Returns the run directory of a trial."""
        return self._folder / name

    def outcomes(self, trials: list[Trial]) -> dict[str, Outcome]:
        """Returns the outcomes of the trials that have ended."""
        found = {trial.name: self.outcome(trial.name) for trial in trials}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def n_others(self, trials: list[Trial]) -> int:
        """Returns the number of trials that have ended but are not among these."""
        ended = {path.stem for path in self._outcomes.glob("*.json")}
        return len(ended - {trial.name for trial in trials})

    def outcome(self, name: str) -> Outcome | None:
        """Returns a trial's outcome, None if it has not ended.

        Raises:
          UserError: if the outcome or its run was changed or lost since.
        """
        if name not in self._final:
            path = self._outcome_path(name)
            if not path.exists():
                return None
            outcome = read_outcome(path, self.path(name))
            if not outcome.is_final:
                return outcome
            self._final[name] = outcome
        return self._final[name]

    def is_done(self, name: str) -> bool:
        """Returns whether a trial has ended and will not be retried."""
        outcome = self.outcome(name)
        return outcome is not None and outcome.is_final

    def write_outcome(self, name: str, outcome: Outcome) -> None:
        """Writes how a trial ended."""
        with disk_errors(f"{OUTCOMES}/"):
            self._outcomes.mkdir(parents=True, exist_ok=True)
            write_outcome(self._outcome_path(name), outcome, self.path(name))

    def drop_checkpoints(self, name: str) -> None:
        """Removes the checkpoints of a trial that will not be trained again."""
        folder = self.path(name) / "checkpoints"
        outcome = self.outcome(name)
        if outcome is not None and outcome.status != "failed" and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)  # another worker may be removing it

    def forget_failures(self, trials: list[Trial]) -> int:
        """Removes the outcomes of failed trials, and returns how many there were."""
        failed = [n for n, o in self.outcomes(trials).items() if o.status == "failed"]
        for name in failed:
            self._final.pop(name, None)
            self._outcome_path(name).unlink(missing_ok=True)
        return len(failed)

    def judge(self, name: str, diverged: str | None, unigram_loss: float | None) -> Outcome:
        """Returns the outcome that follows from a run's metrics.

        The loss is the final one, or with `train.patience` that of the best evaluation.

        Args:
          diverged: the reason, if the run diverged.
          unigram_loss: unigram entropy of the validation text.

        Raises:
          UserError: if there are no rows, or any is duplicated or out of order.
        """
        rows = self.rows(name)
        if not rows:
            raise UserError(f"{self.path(name)} has no metrics.jsonl; restore the original")
        scored = [row for row in rows if "val/loss" in row]
        initial = scored[0]["val/loss"] if scored and scored[0]["step"] == 0 else None
        train = from_json(self.path(name) / "config.json").train
        judged = scored[-1] if scored else None
        if train.patience is not None:
            judged = best_row(scored, train.best_by or "loss")
        loss = None if judged is None else judged["val/loss"]
        if diverged is None and loss is None:
            diverged = "the validation loss is not finite"
        step = rows[-1]["step"]
        if diverged is not None:
            return Outcome("diverged", step, None, initial, unigram_loss, diverged)
        return Outcome("finished", step, loss, initial, unigram_loss)

    def rows(self, name: str) -> list[Row]:
        """Returns a trial's metrics; empty if it has no row yet.

        Raises:
          UserError: if any row is duplicated or out of order.
        """
        path = self.path(name) / "metrics.jsonl"
        rows = read_rows(path)
        for before, after in itertools.pairwise(row["step"] for row in rows):
            if before >= after:
                raise UserError(
                    f"{path} has step {after} after step {before}; restore the original, or "
                    f"remove {self.path(name)} to train the trial again"
                )
        return rows

    def _outcome_path(self, name: str) -> Path:
        return self._outcomes / f"{name}.json"  # not in the trial's directory, which is only a run


def check_not_outdated(workdir: Path) -> None:
    """Checks that a directory does not contain a study of an earlier version of the program.

    Raises:
      UserError: if it does.
    """
    # os.path.exists: unlike Path.exists, also if the name is too long.
    if os.path.exists(workdir / OLD_DEFINITION) and not os.path.exists(workdir / DEFINITION):
        raise UserError(
            f"--workdir={workdir} holds a study of an earlier version of gpt2_jax "
            f"({OLD_DEFINITION}); use that version to continue or report it, or run the study "
            "again in another --workdir"
        )


def remove_leftovers(workdir: Path, older_than: float) -> None:
    """Removes temporary files of killed processes, last modified before `older_than`."""
    for folder in (workdir, *(path for name in WRITTEN for path in workdir.glob(name))):
        if folder.is_dir():
            remove_temporary(folder, older_than)
