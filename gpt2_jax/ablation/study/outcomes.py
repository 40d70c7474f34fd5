"""The outcome of a trial, and its file, which contains hashes of the run's files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_jax.ablation.study.formats import VERSION, read_stored
from gpt2_jax.errors import UserError
from gpt2_jax.files import fields_sha256, sha256, write_json

MAX_ATTEMPTS = 2  # at a trial that fails for reasons other than divergence
RUN_FILES = ("config.json", "metrics.jsonl")  # files that determine a run's outcome

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
      step: number of steps done.
      loss: final validation loss, None if there is none.
      initial_loss: validation loss before the first step, None if there is none.
      unigram_loss: unigram entropy of the validation text.
      reason: why the trial did not finish.
      attempts: number of attempts so far.
    """

    status: Status
    step: int
    loss: float | None
    initial_loss: float | None
    unigram_loss: float | None = None
    reason: str | None = None
    attempts: int = 1

    @property
    def is_final(self) -> bool:
        """Whether the trial will not be retried."""
        return self.status != "failed" or self.attempts >= MAX_ATTEMPTS

    @property
    def is_broken(self) -> bool:
        """Whether the run diverged, or ended no better than the unigram entropy."""
        if self.loss is None:
            return self.status == "diverged"
        return self.unigram_loss is not None and self.loss >= self.unigram_loss

    @property
    def score(self) -> float:
        """The final loss; infinite for a broken or failed run."""
        return math.inf if self.loss is None or self.is_broken else self.loss


def write_outcome(path: Path, outcome: Outcome, run: Path) -> None:
    """Writes an outcome with hashes of its run's files and of its own content.

    Args:
      run: the trial's run directory.
    """
    hashes = {} if outcome.status == "failed" else _hashes(run)  # a retry changes the files
    stored = {"format_version": VERSION, **asdict(outcome), "run_files": hashes}
    write_json(path, stored | {"sha256": fields_sha256(stored)})


def read_outcome(path: Path, run: Path) -> Outcome:
    """Returns an outcome, after verifying its hashes of itself and of the files in `run`.

    Raises:
      UserError: if the outcome, or a file that determines it, is missing or was changed.
    """
    try:
        stored = read_stored(path)
        outcome = _parsed(stored)
    except UserError as error:
        raise UserError(f"{error}; {_remedy(path)}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); {_remedy(path)}") from None
    digest = stored.pop("sha256", None)
    if digest != fields_sha256(stored):
        raise UserError(f"{path} was changed after it was written; {_remedy(path)}")
    if stored["run_files"] and not run.is_dir():
        raise UserError(f"{run}, the run of {path}, is missing; {_restore(path)}")
    found = _hashes(run)
    for name, written in stored["run_files"].items():
        if found[name] != written:
            state = "is missing" if found[name] is None else "was changed"
            raise UserError(f"{run / name} {state} since the run ended; {_restore(path)}")
    return outcome


def _restore(path: Path) -> str:
    return f"restore the original, or remove {path} to train the trial again"


def _remedy(path: Path) -> str:
    return f"remove it, and the study's command will derive it again from the trial {path.stem}"


def _parsed(stored: dict[str, Any]) -> Outcome:
    """Parses an outcome from a file's fields.

    Raises:
      ValueError, TypeError: if they are not valid.
    """
    names = {field.name for field in fields(Outcome)}
    outcome = Outcome(**{name: value for name, value in stored.items() if name in names})
    if not isinstance(stored.get("run_files"), dict):
        raise ValueError("it has no hashes of its run's files")
    if outcome.status not in get_args(Status):
        raise ValueError(f"its status is {outcome.status!r}")
    if any(type(number) is not int or number < 0 for number in (outcome.step, outcome.attempts)):
        raise ValueError("its step or attempts is not a count")
    losses = (outcome.loss, outcome.initial_loss, outcome.unigram_loss)
    known = [loss for loss in losses if loss is not None]
    if any(type(loss) not in (int, float) or not math.isfinite(loss) for loss in known):
        raise ValueError("a loss in it is not a finite number")
    if outcome.status == "finished" and outcome.loss is None:
        raise ValueError("it is finished without a loss")
    return outcome


def _hashes(run: Path) -> dict[str, str | None]:
    paths = {name: run / name for name in RUN_FILES}
    return {name: sha256(path) if path.is_file() else None for name, path in paths.items()}
