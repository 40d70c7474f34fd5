"""The verdicts committed next to a study's results."""

import pytest

from gpt2_jax.ablation.report.verdicts import verdicts
from tests.tools import ROOT

COMMITTED = sorted((ROOT / "docs/ablations").glob("*/verdicts.md"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_verdicts_follow_from_the_results(path):
    lines = verdicts(path.parent / "results.json")
    assert path.read_text().endswith("\n".join(lines) + "\n")
