"""`make install` with a fake Python: which environments are built, and what is installed.

Also the Python versions and make targets that other files name.
"""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from tests.tools import ROOT

# Prints its version, logs every other command, and copies itself into environments.
PYTHON = """#!/bin/sh
case "$*" in
  -c*version_info\\[:2\\]*) cat version ;;
  -c*) ;;
  "-m venv"*) echo "$*" >> log; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  *) echo "$*" >> log ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def run(version, *variables):
        """Returns the environments built and the extras installed, in order."""
        (tmp_path / "version").write_text(version)
        (tmp_path / "log").write_text("")
        env = {"PATH": os.environ["PATH"]}
        words = ["make", "install", f"PYTHON={tmp_path}/python", *variables]
        subprocess.run(words, cwd=tmp_path, env=env, check=True, capture_output=True)
        lines = (tmp_path / "log").read_text().splitlines()
        built = [line.split()[-1] for line in lines if "venv" in line]
        return built, [line.rpartition(" ")[2] for line in lines if "pip install" in line]

    return run


def test_extras_are_added_and_kept(install):
    assert install("3.11") == ([".venv"], [".[dev]"])
    assert install("3.11") == ([], [])
    assert install("3.11", "EXTRA=eval") == ([], [".[dev,eval]"])
    assert install("3.11") == ([], [])
    assert install("3.11", "EXTRA=eval") == ([], [])
    assert install("3.11", "EXTRA=slurm,tpu") == ([], [".[dev,eval,slurm,tpu]"])
    assert install("3.11", "VENV=other") == (["other"], [".[dev]"])


def test_changed_python_or_dependencies_are_reinstalled(install, tmp_path):
    install("3.11", "EXTRA=eval")
    assert install("3.12") == ([".venv"], [".[dev,eval]"])
    assert install("3.12") == ([], [])
    later = (tmp_path / "pyproject.toml").stat().st_mtime + 100
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert install("3.12") == ([], [".[dev,eval]"])


def test_supported_python_versions_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [word for c in project["classifiers"] for word in re.findall(r":: (3\.\d+)", c)]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == versions
    assert {path.stem for path in (ROOT / "constraints").iterdir()} == {
        f"python{v}" for v in versions
    }
    assert project["requires-python"] == f">={versions[0]}"


def test_commands_of_the_hosted_ci_are_make_targets():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [
        step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step
    ]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands and all(make == "make" and target in targets for make, target, *_ in commands)


def test_interrupted_installation_is_rebuilt(install, tmp_path):
    (tmp_path / ".venv").mkdir()
    assert install("3.11") == ([".venv"], [".[dev]"])
