"""What a run is, as run.json and each of its checkpoints record it.

A run has a random id, a config, a dataset and a tokenizer. They are written into run.json when it
starts and into meta.json of every checkpoint, so that files which do not belong together are
noticed: another run's checkpoint, a replaced config.json, a run.json that was lost. Files written
before version 1 of this format say nothing of it; they can be read, but not continued.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.files import check_format, read_fields
from gpt2_jax.track.metrics import Seal

FORMAT_VERSION = 1  # of run directories and checkpoints
META = "meta.json"


@dataclass(frozen=True)
class Identity:
    """What makes a run this run.

    Attributes:
      run_id: random, chosen when the run starts.
      config: resolved, as config.json holds it.
      corpus: hash of the dataset's tokens, None where nothing was trained on yet.
      tokenizer: its fingerprint, None where it is not known.
    """

    run_id: str
    config: dict[str, Any]
    corpus: str | None
    tokenizer: str | None


@dataclass(frozen=True)
class Meta:
    """meta.json of a checkpoint.

    Attributes:
      val_loss: of the step, None if it was not evaluated.
      rows: those of metrics.jsonl up to the step, None for weights without a record.
      identity: None where an older version of this program saved the checkpoint.
    """

    step: int
    val_loss: float | None
    rows: Seal | None = None
    identity: Identity | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as meta.json holds them."""
        fields: dict[str, Any] = {"step": self.step, "val_loss": self.val_loss}
        if self.rows is not None:
            fields["rows"] = asdict(self.rows)
        if self.identity is not None:
            fields |= {"format_version": FORMAT_VERSION, **asdict(self.identity)}
        return fields


def new_run_id() -> str:
    """Returns the id of a run that starts now."""
    return secrets.token_hex(8)


def read_meta(folder: Path) -> Meta:
    """Reads meta.json of a checkpoint.

    Raises:
      UserError: if it is missing, damaged, or of a newer version of this program.
    """
    path = folder / META
    fields = read_fields(path)
    check_format(fields, path, FORMAT_VERSION)
    try:
        step, loss = fields["step"], fields["val_loss"]
        if type(step) is not int or type(loss) not in (int, float, type(None)):
            raise ValueError("its step or its loss is not a number")
        rows = None if fields.get("rows") is None else Seal(**fields["rows"])
        identity = None
        if "format_version" in fields:
            names = ("run_id", "config", "corpus", "tokenizer")
            identity = Identity(**{name: fields[name] for name in names})
            if not isinstance(identity.config, dict):
                raise ValueError("its config has no fields")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return Meta(step, finite(loss), rows, identity)


def finite(loss: float | None) -> float | None:
    """Returns a loss, None for one that is not finite and so cannot be the lowest."""
    return loss if loss is not None and math.isfinite(loss) else None
