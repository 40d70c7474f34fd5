"""The compiled train step, and what can be known of it before the first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gpt2_jax.errors import UserError
from gpt2_jax.model.attention import resolve_kernel
from gpt2_jax.model.profile import profile
from gpt2_jax.model.structure import Structure, structure
from gpt2_jax.train.mesh import by_rows, make_mesh, replicated
from gpt2_jax.train.optimizer import make_optimizer
from gpt2_jax.train.state import State, abstract, make_init
from gpt2_jax.train.step import Step, make_step

PROFILED_ROWS = 8  # sequences of the first batch on which Admin's variances are measured
CUDNN_CALL = "__cudnn$fmha"


@dataclass(frozen=True)
class Program:
    """A step compiled for a mesh, ready to run.

    Attributes:
      batch_shape: of the token ids (B, T+1), with their sharding.
      step: `(state, batch) -> (state, metrics)`; donates the state.
      init: makes the state before the first step. shapes: of the state, with shardings.
      attention: the kernel that is in the compiled step.
      peak_bytes: memory of one device at the step's peak, None where XLA does not say.
      compile_seconds: time taken by lowering and compiling.
    """

    structure: Structure
    mesh: Mesh
    batch_shape: jax.ShapeDtypeStruct
    step: Step
    init: Callable[[], State]
    shapes: State
    attention: str
    peak_bytes: int | None
    compile_seconds: float

    @property
    def devices(self) -> list[str]:
        """The kinds of the mesh's devices."""
        return [device.device_kind for device in self.mesh.devices.flat]

    def put(self, batch: np.ndarray) -> jax.Array:
        """Puts a batch (B, T+1) onto the devices, rows spread over them."""
        return jax.device_put(batch, by_rows(self.mesh))

    def start(self, batch: np.ndarray) -> State:
        """Returns the state before the first step, which uses this batch (B, T+1)."""
        state = self.init()
        return state._replace(params=profiled(self.structure, self.mesh, state.params, batch))

    def trial_seconds(self, batch: np.ndarray) -> float:
        """Returns how long a step takes here, measured on a state that is thrown away."""
        state, taken = self.init(), []
        for _ in range(3):
            started = time.monotonic()
            state, _ = self.step(state, self.put(batch))
            jax.block_until_ready(state)
            taken.append(time.monotonic() - started)
            if taken[0] > 5.0:
                break
        return min(taken)


def profiled(structure: Structure, mesh: Mesh, params: Any, batch: np.ndarray) -> Any:
    """Returns initial parameters with what the placement measures on the first batch (B, T+1)."""
    if not structure.placement.profiled:
        return params
    whole = replicated(mesh)
    measure = lambda params, tokens: profile(structure, params, tokens)
    tokens = jax.device_put(batch[:PROFILED_ROWS, :-1], whole)
    return jax.jit(measure, out_shardings=whole)(params, tokens)


def compile_program(config: ConfigDict) -> Program:
    """Compiles the train step of a resolved config.

    Raises:
      UserError: if the attention kernel that was asked for cannot be had, or memory is too small.
    """
    mesh = make_mesh(config)
    model = structure(config.model)
    optimizer = make_optimizer(config, model.infos)
    init, whole = make_init(config, model, optimizer, mesh), replicated(mesh)
    tokens = jax.ShapeDtypeStruct(
        (config.train.batch_size, config.data.seq_len + 1), jnp.int32, sharding=by_rows(mesh)
    )
    kernel = resolve_kernel(config.model, jax.default_backend())
    started = time.monotonic()
    step = jax.jit(
        make_step(config, model, optimizer, mesh), donate_argnums=0, out_shardings=(whole, whole)
    )
    shapes = abstract(init, mesh)
    compiled = _compile(step, shapes, tokens, kernel)
    return Program(
        structure=model,
        mesh=mesh,
        batch_shape=tokens,
        step=compiled,
        init=init,
        shapes=shapes,
        attention=kernel_of(compiled.as_text(), kernel),
        peak_bytes=peak_bytes(compiled),
        compile_seconds=time.monotonic() - started,
    )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns a device out of memory into one line that says what to lower."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the device has too little memory ({reason}); raise train.accumulation, lower "
            "train.batch_size, or set model.remat=block"
        ) from None


def _compile(step: Any, state: Any, tokens: Any, kernel: str) -> Any:
    try:
        with memory_errors():
            return step.lower(state, tokens).compile()
    except UserError:
        raise
    except Exception as error:
        if kernel == "cudnn" and "cudnn" in str(error).lower():
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model.attention=cudnn cannot be had here: {reason}; set model.attention=xla"
            ) from error
        raise


def kernel_of(hlo: str, wanted: str) -> str:
    """Returns the attention kernel found in a compiled program.

    Raises:
      UserError: if cudnn was wanted and is not there; nothing falls back in silence.
    """
    found = "cudnn" if CUDNN_CALL in hlo else "xla"
    if wanted == "cudnn" and found != "cudnn":
        raise UserError(
            "model.attention=cudnn, but the compiled step holds no cuDNN attention; "
            "set model.attention=xla to accept XLA's"
        )
    return found


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Returns the memory of one device at a program's peak, None where XLA does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    if jax.default_backend() == "cpu":  # whose own peak leaves the temporary ones out
        ends = found.argument_size_in_bytes + found.output_size_in_bytes
        return ends - found.alias_size_in_bytes + found.temp_size_in_bytes
    return found.peak_memory_in_bytes or None
