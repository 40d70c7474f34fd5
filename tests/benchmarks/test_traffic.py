"""The work of a GPU's program, against counts by hand."""

from pathlib import Path

from benchmarks.traffic import Work, product_flops, work_by_category
from gpt2_jax.hlo.text import parse

GPU = Path(__file__).parent.parent / "hlo" / "gpu.hlo"


def test_work_has_bytes_and_the_longer_of_both_times():
    """Products are limited by FLOPs here, 12 of (16, 8) x (8, 4), and other work by bandwidth."""
    program = parse(GPU.read_text())
    flops = 2 * 16 * 8 * 4
    product = program.computations["body"]["gemm_fusion"]
    assert product_flops(program, product) == flops
    assert product_flops(program, program.computations["body"]["slice_fusion"]) == 0
    found = work_by_category(program, 0.0, bandwidth=1e3, flops=100.0)
    assert found["matmuls"] == Work(12 * ((128 + 32) * 2 + 64 * 4), 12 * flops / 100)
    assert found["attention"] == Work(4 * 128 * 2, 4 * 128 * 2 / 1e3)
    copied = 32 * 4 + 4 + 32 * 2 + 64 * 4 + 4 + 64 * 4
    assert found["copies"] == Work(12 * copied, 12 * copied / 1e3)
    slow = work_by_category(program, 3e3, bandwidth=1e3, flops=100.0)
    assert slow["attention"].seconds == 30.0
    assert work_by_category(program, 0.0, 1.0, 1e9)["matmuls"].seconds == found["matmuls"].moved
