"""The compiled train step, and its properties known before the first step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend
import numpy as np
from jax.sharding import Mesh

from gpt2_jax.config import Config
from gpt2_jax.config.capacity import FLOAT, parameter_bytes
from gpt2_jax.errors import UserError
from gpt2_jax.model.data_dependent_init import data_dependent_init
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.sublayer import resolve_kernel
from gpt2_jax.nn.attention_kernels import PLATFORMS
from gpt2_jax.nn.target import Target, target_of
from gpt2_jax.tasks.losses import AnyBatch, inputs_of
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.batch_shapes import BatchShapes, by_shape, window_shapes
from gpt2_jax.train.distillation import Teacher
from gpt2_jax.train.distributed.mesh import (
    by_rows,
    find_devices,
    make_mesh,
    own_rows,
    put_rows,
    replicated,
    to_mesh,
)
from gpt2_jax.train.distributed.processes import ALONE, Processes
from gpt2_jax.train.distributed.sharding import LayerSplit, make_layout
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.example_evaluation import ExampleEvaluator
from gpt2_jax.train.optim.optimizer import make_optimizer, trainable_infos
from gpt2_jax.train.state import State, make_init
from gpt2_jax.train.step import Step, make_step
from gpt2_jax.tuning.definition import define_tuned

INIT_ROWS = 8  # sequences of the first batch on which Admin's variances are measured
# What names a fused attention kernel in a compiled program.
KERNEL_CALLS = {"cudnn": "__cudnn$fmha", "splash": "splash_mha_fwd"}


@dataclass(frozen=True)
class CompiledStep:
    """A train step compiled for a mesh, ready to run.

    Attributes:
      batch_shapes: shapes, types and shardings of a batch, for each length of rows.
      tokens_per_step: as in `BatchShapes`.
      step: `(state, batch) -> (state, metrics)`; donates the state.
      init: returns the state before the first step.
      evaluator: of the model, for batches of the size of a micro-batch.
      shapes: shapes, types and shardings of the state.
      jaxpr: the step before compilation.
      attention: the kernel found in the compiled step.
      peak_bytes: peak memory of one device, None if XLA does not report it.
      compile_seconds: time spent lowering and compiling.
      hlo: returns the text of the compiled step.
    """

    model_def: ModelDef
    mesh: Mesh
    batch_shapes: Sequence[Any]
    tokens_per_step: int
    step: Step
    init: Callable[[], State]
    evaluator: Evaluator | ExampleEvaluator
    shapes: State
    jaxpr: jax.extend.core.ClosedJaxpr
    attention: str
    peak_bytes: int | None
    compile_seconds: float
    hlo: Callable[[], str]

    @property
    def devices(self) -> list[str]:
        """The kinds of the mesh's devices."""
        return [device.device_kind for device in self.mesh.devices.flat]

    @property
    def rows(self) -> np.ndarray:
        """The rows of a batch that this process reads."""
        return own_rows(self.mesh, self._n_rows)

    def put(self, batch: AnyBatch) -> Any:
        """Puts this process's `rows` of a batch on its devices."""
        return put_rows(batch, self.mesh, self._n_rows)

    @property
    def _n_rows(self) -> int:
        return jax.tree.leaves(self.batch_shapes[0])[0].shape[0]

    def start(self, batch: AnyBatch) -> State:
        """Returns the state before the first step.

        Args:
          batch: the first `INIT_ROWS` sequences of the first batch, or more.
        """
        state = self.init()
        params = apply_data_dependent_init(self.model_def, self.mesh, state.all_params, batch)
        return self.replace_params(state, params)

    def replace_params(self, state: State, params: Any) -> State:
        """Returns the state with new values of the model's parameters."""
        new = state.replace_params(params)
        return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), new, self.shapes)

    def taught(self, teacher_params: Any) -> CompiledStep:
        """Returns the step with the parameters of the teacher that it was compiled for."""
        step = self.step
        return replace(self, step=lambda state, batch: step(state, batch, teacher_params))

    def trial_seconds(self, batch: AnyBatch, processes: Processes = ALONE) -> float:
        """Returns the seconds per step, measured on a state that is then discarded."""
        state, seconds = self.init(), []
        for _ in range(3):
            started = time.monotonic()
            state, _ = self.step(state, self.put(batch))
            jax.block_until_ready(state)
            seconds.append(time.monotonic() - started)
            if processes.broadcast("trial step", seconds[0] > 5.0):
                break
        return min(seconds)


