"""Writes the report of a study, finished or not: report.md, report.html, and report/*.png.

gpt2-jax report --workdir=runs/placement

Without the study's runs, prints the verdicts that follow from its results.json:

gpt2-jax report --results=docs/ablations/qk_norm/results.json
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from gpt2_jax import cli
from gpt2_jax.ablation.report.page import write_report
from gpt2_jax.ablation.report.verdicts import verdicts
from gpt2_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "the study's directory")
_RESULTS = flags.DEFINE_string("results", None, "print the verdicts of this results.json instead")
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Writes the report, or prints verdicts."""
    del argv
    if _RESULTS.value and not _WORKDIR.value:
        print("\n".join(verdicts(Path(_RESULTS.value))))
        return
    if not _WORKDIR.value or _RESULTS.value:
        raise UserError("pass --workdir, the study's directory, or --results, its results.json")
    found = write_report(Path(_WORKDIR.value))
    print(f"written to {_WORKDIR.value}: report.html report.md report/ results.json")
    if not found.complete:
        print(f"{found.n_done} of the {found.n_trials} trials known so far have ended")
