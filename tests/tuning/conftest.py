import pytest

from gpt2_jax.train import loop
from tests.train.test_loop import config


@pytest.fixture(scope="session")
def source(text_file, tmp_path_factory):
    """A run of 20 steps."""
    workdir = tmp_path_factory.mktemp("tuning") / "source"
    assert loop.train(config(text_file, train__steps=20), str(workdir)) == 0
    return workdir
