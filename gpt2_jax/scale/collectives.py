"""Collectives of a compiled program: kinds, sizes, and the devices that take part."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpt2_jax.scale.hlo import Instruction, Program, array_bytes

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
    """Returns the first group, such as (0, 2) of `{{0,2},{1,3}}` or `[2,2]<=[2,2]T(1,0)`."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes = (tuple(map(int, iota[i].split(","))) for i in (1, 2))
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        ids = ids.transpose(tuple(map(int, iota[3].split(",")))) if iota[3] else ids
        return tuple(ids.reshape(shape)[0].tolist())
    return tuple(range(n_devices))
