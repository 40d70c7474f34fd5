"""Freed memory stays with the process: there are no page faults after the first steps."""

import runpy
import subprocess
import sys

import pytest

from gpt2_jax.config import freeze, replace
from gpt2_jax.train.malloc import _scratch_bytes

# Each call allocates `size` bytes on each of two devices, and frees them.
PROGRAM = """
import resource, sys
from tests.tools import tiny
from gpt2_jax.train.malloc import keep_freed_memory

import jax, jax.numpy as jnp

size, keep = int(sys.argv[1]), sys.argv[2] == "keep"
jax.config.update("jax_num_cpu_devices", 2)
if keep:
    changes = {name: int(value) for name, value in (x.split("=") for x in sys.argv[3:])}
    config = tiny(**changes)
    keep_freed_memory(config.model, config.data, config.train, config.mesh)
mesh = jax.make_mesh((2,), ("data",))
P = jax.sharding.PartitionSpec

@jax.jit
@jax.shard_map(mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False)
def step(x):
    return x @ x.T

x = jnp.ones((int((size / 4) ** 0.5), 8))

def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        step(x).block_until_ready()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / n

faults(10)
print(faults(20))
"""


def faults(size: int, keep: str, *changes: str) -> float:
    """Returns the page faults per call, in a separate process."""
    command = [sys.executable, "-c", PROGRAM, str(size), keep, *changes]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def all_pages(size: int) -> float:
    """Returns the page faults per call if every page of the result is faulted in again."""
    return 2 * size / 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc's allocator what to do")
def test_scratch_memory_is_not_faulted_in_again():
    large, small = 100 << 20, 12 << 20
    assert faults(large, "leave") > all_pages(large) / 2
    for change in ("model__n_embd=2048", "train__batch_size=4096"):
        assert faults(large, "keep", change) < all_pages(large) / 4
    assert faults(small, "keep") < all_pages(small) / 4


# What XLA reports for the compiled steps: 41, 24 and 73 MB.
@pytest.mark.parametrize(
    ("name", "vocab_size", "devices", "megabytes"),
    [
        ("quickstart", 257, 1, 38),
        ("quickstart", 257, 2, 21),
        ("ablations/translation", 2000, 1, 53),
    ],
)
def test_estimate_of_scratch_memory(name, vocab_size, devices, megabytes):
    config = freeze(runpy.run_path(f"configs/{name}.py")["get_config"]())
    config = replace(config, {"model.vocab_size": vocab_size, "mesh.data": devices})
    found = _scratch_bytes(config.model, config.data, config.train, config.mesh)
    assert found / 1e6 == pytest.approx(megabytes, abs=0.6)
