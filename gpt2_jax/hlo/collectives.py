"""Collectives of a compiled program: kinds, sizes, and the devices that take part."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpt2_jax.hlo.text import Instruction, Program, array_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """A collective, and how often it runs.

    Attributes:
      bytes: of the whole array that is gathered, or of the one that a device contributes.
      group: the devices that exchange it, by number; empty if the program does not say.
      times: how often it runs in a step.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    times: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends each time, with a ring."""
        share = (len(self.group) - 1) / len(self.group)
        shares = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.bytes * shares.get(self.kind, share)


def find_collectives(program: Program, n_devices: int) -> list[Collective]:
    """Returns the collectives of a program, those between a device and itself excluded.

    A TPU's compiler may split one into steps, each fused with computation: it counts once.
    """
    found, seen = [], set()
    for computation, name, times in program.walk():
        body = program.computations[computation]
        for inner, operands in _of_instruction(program, body[name], body):
            part = re.search(r'(?:chain_id|async_collective_name)="([^"]*)"', inner.attributes)
            key = (computation, part[1] if part else name, inner.op.removesuffix("-start"))
            if part and key in seen:
                continue
            seen.add(key)
            made = _collective(inner, operands, times, n_devices)
            if len(made.group) > 1:
                found.append(made)
    return found


def _of_instruction(
    program: Program, instruction: Instruction, body: dict[str, Instruction]
) -> Iterator[tuple[Instruction, list[str]]]:
    """Yields the collectives that an instruction is or contains, and the types of operands."""
    if instruction.op.removesuffix("-start") in KINDS:
        yield instruction, [body[name].type for name in instruction.operands if name in body]
    elif instruction.is_fusion:
        for name in instruction.called:
            inner = program.computations[name]
            for one in inner.values():
                yield from _of_instruction(program, one, inner)


def _collective(
    instruction: Instruction, operands: list[str], times: int, n_devices: int
) -> Collective:
    kind = instruction.op.removesuffix("-start")
    group = _group(instruction.attributes, n_devices)
    size = sum(array_bytes(type_, on_chip=True) for type_ in operands)
    if kind == "all-gather":
        size *= len(group)
    return Collective(kind, size, group, times)


def _group(attributes: str, n_devices: int) -> tuple[int, ...]:
    """Returns the first group of devices; all devices if the text is not understood.

    XLA lists them as `{{0,2},{1,3}}`, as rows of an array, `[2,2]<=[2,2]T(1,0)`, or as axes of one,
    `mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}`.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return _numbers(listed[1])
    if rows := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return tuple(_numbered(rows[2]).reshape(_numbers(rows[1]))[0].tolist())
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", attributes
    )
    if mesh:
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
        shape, axes = tuple(map(int, sizes)), re.findall(r"'(\w+)'", mesh[3])
        ids = (_numbered(mesh[2]) if mesh[2] else np.arange(math.prod(shape))).reshape(shape)
        first = tuple(slice(None) if name in axes else 0 for name in names)
        return tuple(ids[first].ravel().tolist())
    return tuple(range(n_devices))


def _numbered(text: str) -> np.ndarray:
    """Returns the array `[2,4]T(1,0)`: 0 to 7 with the shape (2, 4), transposed."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert found is not None
    shape, order = found.groups()
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