def apply_data_dependent_init(model_def: ModelDef, mesh: Mesh, params: Any, batch: AnyBatch) -> Any:
    """Returns the initial parameters after any initialization that depends on the first batch."""
    if not model_def.spec.data_dependent_init:
        return params
    measure = lambda params, inputs: data_dependent_init(model_def, params, *inputs)
    first = lambda x: to_mesh(x[:INIT_ROWS], replicated(mesh))
    inputs = jax.tree.map(first, inputs_of(batch))
    layout = make_layout(model_def, mesh)
    return jax.jit(measure, out_shardings=layout.shardings(params))(params, inputs)


def compile_step(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    batches: BatchShapes | None = None,
    others: bool = False,
    teacher: Teacher | None = None,
) -> CompiledStep:
    """Compiles the train step of a resolved config.

    Args:
      devices: what to compile for, in this machine or not; None for all of this machine's.
      batches: shapes of the batches; None for those of language modeling.
      others: whether to also compile `init` and the evaluator, at the same time: XLA uses only one
        core during most of a compilation.
      teacher: of `train.teacher`; its parameters are passed to `CompiledStep.taught`.

    Raises:
      UserError: if the requested attention kernel is not available, or memory is too small.
    """
    # While it lowers kernels, Pallas reads the GPU's generation from the default device.
    if config.train.teacher is not None and teacher is None:
        raise UserError("train.teacher is supported by `gpt2-jax train` alone; leave it unset")
    default = nullcontext() if devices is None else jax.default_device(devices[0])
    with default:
        devices = find_devices() if devices is None else devices
        batches = batches or window_shapes(config.train.batch_size, config.data.seq_len)
        return _compile_for(config, devices, batches, others, teacher)


@dataclass(frozen=True)
class _Programs:
    """The functions of a run before compilation.

    Attributes:
      init, step: jitted.
      evaluator: of the model.
      shapes: shapes, types and shardings of the state. batches: likewise, for each length of rows.
      taught: likewise of the parameters of the teacher, if there is one.
      kernel: the requested attention kernel.
    """

    model_def: ModelDef
    mesh: Mesh
    init: Any
    step: Any
    evaluator: Evaluator | ExampleEvaluator
    shapes: State
    batches: Sequence[Any]
    taught: Sequence[Any]
    kernel: str


def _define(
    config: Config, devices: Sequence[jax.Device], batches: BatchShapes, teacher: Teacher | None
) -> _Programs:
    opt, target = config.optimizer, target_of(devices[0])
    head = head_of(config.task, config.head)
    model = define_tuned(config.model, config.placement, config.tune, target, head)
    mesh = make_mesh(config.train, config.mesh, state_bytes(config, model), devices)
    layout = make_layout(model, mesh)
    layers = None if mesh.size == 1 else LayerSplit(layout)
    optimizer = make_optimizer(opt, trainable_infos(opt, model), layers)
    kernel = resolve_kernel(config.model, model.spec, target.platform)
    _check_platform(kernel, target.platform)
    init = make_init(config.seed, opt, model, optimizer, mesh)
    shapes = layout.abstract(jax.eval_shape(init))
    step = jax.jit(
        make_step(config, model, optimizer, mesh, teacher),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, shapes), replicated(mesh)),
    )
    abstract = lambda x: jax.ShapeDtypeStruct(
        (config.train.batch_size, *x.shape[1:]), x.dtype, sharding=by_rows(mesh)
    )
    taught = [] if teacher is None else [teacher.model_def]
    return _Programs(
        model_def=model,
        mesh=mesh,
        init=init,
        step=step,
        evaluator=_make_evaluator(config, model, mesh, batches),
        shapes=shapes,
        batches=[jax.tree.map(abstract, batch) for batch in batches.train],
        taught=[make_layout(one, mesh).abstract(one.shapes) for one in taught],
        kernel=kernel,
    )


def _make_evaluator(
    config: Config, model: ModelDef, mesh: Mesh, batches: BatchShapes
) -> Evaluator | ExampleEvaluator:
    micro_batch = config.train.batch_size // config.train.accumulation
    if batches.has_examples:
        return ExampleEvaluator(model, mesh, micro_batch, batches.evaluation)
    return Evaluator(model, mesh, config.data.seq_len, micro_batch)


