"""Freed memory stays with the process: updates after the first few meet no new pages."""

import subprocess
import sys

import pytest

# Each call needs `size` bytes of scratch memory, on each of two devices.
PROGRAM = """
import resource, sys
from tests.tools import tiny
from gpt2_jax.train.memory import keep_freed_memory

size, n_embd, keep = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "keep"
if keep:
    keep_freed_memory(tiny(model__n_embd=n_embd))
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("data",))
P = jax.sharding.PartitionSpec

@jax.jit
@jax.shard_map(mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
def step(x):
    big = x @ x.T  # float32 of `size` bytes
    return jax.lax.psum(big.max(), "data")

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
    """Returns the page faults of a call, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(size), str(n_embd), keep]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc's allocator what to do")
def test_scratch_memory_is_not_faulted_in_anew():
    pages = 2 * (100 << 20) / 4096
    assert faults(100 << 20, 1024, "leave") > pages / 2
    assert faults(100 << 20, 1024, "keep") < pages / 100
    assert faults(12 << 20, 64, "keep") < pages / 100
