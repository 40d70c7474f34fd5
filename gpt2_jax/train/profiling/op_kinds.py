"""What each operation of a compiled program does, from the program's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MATMULS, ATTENTION, NORMS, LOSS = "matmuls", "attention", "norms", "loss"
OPTIMIZER, COLLECTIVES, COPIES = "optimizer", "collectives", "copies"
ELEMENTWISE = "elementwise"  # and reductions: everything else
CATEGORIES = (
    *(MATMULS, ATTENTION, NORMS, LOSS, ELEMENTWISE),
    *(COPIES, OPTIMIZER, COLLECTIVES),
)
# Scopes of `jax.named_scope` in the model and the train step.
SCOPES = {name: re.compile(rf"\b{name}\b") for name in ("attention", "norm", "loss", "optimizer")}

# They contain other operations, which a profile lists too.
CONTROL = {"call", "conditional", "while"}
COLLECTIVE = re.compile("all-reduce|all-gather|reduce-scatter|all-to-all|collective-|send|recv")
PRODUCTS = {"dot", "convolution", "ragged-dot", "scaled-dot"}
MOVES = {
    *("bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "copy-done"),
    *("copy-start", "dynamic-slice", "dynamic-update-slice", "gather", "get-tuple-element"),
    *("iota", "pad", "parameter", "reshape", "reverse", "slice", "transpose", "tuple"),
}
# Names of GPU kernels, for those that a profile assigns to no operation but a CUDA graph.
KERNELS = (
    (ATTENTION, re.compile("sdpa|cudnn|flash")),
    (COLLECTIVES, re.compile("nccl|all_reduce|AllReduce|nvshmem")),
    (MATMULS, re.compile("nvjet|gemm|cublas|cutlass|splitKreduce")),
    (NORMS, re.compile("^layer_norm")),
    (LOSS, re.compile("^cross_entropy")),
    (COPIES, re.compile("Memcpy|Memset|memcpy|memset")),
)

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) .*{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\(")
_CALLED = re.compile(r"calls=%?([\w.-]+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SHARED_NAME = re.compile(r'deduplicated_name="([^"]*)"')


@dataclass(frozen=True)
class Op:
    """An operation of a compiled program.

    Attributes:
      category: one of `CATEGORIES`, None for control flow. source: the traced function it is from.
    """

    category: str | None
    source: str = ""


@dataclass
class _Instruction:
    name: str
    opcode: str
    text: str

    def found(self, pattern: re.Pattern[str]) -> str:
        match = pattern.search(self.text)
        return match[1] if match else ""


@dataclass(frozen=True)
class Program:
    """The operations of a compiled program, by name and by the name of a GPU kernel.

    Attributes:
      module: the program's name in a profile.
    """

    module: str
    ops: dict[str, Op]
    kernels: dict[str, Op] = field(default_factory=dict)

    def find(self, op: str, kernel: str) -> Op:
        """Returns the operation that an event of a profile belongs to.

        Args:
          op: the name of the operation, '' if the profile has none. kernel: the event's name.
        """
        known = self.ops.get(op)
        if known is not None and not (known.category is None and kernel != op):
            return known
        if kernel in self.kernels:
            return self.kernels[kernel]
        named = (category for category, pattern in KERNELS if pattern.search(kernel))
        return Op(next(named, ELEMENTWISE))


def parse_program(hlo: str) -> Program:
    """Returns the operations of a compiled program.

    Args:
      hlo: its text, `jax.stages.Compiled.as_text()`.
    """
    module = re.match(r"HloModule ([\w.-]+)", hlo)
    computations: dict[str, list[_Instruction]] = {}
    for name, instruction in _instructions(hlo):
        computations.setdefault(name, []).append(instruction)
    ops, kernels = dict[str, Op](), dict[str, Op]()
    for instructions in computations.values():
        for one in instructions:
            ops[one.name] = op = Op(_category(one, computations), one.found(_SOURCE))
            for name in filter(None, (one.name, one.found(_SHARED_NAME))):
                kernels.setdefault(re.sub("[.-]", "_", name), op)
    return Program(module[1] if module else "", ops, kernels)


def _instructions(hlo: str) -> Iterator[tuple[str, _Instruction]]:
    """Yields the name of a computation and one of its instructions."""
    computation = ""
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            yield computation, _Instruction(match[1], match[2], line)
        elif match := _COMPUTATION.match(line):
            computation = match[1]


def _category(one: _Instruction, computations: dict[str, list[_Instruction]]) -> str | None:
    opcodes, source = _opcodes(one, computations), one.found(_SOURCE)
    target = one.found(_TARGET)
    scope = next((name for name, pattern in SCOPES.items() if pattern.search(source)), None)
    if opcodes & CONTROL:
        return None
    if any(COLLECTIVE.match(opcode) for opcode in opcodes):
        return COLLECTIVES
    if "fmha" in target or scope == "attention":
        return ATTENTION
    if scope == "optimizer":
        return OPTIMIZER
    if opcodes & PRODUCTS or re.search("gemm|matmul", target):
        return MATMULS
    if scope is not None:
        return {"norm": NORMS, "loss": LOSS}[scope]
    return COPIES if opcodes <= MOVES else ELEMENTWISE


def _opcodes(one: _Instruction, computations: dict[str, list[_Instruction]]) -> set[str]:
    """Returns the opcode of an instruction; those inside if it is a fusion."""
    called = one.found(_CALLED)
    if called not in computations:
        return {one.opcode}
    return set[str]().union(*(_opcodes(inner, computations) for inner in computations[called]))
