"""The operations of a compiled program by the names that a profile has for them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gpt2_jax.hlo.kinds import (
    ATTENTION,
    COLLECTIVES,
    COPIES,
    ELEMENTWISE,
    LOSS,
    MATMULS,
    NORMS,
    category_of,
)
from gpt2_jax.hlo.text import parse

# Names of GPU kernels, for those that a profile assigns to no operation but a CUDA graph.
KERNELS = (
    (ATTENTION, re.compile("sdpa|cudnn|flash")),
    (COLLECTIVES, re.compile("nccl|all_reduce|AllReduce|nvshmem")),
    (MATMULS, re.compile("nvjet|gemm|cublas|cutlass|splitKreduce")),
    (NORMS, re.compile("^layer_norm")),
    (LOSS, re.compile("^cross_entropy")),
    (COPIES, re.compile("Memcpy|Memset|memcpy|memset")),
)
_SHARED_NAME = re.compile(r'deduplicated_name="([^"]*)"')


@dataclass(frozen=True)
class Op:
    """An operation of a compiled program.

    Attributes:
      category: as of `category_of`. source: the traced function it is from.
    """

    category: str | None
    source: str = ""


@dataclass(frozen=True)
class ProgramOps:
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


def program_ops(hlo: str) -> ProgramOps:
    """Returns the operations of a compiled program.

    Args:
      hlo: its text, `jax.stages.Compiled.as_text()`.
    """
    program = parse(hlo)
    ops, kernels = dict[str, Op](), dict[str, Op]()
    for body in program.computations.values():
        for one in body.values():
            ops[one.name] = op = Op(category_of(program, one), one.source)
            for name in filter(None, (one.name, one.found(_SHARED_NAME))):
                kernels.setdefault(re.sub("[.-]", "_", name), op)
    return ProgramOps(program.name, ops, kernels)
