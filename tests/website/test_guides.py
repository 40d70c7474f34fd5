"""The code in the guides runs as printed."""

import os
import re

import pytest

from tests.tools import ROOT, run


def files_of(guide, folder):
    """Writes the named files that a guide shows."""
    text = (ROOT / "docs" / "guides" / guide).read_text()
    for name, code in re.findall(r'```python title="([^"]+)"\n(.*?)```', text, re.DOTALL):
        (folder / name).write_text(code)


def run_in(folder, *words):
    """Runs Python with the folder and the repository on its path."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    return run(*words, tmp=folder, PYTHONPATH=path)


@pytest.mark.parametrize(
    ("guide", "test"),
    [("placement.md", "test_my_placements.py"), ("norm.md", "test_my_norms.py")],
)
def test_a_module_outside_the_package_is_its_oracle(guide, test, tmp_path):
    files_of(guide, tmp_path)
    test = str(tmp_path / test)
    done = run_in(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
