"""Bytes and collectives of small programs, as XLA prints them, against counts by hand."""

from pathlib import Path

import pytest

from gpt2_jax.hlo.collectives import Collective, find_collectives
from gpt2_jax.hlo.kinds import category_of, work_of
from gpt2_jax.hlo.text import array_bytes, parse
from gpt2_jax.hlo.traffic import memory_traffic

# A scan over 12 layers that slices a stacked weight, multiplies by it, writes the result into a
# stack, and reduces a gradient over two groups of devices.
GPU = (Path(__file__).parent / "gpu.hlo").read_text()


def traffic(text):
    return memory_traffic(parse(text), work_of)


def test_bytes_of_slices_updates_and_loops_are_those_moved():
    # Each of 12 iterations reads a slice of 32 floats and an index, and writes 32 bf16; the
    # product reads 128 + 32 bf16 and writes 64 floats; 64 floats and an index are read to update
    # 64 floats in place.
    sliced, product, updated = 32 * 4 + 4 + 32 * 2, (128 + 32) * 2 + 64 * 4, 64 * 4 + 4 + 64 * 4
    assert traffic(GPU) == {
        "products": 12 * product,
        "kernels": 2 * 128 * 2 + 16 * 4,
        "attention": 4 * 128 * 2,
        "other": 12 * (sliced + updated),
    }


def test_plan_and_profile_count_the_same_bytes():
    """By the kind of work, and by the part of the step."""
    by_part = memory_traffic(parse(GPU), category_of)
    assert by_part.keys() == {"matmuls", "attention", "copies", "elementwise"}
    assert by_part["matmuls"] == traffic(GPU)["products"]
    assert sum(by_part.values()) == sum(traffic(GPU).values())


def test_fusion_that_runs_asynchronously_moves_the_same_bytes():
    """As jax 0.11 writes them."""
    plain = "%slice_fusion = bf16[8,4]{1,0} fusion(%weights, %layer)"
    start = (
        "%start.1 = ((f32[12,8,4]{2,1,0}, s32[]), bf16[8,4]{1,0}) fusion-start(%weights, %layer)"
    )
    done = "  %slice_fusion = bf16[8,4]{1,0} fusion-done(%start.1)"
    lines = [line for line in GPU.splitlines() if plain in line]
    changed = GPU.replace(lines[0], f"{lines[0].replace(plain, start)}\n{done}")
    assert changed != GPU
    assert traffic(changed) == traffic(GPU)


def test_collectives_are_found_with_their_groups_and_counted_per_iteration():
    assert find_collectives(parse(GPU), 4) == [
        Collective("all-gather", 4 * 768 * 4, (0, 1, 2, 3), 1),
        Collective("all-reduce", 384 * 4, (0, 2), 1),
        Collective("reduce-scatter", 64 * 4, (0, 1), 12),
    ]


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("{{1,5},{0,4}}", (1, 5)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=8,'b'=1] {'a'}", tuple(range(8))),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 1)),
        ("mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'b'}", (0, 1, 4, 5)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("{}", tuple(range(8))),
    ],
)
def test_groups_of_devices_are_read_in_every_notation(text, group):
    lines = [line for line in GPU.splitlines() if "%all-reduce.1 =" in line]
    line = lines[0].replace("[2,2]<=[2,2]T(1,0)", text)
    found = find_collectives(parse(GPU.replace(lines[0], line)), 8)
    assert [one.group for one in found if one.kind == "all-reduce"] == [group]


def test_bytes_sent_are_those_of_a_ring():
    gather, reduce, scatter = find_collectives(parse(GPU), 4)
    assert gather.sent_bytes == 3 * 768 * 4
    assert reduce.sent_bytes == 384 * 4  # half of it twice
    assert scatter.sent_bytes == 32 * 4


def test_loop_without_a_stated_count_runs_to_the_constant_of_its_condition():
    """As on TPUs."""
    unstated = GPU.replace(', backend_config={"known_trip_count":{"n":"12"}}', "")
    assert unstated != GPU
    assert traffic(unstated) == traffic(GPU)
    unknown = unstated.replace("constant(12)", "constant({...})")
    assert traffic(unknown)["products"] == traffic(GPU)["products"] / 12


SCATTER = """
%fused_scatter (p0: f32[512,16], p1: s32[8,1], p2: f32[8,16]) -> f32[512,16] {
  %p0 = f32[512,16]{1,0} parameter(0)
  %p1 = s32[8,1]{1,0} parameter(1)
  %p2 = f32[8,16]{1,0} parameter(2)
  ROOT %scatter.1 = f32[512,16]{1,0} scatter(%p0, %p1, %p2), to_apply=%add
}

ENTRY %main (x: f32[512,16], i: s32[8,1], u: f32[8,16]) -> f32[512,16] {
  %x = f32[512,16]{1,0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  %u = f32[8,16]{1,0} parameter(2)
  ROOT %scatter_fusion = f32[512,16]{1,0} fusion(%x, %i, %u), kind=kInput, calls=%fused_scatter
}
"""


def test_scatter_moves_only_its_updates():
    """Reads indices and updates, and reads and writes what they change."""
    updates = 8 * 16 * 4
    assert traffic(SCATTER) == {"other": 8 * 4 + updates + 2 * updates}


# A TPU overlaps a gather with two products, each of which contains one step of it; S(1) is memory
# on the chip.
TPU = (Path(__file__).parent / "tpu.hlo").read_text()


def test_memory_on_a_tpus_chip_does_not_count():
    product = (64 * 128 + 8 * 128) * 2
    assert traffic(TPU) == {"products": 2 * product, "other": 8 * 64 * 2}


def test_collective_in_steps_that_are_fused_with_products_counts_once():
    assert find_collectives(parse(TPU), 2) == [Collective("all-gather", 64 * 128 * 2, (0, 1), 1)]


def test_bytes_of_types():
    assert array_bytes("f32[]") == 4
    assert array_bytes("(bf16[3,5]{1,0}, /*index=1*/pred[7]{0}, s64[2]{0})") == 30 + 7 + 16
    assert array_bytes("f8e4m3fn[4,4]{1,0}") == 16
    assert array_bytes("token[]") == 0