def _compile_all(programs: _Programs, others: bool) -> tuple[Any, list[tuple[Any, Any]]]:
    """Returns `init`, compiled if `others` is true, and what `_compile` returns for each batch."""
    init, inputs = programs.init, programs.taught
    with ThreadPoolExecutor(2) as pool:
        if others:
            shapes = make_layout(programs.model_def, programs.mesh).abstract(
                programs.model_def.shapes
            )
            evaluation = pool.submit(programs.evaluator.compile, shapes)
            first = pool.submit(lambda: programs.init.lower().compile())
        steps = [
            _compile(programs.step, (programs.shapes, batch, *inputs), programs.kernel)
            for batch in programs.batches
        ]
        if others:
            init = first.result()
            evaluation.result()
    return init, steps


def _compile_for(
    config: Config,
    devices: Sequence[jax.Device],
    batches: BatchShapes,
    others: bool,
    teacher: Teacher | None,
) -> CompiledStep:
    started = time.monotonic()
    programs = _define(config, devices, batches, teacher)
    init, compiled = _compile_all(programs, others)
    steps = [program for _, program in compiled]
    jaxpr, longest = compiled[-1]
    peaks = [peak_bytes(program, programs.model_def.target) for program in steps]
    return CompiledStep(
        model_def=programs.model_def,
        mesh=programs.mesh,
        batch_shapes=programs.batches,
        tokens_per_step=batches.tokens_per_step,
        step=by_shape(programs.batches, steps),
        init=init,
        evaluator=programs.evaluator,
        shapes=programs.shapes,
        jaxpr=jaxpr,
        attention=kernel_of(longest.as_text(), programs.kernel),
        peak_bytes=None if None in peaks else max(peak for peak in peaks if peak is not None),
        compile_seconds=time.monotonic() - started,
        hlo=longest.as_text,
    )


def state_bytes(config: Config, model_def: ModelDef) -> int:
    """Returns the bytes of the state and of a gradient, which is float32."""
    n_params = sum(math.prod(x.shape) for x in jax.tree.leaves(model_def.shapes))
    return n_params * (parameter_bytes(config.optimizer) + FLOAT)


class TooLittleMemory(UserError):
    """The device has too little memory for a program.

    Attributes:
      reason: XLA's message, on one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the device has too little memory ({reason[:200]}); raise train.accumulation, lower "
            "train.batch_size, or set model.remat=block"
        )
        self.reason = reason


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns a device's out-of-memory error into a `TooLittleMemory` that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLittleMemory(" ".join(str(error).split())) from None


def _compile(
    step: Any, inputs: tuple[Any, ...], kernel: str
) -> tuple[jax.extend.core.ClosedJaxpr, Any]:
    try:
        with memory_errors():
            traced = step.trace(*inputs)
            return traced.jaxpr, traced.lower().compile()
    except UserError:
        raise
    except Exception as error:
        unsupported = isinstance(error, NotImplementedError) or "cudnn" in str(error).lower()
        if kernel == "cudnn" and unsupported:
            raise _unavailable(kernel, " ".join(str(error).split())[:200]) from error
        raise


def _check_platform(kernel: str, platform: str) -> None:
    needed = PLATFORMS.get(kernel, platform)
    if platform != needed:
        raise _unavailable(kernel, f"it needs a {needed.upper()}, and this is a {platform.upper()}")


def _unavailable(kernel: str, reason: str) -> UserError:
    return UserError(
        f"model.attention={kernel} is not available here: {reason}; set model.attention=auto"
    )


def kernel_of(hlo: str, wanted: str) -> str:
    """Returns the attention kernel found in a compiled program.

    Raises:
      UserError: if a fused kernel was requested and is missing; XLA is never used instead silently.
    """
    found = next((kernel for kernel, call in KERNEL_CALLS.items() if call in hlo), "xla")
    if wanted not in ("xla", found):
        raise UserError(
            f"model.attention={wanted}, but the compiled step does not call it; "
            "set model.attention=xla to accept XLA's attention"
        )
    return found


def peak_bytes(compiled: jax.stages.Compiled, target: Target) -> int | None:
    """Returns a program's peak memory on one device, None if XLA does not report it."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    # A CPU's reported peak omits temporaries; a program from the compilation cache reports none.
    if target.is_cpu or not found.peak_memory_in_bytes:
        arguments_and_outputs = found.argument_size_in_bytes + found.output_size_in_bytes
        return arguments_and_outputs - found.alias_size_in_bytes + found.temp_size_in_bytes
    return found.peak_memory_in_bytes
