"""The report of a campaign, finished or not: report.md, report.html, and report/*.png.

python -m gpt2_jax.ablate.report --workdir=runs/placement

Verdicts alone, where only a results.json was kept (any version's), go to the terminal:

python -m gpt2_jax.ablate.report --results=docs/ablations/qk_norm/results.json
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from gpt2_jax import cli
from gpt2_jax.ablate.report.page import write_report
from gpt2_jax.ablate.report.stored import verdicts
from gpt2_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "a campaign's directory")
_RESULTS = flags.DEFINE_string("results", None, "a results.json, to judge without its runs")


def main(argv: list[str]) -> None:
    """Writes the report."""
    del argv
    if _RESULTS.value and not _WORKDIR.value:
        print("\n".join(verdicts(Path(_RESULTS.value))))
        return
    if not _WORKDIR.value or _RESULTS.value:
        raise UserError("give --workdir, the campaign's directory, or --results, its results.json")
    found = write_report(Path(_WORKDIR.value))
    print(f"left in {_WORKDIR.value}: report.html report.md report/ results.json")
    if not found.complete:
        print(f"{found.n_done} of the {found.n_cells} cells known so far are in")


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
