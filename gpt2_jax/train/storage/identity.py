"""The identity of a run, recorded in run.json and in each checkpoint.

A run has a random id, a config, a dataset and a tokenizer. They are written to run.json when it
starts and to the meta.json of every checkpoint. This detects files that do not belong together:
a checkpoint of another run, a replaced config.json, a lost run.json. Checkpoints of format version
1 are refused because their parameters have different names.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.data.run_data import RunData
from gpt2_jax.errors import UserError
from gpt2_jax.files import check_format, read_fields
from gpt2_jax.track.metrics import RowsDigest

FORMAT_VERSION = 2  # of run directories and checkpoints
META = "meta.json"


@dataclass(frozen=True)
class Identity:
    """What identifies a run.

    Attributes:
      run_id: random, chosen when the run starts.
      config: the resolved config, as in config.json.
      corpus: hash of the dataset's tokens, None before training.
      tokenizer: the tokenizer's fingerprint, None if unknown.
    """

    run_id: str
    config: dict[str, Any]
    corpus: str | None
    tokenizer: str | None


@dataclass(frozen=True)
class Meta:
    """The meta.json of a checkpoint.

    Attributes:
      val_loss: validation loss, None if the step was not evaluated.
      best_by: as in `train.best_by`. score: by which checkpoints are compared; None if unknown.
      rows: digest of metrics.jsonl up to the step, None for weights without metrics.
      identity: identity of the run, None for weights saved outside a run.
      version: format version.
    """

    step: int
    val_loss: float | None
    rows: RowsDigest | None = None
    identity: Identity | None = None
    version: int = FORMAT_VERSION
    best_by: str = LOSS
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields of meta.json."""
        fields: dict[str, Any] = {"format_version": self.version, "step": self.step}
        fields |= {"val_loss": self.val_loss, "best_by": self.best_by, "score": self.score}
        if self.rows is not None:
            fields["rows"] = asdict(self.rows)
        if self.identity is not None:
            fields |= asdict(self.identity)
        return fields


def new_run_id() -> str:
    """Returns a random id for a new run."""
    return secrets.token_hex(8)


def read_meta(folder: Path) -> Meta:
    """Reads the meta.json of a checkpoint.

    Raises:
      UserError: if it is missing, damaged, or from a newer version of this program.
    """
    path = folder / META
    fields = read_fields(path)
    check_format(fields, path, FORMAT_VERSION)
    try:
        step, loss = fields["step"], fields["val_loss"]
        score, best_by = fields.get("score", loss), fields.get("best_by", LOSS)
        if type(step) is not int or {type(loss), type(score)} - {int, float, type(None)}:
            raise ValueError("its step, its loss or its score is not a number")
        rows = None if fields.get("rows") is None else RowsDigest(**fields["rows"])
        identity = None
        if "run_id" in fields:
            names = ("run_id", "config", "corpus", "tokenizer")
            identity = Identity(**{name: fields[name] for name in names})
            if not isinstance(identity.config, dict):
                raise ValueError("its config is not an object")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    version = fields.get("format_version", 1)
    return Meta(step, finite(loss), rows, identity, version, best_by, finite(score))


def finite(loss: float | None) -> float | None:
    """Returns a loss, or None if it is not finite."""
    return loss if loss is not None and math.isfinite(loss) else None


def check_corpus(
    known: str | None,
    corpus: RunData,
    source: str,
    workdir: Path,
    sources: dict[str, str] | None = None,
) -> None:
    """Checks that a text is the one that a run was trained on.

    Args:
      known: hash of the run's text, None if unknown.
      sources: hash of each source of a mixture by name, to name those that have changed.

    Raises:
      UserError: if the content differs.
    """
    if known not in (None, corpus.content_hash()):
        now = corpus.source_hashes()
        changed = [name for name in now if (sources or now).get(name) != now[name]]
        which = f"in {', '.join(changed)}: " if changed else ""
        raise UserError(
            f"{workdir} was trained on another text than {source} contains now ({which}its content "
            "or its split changed); choose another --workdir, or restore the old text"
        )
