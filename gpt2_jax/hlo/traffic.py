"""Bytes that a compiled program moves between the device's memory and its chip.

Each instruction that runs by itself (a fusion, a matrix product or a kernel) reads each input once
and writes each output once. This is the least that the program as compiled must move: what one
instruction computes for another is written and read again, even if a cache may hold it, and what
one instruction reads several times counts once, since a cache should hold it. Of an array that is
only sliced, only the slices count, and of one that is updated in place, only the updates.
Collectives do not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TypeVar

from gpt2_jax.hlo.collectives import KINDS
from gpt2_jax.hlo.text import Computation, Instruction, Program, array_bytes, array_sizes

Kind = TypeVar("Kind")

FREE = frozenset(
    (
        *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota", "opt-barrier"),
        *("while", "call", "conditional", "async-start", "after-all", "add-dependency"),
        *("partition-id", "replica-id"),
    )
)
VIEWS = ("bitcast", "reshape")
SLICES = ("slice", "dynamic-slice", "gather")
# Custom calls that only reserve memory or state a property.
_NO_CALL = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "AsyncCollective")


def memory_traffic(
    program: Program, kind_of: Callable[[Program, Instruction], Kind]
) -> dict[Kind, int]:
    """Returns the bytes moved in one run by each kind of work.

    Args:
      kind_of: returns the kind of an instruction: `kinds.category_of` or `kinds.work_of`.
    """
    total: Counter[Kind] = Counter()
    for computation, name, times in program.walk():
        body = program.computations[computation]
        if moved := instruction_bytes(program, body, body[name]):
            total[kind_of(program, body[name])] += times * moved
    return dict(total)


def instruction_bytes(program: Program, body: Computation, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes."""
    op = instruction.op
    if op in FREE or op.endswith("-done") or op.removesuffix("-start") in KINDS:
        return 0
    if op == "custom-call" and instruction.target.startswith(_NO_CALL):
        return 0
    inputs = [array_bytes(body[name].type) for name in instruction.operands if name in body]
    if instruction.is_fusion:
        return _fusion_bytes(program.computations[instruction.called[0]], inputs)
    output = array_bytes(instruction.type)
    if op in SLICES:
        return 2 * output
    if op in ("dynamic-update-slice", "scatter"):
        return 2 * inputs[1 if op == "dynamic-update-slice" else -1]
    if op == "copy-start":  # its type has both arrays
        return output
    if op == "slice-start":
        return array_sizes(instruction.type)[1]
    return output + sum(inputs)


def _fusion_bytes(body: Computation, inputs: list[int]) -> int:
    users: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in body.values():
        for name in instruction.operands:
            users[name].append(instruction)
    total = 0
    for instruction in body.values():
        if instruction.op == "parameter":
            total += _read(instruction, inputs[int(instruction.arguments)], users)
        elif instruction.is_root:
            results = [body[name] for name in instruction.operands if name in body]
            for result in results if instruction.op == "tuple" else [instruction]:
                total += _written(result, body)
    return total


def _read(source: Instruction, size: int, users: dict[str, list[Instruction]]) -> int:
    """Returns the bytes that a fusion reads of a parameter of this size."""
    total = 0
    for user in users[source.name]:
        is_first = user.operands[0] == source.name
        if user.op in SLICES and is_first:
            total += array_bytes(user.type)
        elif user.op in VIEWS:
            total += _read(user, size, users)
        elif not (user.op in ("dynamic-update-slice", "scatter") and is_first):
            return size
    return min(total, size)


def _written(result: Instruction, body: Computation) -> int:
    """Returns the bytes that a fusion writes of a result."""
    while result.op in VIEWS and result.operands[0] in body:
        result = body[result.operands[0]]
    if result.op == "dynamic-update-slice":
        return array_bytes(body[result.operands[1]].type)
    if result.op == "scatter":  # reads what it adds to
        return 2 * array_bytes(body[result.operands[-1]].type)
    return array_bytes(result.type)
