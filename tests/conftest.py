"""Eight CPU devices, quick compilation, and isolation from the user's cache and wandb."""

import gc
import os
import signal
import tempfile
from functools import partial
from importlib.metadata import version

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and their processes share compiled programs
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="gpt2_jax_tests_")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["XDG_CACHE_HOME"] + "/compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
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

gc.set_threshold(20_000, 20, 20)  # the many objects of traced programs are seldom garbage

import jax
import pytest

from tests import runs, tools

jax.config.update("jax_num_cpu_devices", 8)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, runs would ignore it


# Files that take longest. The tests of a file run in one worker, so these must start first.
LONGEST = (
    "train/distributed/test_processes.py",
    "train/distributed/test_several_processes.py",
    "study/test_study.py",
    "train/test_task_runs.py",
    "train/test_stream_run.py",
    "ablation/test_vectorized.py",
    "tuning/test_inserts.py",
    "tuning/test_lora.py",
    "tuning/test_towers.py",
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


@pytest.fixture(scope="session")
def source(text_file, tmp_path_factory):
    """A run of 20 steps, which tests must not change."""
    workdir = tmp_path_factory.mktemp("runs") / "source"
    assert runs.loop.train(runs.config(text_file, train__steps=20), str(workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def compiled_once():
    """Compiles one program for the runs of a file that need the same."""
    with runs.compiling_once():
        yield
