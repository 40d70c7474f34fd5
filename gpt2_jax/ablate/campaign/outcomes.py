"""What became of a cell, and the file that says so, bound by hashes to the run that it is about."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_jax.ablate.campaign.stored import VERSION, read_stored
from gpt2_jax.errors import UserError
from gpt2_jax.files import fields_sha256, sha256, write_json

ATTEMPTS = 2  # at a cell that fails for another reason than divergence
RECORD = ("config.json", "metrics.jsonl")  # a run's files that its outcome follows from

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
      step: steps done. loss, start_loss: validation losses at the end and before the first step,
        None where there is none. guess_loss: `guessing` of the validation text.
      reason: why it is not finished.
    """

    status: Status
    step: int
    loss: float | None
    start_loss: float | None
    guess_loss: float | None = None
    reason: str | None = None
    attempts: int = 1

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to be done."""
        return self.status != "failed" or self.attempts >= ATTEMPTS

    @property
    def is_broken(self) -> bool:
        """Whether it diverged, or ended no better than guessing by frequency."""
        if self.loss is None:
            return self.status == "diverged"
        return self.guess_loss is not None and self.loss >= self.guess_loss

    @property
    def score(self) -> float:
        """The final loss; infinite for a run that is broken or failed."""
        return math.inf if self.loss is None or self.is_broken else self.loss


def write_outcome(path: Path, outcome: Outcome, run: Path) -> None:
    """Writes an outcome with the hashes of its run's files and of itself.

    Args:
      run: the cell's directory.
    """
    record = {} if outcome.status == "failed" else _record(run)  # it is tried again, and changes
    stored = {"format_version": VERSION, **asdict(outcome), "record": record}
    write_json(path, stored | {"sha256": fields_sha256(stored)})


def read_outcome(path: Path, run: Path) -> tuple[Outcome, bool]:
    """Returns an outcome, and whether hashes showed that it is what was written about `run`.

    Format 1 has no hashes.

    Raises:
      UserError: if it or a file that it follows from is missing or was changed.
    """
    try:
        stored = read_stored(path)
        outcome = _parsed(stored)
    except UserError as error:
        raise UserError(f"{error}; {_remedy(path)}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); {_remedy(path)}") from None
    if "format_version" not in stored:
        return outcome, False
    digest = stored.pop("sha256", None)
    if digest != fields_sha256(stored):
        raise UserError(f"{path} was changed after it was written; {_remedy(path)}")
    if stored["record"] and not run.is_dir():
        raise UserError(f"{run} is missing, whose end {path} tells; {_restore(path)}")
    found = _record(run)
    for name, written in stored["record"].items():
        if found[name] != written:
            state = "is missing" if found[name] is None else "was changed"
            raise UserError(f"{run / name} {state} since the run ended; {_restore(path)}")
    return outcome, True


def check_derived(path: Path, outcome: Outcome, derived: Outcome) -> None:
    """Refuses an outcome that is not what its run's own files tell.

    Raises:
      UserError: naming what differs.
    """
    for name in ("step", "loss", "start_loss"):
        said, found = getattr(outcome, name), getattr(derived, name)
        if said != found:
            raise UserError(f"{path}: {name} is {said}, and {found} in its run; {_restore(path)}")


def _restore(path: Path) -> str:
    return f"bring the old one back, or remove {path} to have it trained to its end again"


def _remedy(path: Path) -> str:
    return f"remove it, and the campaign's command derives it again from the cell {path.stem}"


def _parsed(stored: dict[str, Any]) -> Outcome:
    """Returns the outcome that a file's fields hold.

    Raises:
      ValueError, TypeError: if they hold none.
    """
    known = {field.name for field in fields(Outcome)}
    outcome = Outcome(**{name: value for name, value in stored.items() if name in known})
    if outcome.status not in get_args(Status):
        raise ValueError(f"its status is {outcome.status!r}")
    if any(type(number) is not int or number < 0 for number in (outcome.step, outcome.attempts)):
        raise ValueError("its step or attempts is not a count")
    losses = (outcome.loss, outcome.start_loss, outcome.guess_loss)
    if any(loss is not None and type(loss) not in (int, float) for loss in losses):
        raise ValueError("a loss in it is not a number")
    if outcome.status == "finished" and outcome.loss is None:
        raise ValueError("it is finished without a loss")
    return outcome


def _record(run: Path) -> dict[str, str | None]:
    paths = {name: run / name for name in RECORD}
    return {name: sha256(path) if path.is_file() else None for name, path in paths.items()}
