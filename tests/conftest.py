"""Eight CPU devices, quick compilation, and isolation from the user's cache and wandb."""

import os
import signal
import tempfile
from functools import partial
from importlib.metadata import version

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and their processes share compiled programs
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="gpt2_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["XDG_CACHE_HOME"] + "/compiled"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["JAX_PLATFORMS"] = "cpu"
for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
    os.environ.pop(name, None)
# Tests compile a lot and run little: these programs compile in an eighth of the time.
FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # later versions have only the slower emitters
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

import jax
import pytest

from tests import tools

jax.config.update("jax_num_cpu_devices", 8)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, runs would ignore it


# Files whose tests share an expensive fixture and so run in one worker; they must start first.
LONGEST = (
    "train/distributed/test_processes.py",
    "train/distributed/test_several_processes.py",
    "study/test_study.py",
    "track/test_wandb.py",
    "model/test_every_placement.py",
    "model/test_placements.py",
)


def pytest_collection_modifyitems(items):
    """Moves the tests of the longest files to the front."""
    items.sort(key=lambda item: not str(item.path).endswith(LONGEST))


@pytest.fixture
def interpreted(monkeypatch):
    """Interprets GPU kernels, which is slow, so that they run on a CPU."""
    from jax.experimental import pallas

    monkeypatch.setattr(pallas, "pallas_call", partial(pallas.pallas_call, interpret=True))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """One document of 40,000 characters from which a tiny model can learn something."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tools.make_text(40_000))
    return path
