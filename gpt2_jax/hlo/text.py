"""Reads the text of a compiled program: its instructions, and how often each runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

WIDTHS = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "s4", "u4"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+)\s+([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\](\{[^}]*\})?")
_MODULE = re.compile(r"^HloModule ([\w.\-]+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      type: of its result. op: such as `dot`. arguments: the text in parentheses.
      attributes: the text after it. is_root: whether it is its computation's result.
    """

    name: str
    type: str
    op: str
    arguments: str
    attributes: str
    is_root: bool

    @cached_property
    def source(self) -> str:
        """The traced function that it comes from, with its scopes; '' if the text has none."""
        return self.found(_SOURCE)

    @cached_property
    def target(self) -> str:
        """What a custom call calls; '' for other instructions."""
        return self.found(_TARGET)

    def found(self, pattern: re.Pattern[str]) -> str:
        """Returns the first group of a pattern in the attributes, '' if it is not there."""
        match = pattern.search(self.attributes)
        return match[1] if match else ""

    @property
    def is_fusion(self) -> bool:
        """Whether it is several fused instructions, possibly run asynchronously."""
        return self.op in ("fusion", "fusion-start")

    @cached_property
    def operands(self) -> list[str]:
        """The names of the instructions whose results it uses."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @cached_property
    def called(self) -> list[str]:
        """The computations that it calls; for a loop, its body."""
        found = _CALLED.findall(self.attributes)
        return [name for names in found for name in re.findall(r"%([\w.\-]+)", names)]


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      name: of the program, as in a profile. computations: by name. entry: the first to run.
    """

    name: str
    computations: dict[str, Computation]
    entry: str

    def walk(self, name: str | None = None, times: int = 1) -> Iterator[tuple[str, str, int]]:
        """Yields (computation, instruction, how often it runs), without the inside of fusions.

        Both branches of a conditional count.
        """
        name = self.entry if name is None else name
        for instruction in self.computations[name].values():
            yield name, instruction.name, times
            if instruction.op == "while":
                n = times * self.trip_count(instruction)
                yield from self.walk(instruction.called[0], n)
            elif instruction.op in ("call", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self.walk(called, times)

    def trip_count(self, loop: Instruction) -> int:
        """Returns how often the body of a loop runs; 1 if the program does not say.

        XLA for TPUs does not state it, but the loops of `lax.scan` count from 0 to the only
        constant in their condition.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        body = self.computations[condition[1]] if condition else {}
        limits = [i.arguments for i in body.values() if i.op == "constant" and "s32[]" in i.type]
        return int(limits[0]) if len(limits) == 1 and limits[0].isdigit() else 1

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields the instructions of a fusion, including those of fusions within it."""
        for name in instruction.called:
            for inner in self.computations[name].values():
                yield inner
                if inner.is_fusion:
                    yield from self.inside(inner)


def parse(text: str) -> Program:
    """Returns a program from its text, as `Compiled.as_text` returns it."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            root, name, type_, op, rest = found.groups()
            arguments, attributes = _split(rest)
            current[name] = Instruction(name, type_, op, arguments, attributes, root is not None)
    module = _MODULE.match(text)
    return Program(module[1] if module else "", computations, entry)


def _split(rest: str) -> tuple[str, str]:
    """Splits the text after an opening parenthesis at the one that closes it."""
    depth = 1
    for at, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:at], rest[at + 1 :]
    return rest, ""


def array_bytes(type_: str, *, on_chip: bool = False) -> int:
    """Returns the bytes of all arrays in a type, without padding.

    Args:
      on_chip: whether to count arrays that a TPU keeps in memory on the chip.
    """
    return sum(array_sizes(type_, on_chip=on_chip))


def array_sizes(type_: str, *, on_chip: bool = False) -> list[int]:
    """Returns the bytes of each array in a type; the argument is that of `array_bytes`."""
    sizes = []
    for dtype, shape, layout in _ARRAY.findall(type_):
        counts = on_chip or not re.search(r"S\([1-9]", layout)
        lengths = [int(length) for length in shape.split(",") if length]
        sizes.append(counts * WIDTHS.get(dtype, 0) * math.prod(lengths))
    return sizes


def array_shape(type_: str) -> tuple[int, ...]:
    """Returns the shape of a type that is one array."""
    (found,) = _ARRAY.findall(type_)
    return tuple(int(length) for length in found[1].split(",") if length)
