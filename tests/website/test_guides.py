"""The code in the guides runs as printed."""

import os
import re

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


def test_add_a_placement(tmp_path):
    """A module outside the package, and its oracle."""
    files_of("placement.md", tmp_path)
    test = str(tmp_path / "test_my_placements.py")
    done = run_in(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_add_a_norm(tmp_path):
    files_of("norm.md", tmp_path)
    check = (
        "import my_norms, jax.numpy as jnp\n"
        "from gpt2_jax.nn.norms import NormSpec, make_norm\n"
        "from tests.tools import tiny\n"
        "tiny(placement__norm_type='softsign')\n"
        "norm = make_norm(3, NormSpec('softsign', 1e-5, False, 'float32'))\n"
        "print(norm(jnp.array([1.0, -3.0, 0.0])).tolist())"
    )
    done = run_in(tmp_path, "-c", check)
    assert done.stdout.strip() == "[0.5, -0.75, 0.0]", done.stderr
