"""Freed memory stays with the process: there are no page faults after the first steps."""

import subprocess
import sys

import pytest

# Each call allocates `size` bytes on each of two devices, and frees them.
PROGRAM = """
import resource, sys
from tests.tools import tiny
from gpt2_jax.train.malloc import keep_freed_memory

size, n_embd, keep = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "keep"
if keep:
    keep_freed_memory(tiny(model__n_embd=n_embd).model)
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
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


def faults(size: int, n_embd: int, keep: str) -> float:
    """Returns the page faults per call, in a separate process."""
    command = [sys.executable, "-c", PROGRAM, str(size), str(n_embd), keep]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def all_pages(size: int) -> float:
    """Returns the page faults per call if every page of the result is faulted in again."""
    return 2 * size / 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc's allocator what to do")
def test_scratch_memory_is_not_faulted_in_again():
    large, small = 100 << 20, 12 << 20
    assert faults(large, 1024, "leave") > all_pages(large) / 2
    assert faults(large, 1024, "keep") < all_pages(large) / 4
    assert faults(small, 64, "keep") < all_pages(small) / 4
