"""What an instruction of a compiled program does: its category in a profile, its kind in a plan."""

from __future__ import annotations

import re

from gpt2_jax.hlo.text import Instruction, Program

MATMULS, ATTENTION, NORMS, LOSS = "matmuls", "attention", "norms", "loss"
OPTIMIZER, COLLECTIVES, COPIES = "optimizer", "collectives", "copies"
ELEMENTWISE = "elementwise"  # and reductions: everything else
CATEGORIES = (
    *(MATMULS, ATTENTION, NORMS, LOSS, ELEMENTWISE),
    *(COPIES, OPTIMIZER, COLLECTIVES),
)
# Kinds of work, which a plan assumes different efficiencies for.
PRODUCTS, KERNELS, OTHER = "products", "kernels", "other"

# Scopes of `jax.named_scope` in the model and the train step.
_SCOPES = {name: re.compile(rf"\b{name}\b") for name in ("attention", "norm", "loss", "optimizer")}
# They contain other instructions, which a profile lists too.
_CONTROL = {"call", "conditional", "while"}
_COLLECTIVE = re.compile("all-reduce|all-gather|reduce-scatter|all-to-all|collective-|send|recv")
_PRODUCTS = {"dot", "convolution", "ragged-dot", "scaled-dot"}
_MOVES = {
    *("bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "copy-done"),
    *("copy-start", "dynamic-slice", "dynamic-update-slice", "gather", "get-tuple-element"),
    *("iota", "pad", "parameter", "reshape", "reverse", "slice", "transpose", "tuple"),
}
_PRODUCT_CALL = re.compile("cublas|gemm|matmul", re.IGNORECASE)


def category_of(program: Program, instruction: Instruction) -> str | None:
    """Returns one of `CATEGORIES`, by the part of the step; None for control flow.

    A fusion counts for the function that its result comes from, or as a matrix product if it
    contains one.
    """
    opcodes, source = _opcodes(program, instruction), instruction.source
    scope = next((name for name, pattern in _SCOPES.items() if pattern.search(source)), None)
    if opcodes & _CONTROL:
        return None
    if any(_COLLECTIVE.match(opcode) for opcode in opcodes):
        return COLLECTIVES
    if _is_attention_kernel(instruction) or scope == "attention":
        return ATTENTION
    if scope == "optimizer":
        return OPTIMIZER
    if is_product(program, instruction):
        return MATMULS
    if scope is not None:
        return {"norm": NORMS, "loss": LOSS}[scope]
    return COPIES if opcodes <= _MOVES else ELEMENTWISE


def work_of(program: Program, instruction: Instruction) -> str:
    """Returns the kind of work by the hardware that limits it, whichever part of the step it is.

    `products` (matrix products, with what is fused into them), `attention` (its kernels),
    `kernels` (those of `nn.fused`) or `other`.
    """
    if _is_attention_kernel(instruction):
        return ATTENTION
    if is_product(program, instruction):
        return PRODUCTS
    return KERNELS if "triton" in instruction.target else OTHER


def is_product(program: Program, instruction: Instruction) -> bool:
    """Returns whether an instruction is a matrix product, or contains one."""
    if instruction.op == "custom-call":
        return _PRODUCT_CALL.search(instruction.target) is not None
    return bool(_opcodes(program, instruction) & _PRODUCTS)


def _is_attention_kernel(instruction: Instruction) -> bool:
    if instruction.op != "custom-call":
        return False
    named = instruction.name + instruction.attributes
    return "fmha" in instruction.target or "splash" in named


def _opcodes(program: Program, instruction: Instruction) -> set[str]:
    """Returns the opcode of an instruction; those inside if it is a fusion."""
    if not instruction.is_fusion and instruction.op != "async-start":
        return {instruction.op}
    return {inner.op for inner in program.inside(instruction) if not inner.is_fusion}
