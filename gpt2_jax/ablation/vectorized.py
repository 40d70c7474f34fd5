"""Vectorized training: one program trains several runs that differ only in numbers.

Runs are distributed over the devices. Each device takes several steps of one run at a time, so the
run's state stays in its caches and devices do not wait for each other. Each run is independent of
those trained with it, bit for bit on a CPU.

In shape suffixes, R is the number of runs and N a number of steps.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt2_jax.config import Config, difference, flatten, replace, value_of
from gpt2_jax.data.batch import Batch
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.sublayer import resolve_kernel
from gpt2_jax.train.compiled_step import memory_errors, peak_bytes
from gpt2_jax.train.diagnostics import diagnostic_rows, make_diagnostics
from gpt2_jax.train.evaluation import batch_sums
from gpt2_jax.train.optim.frozen_params import join
from gpt2_jax.train.optim.optimizer import make_optimizer, trainable_infos
from gpt2_jax.train.optim.schedule import warmup_steps
from gpt2_jax.train.state import State, jit_once, new_state
from gpt2_jax.train.step import Metrics, make_step

RUNS = "runs"  # mesh axis
STEPS_PER_DISPATCH = 25
TIMED_DISPATCHES = 5
SMALL_MODEL = 10_000_000  # up to this many parameters, several models use a device better than one
# Fields that are arguments of the compiled step: a new value does not recompile it.
HYPERPARAMETERS = (
    "optimizer.peak_lr",
    "optimizer.warmup_steps",
    "optimizer.final_lr_ratio",
    "optimizer.weight_decay",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.eps",
    "optimizer.momentum",
)
# Fields that only determine initial values.
INIT_FIELDS = (
    "seed",
    "model.init_std",
    "placement.init",
    "placement.residual_init",
    "placement.value_init",
    "placement.query_init",
    "placement.key_init",
    "placement.embedding_std",
    "placement.gate_bias",
)
WANDB_FIELDS = ("track.wandb.name", "track.wandb.tags", "track.wandb.group")  # not in any program

Hyperparameters = dict[str, Any]  # a value for each field in HYPERPARAMETERS
Tree = Any


def with_warmup_steps(config: Config) -> Config:
    """Returns the config with its warm-up in steps, which are a hyperparameter."""
    warmup = warmup_steps(config.optimizer, config.train.steps)
    return replace(config, {"optimizer.warmup_steps": warmup, "optimizer.warmup_fraction": 0.0})


def program_key(config: Config) -> str:
    """Returns a key that resolved configs share if and only if one program can train them."""
    free = {*HYPERPARAMETERS, *INIT_FIELDS, *WANDB_FIELDS}
    return json.dumps(
        {n: v for n, v in flatten(with_warmup_steps(config)).items() if n not in free}, default=str
    )


class VectorizedPrograms:
    """The compiled programs that train, evaluate and diagnose `width` runs at a time.

    Each is compiled once, for any number of steps and all runs whose configs share `program_key`.

    Args:
      config: resolved config of any of the runs.
      width: number of runs; rounded up to a multiple of the number of devices.
      devices: default: all, or as many as there are runs.
      vmapped: whether the runs on a device advance together (`vmap`), which suits a GPU that a
        single run does not fill, or one after the other (`lax.map`).

    Raises:
      ValueError: if initial values depend on the data and so cannot be computed together.
    """

    def __init__(
        self,
        config: Config,
        width: int,
        devices: Sequence[jax.Device] | None = None,
        vmapped: bool = False,
    ) -> None:
        self.config, self.key = with_warmup_steps(config), program_key(config)
        self.model_def = define_model(config.model, config.placement)
        if self.model_def.spec.data_dependent_init:
            raise ValueError("vectorized training does not support data-dependent initial values")
        devices = (devices or jax.devices())[:width]
        self.width = -(-width // len(devices)) * len(devices)
        mesh = Mesh(devices, (RUNS,), axis_types=(AxisType.Auto,))
        self.device_kind: str = devices[0].device_kind
        platform = self.model_def.target.platform
        self.attention = resolve_kernel(config.model, self.model_def.spec, platform)
        self.by_run = NamedSharding(mesh, PartitionSpec(RUNS))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.vmapped = vmapped
        self._map = jax.vmap if vmapped else _sequential_map
        runs, shared = self.by_run.spec, self.replicated.spec
        sharded = partial(jax.shard_map, mesh=mesh, out_specs=runs, check_vma=False)
        self._train = jax.jit(
            sharded(self._advance, in_specs=(runs, runs, runs, shared)), donate_argnums=0
        )
        self._compiled: dict[int, jax.stages.Compiled] = {}
        self.eval_sums = jax.jit(sharded(self._sums, in_specs=(runs, shared, shared)))
        self.diagnostics = jax.jit(sharded(self._diagnostics, in_specs=(runs, shared, runs)))
        self._inits: dict[tuple, Callable[[np.uint32], State]] = {}

    @classmethod
    def fastest(cls, config: Config, width: int) -> VectorizedPrograms:
        """Returns programs for all devices, vmapped or not, whichever is faster.

        One that does not fit in memory is not chosen. On a CPU, runs are never vmapped: that is
        slower, and the bits would depend on the number of runs. Neither are deterministic runs,
        because timings are not deterministic.
        """
        if jax.default_backend() == "cpu" or config.train.deterministic:
            return cls(config, width)

        def seconds(programs: VectorizedPrograms) -> float:
            try:
                return programs.seconds_per_step()
            except (UserError, jax.errors.JaxRuntimeError):
                return math.inf

        return min((cls(config, width, vmapped=vmapped) for vmapped in (False, True)), key=seconds)

    def seconds_per_step(self, n: int = 5) -> float:
        """Returns the median seconds per step of all runs, excluding compilation."""
        trainer, times = VectorizedTrainer([self.config] * self.width, self), []
        tokens = np.zeros((self.width, STEPS_PER_DISPATCH, *self._batch_shape), np.int32)
        jax.block_until_ready(trainer.advance(tokens, 1))
        for _ in range(TIMED_DISPATCHES):
            started = time.monotonic()
            jax.block_until_ready(trainer.advance(tokens, n))
            times.append((time.monotonic() - started) / n)
        return statistics.median(times)

    def compile_all(self) -> None:
        """Compiles the programs for training, evaluation and diagnostics."""
        self.train_step()
        trainer = VectorizedTrainer([self.config] * self.width, self)
        rows, length = self._batch_shape
        tokens = np.zeros((rows // self.config.train.accumulation, length), np.int32)
        weights = np.ones(tokens[:, 1:].shape, np.float32)
        jax.block_until_ready(trainer.eval_sums(0, Batch(tokens, weights)))
        if self.config.track.diagnostics_every is not None:
            trainer.diagnostics(0, np.zeros((self.width, rows, length), np.int32))

    @property
    def _batch_shape(self) -> tuple[int, int]:
        return self.config.train.batch_size, self.config.data.seq_len + 1

    def lower(self, n_max: int = STEPS_PER_DISPATCH) -> jax.stages.Lowered:
        """Returns the lowered program for up to `n_max` steps; allocates and compiles nothing."""
        values = hyperparameters(self.config)
        opt, optimizer = self.config.optimizer, self._optimizer(values)
        init = lambda seed: new_state(opt, self.model_def, optimizer, seed)
        one = (
            jax.eval_shape(init, np.uint32(0)),
            values,
            jax.ShapeDtypeStruct((n_max, *self._batch_shape), jnp.int32),
        )
        of_runs = lambda x: jax.ShapeDtypeStruct(
            (self.width, *x.shape), x.dtype, sharding=self.by_run
        )
        return self._train.lower(*jax.tree.map(of_runs, one), jax.ShapeDtypeStruct((), jnp.int32))

    def train_step(self, n_max: int = STEPS_PER_DISPATCH) -> jax.stages.Compiled:
        """Returns the program for up to `n_max` steps, compiled at its first use."""
        if n_max not in self._compiled:
            with memory_errors():
                self._compiled[n_max] = self.lower(n_max).compile()
        return self._compiled[n_max]

    @property
    def peak_bytes(self) -> int | None:
        """One run's share of a device's peak memory in a step."""
        peak = peak_bytes(self.train_step(), self.model_def.target)
        return peak and peak * self.by_run.mesh.size // self.width

    def initial_state(self, config: Config) -> State:
        """Returns a run's state before the first step, on the host."""
        # One program for all seeds of otherwise equal configs.
        key = tuple(value_of(config, name) for name in INIT_FIELDS if name != "seed")
        if key not in self._inits:
            model = define_model(config.model, config.placement)
            optimizer = self._optimizer(hyperparameters(config))
            init = lambda seed: new_state(config.optimizer, model, optimizer, seed)
            self._inits[key] = jit_once(init, None, model.target)
        return jax.device_get(self._inits[key](np.uint32(config.seed)))

    def _advance(
        self, states: State, values: Hyperparameters, tokens_RNBT1: jax.Array, n: jax.Array
    ) -> Any:
        one = lambda x: self._advance_run(x[0], x[1], x[2], n)
        return self._map(one)((states, values, tokens_RNBT1))

    def _advance_run(
        self, state: State, values: Hyperparameters, tokens_NBT1: jax.Array, n: jax.Array
    ) -> tuple[State, Metrics]:
        config = replace(self.config, values)
        step = make_step(config, self.model_def, self._optimizer(values), None)
        n_max = tokens_NBT1.shape[0]
        like = jax.eval_shape(step, state, Batch(tokens_NBT1[0]))[1]
        empty = jax.tree.map(lambda x: jnp.zeros((n_max, *x.shape), x.dtype), like)

        def one(i: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, metrics = step(carry[0], Batch(tokens_NBT1[i]))
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), carry[1], metrics)

        return lax.fori_loop(0, n, one, (state, empty))

    def _sums(self, params: tuple[Tree, Tree], step: jax.Array, batch: Batch) -> jax.Array:
        one = lambda params: batch_sums(self.model_def, join(*params), step, batch)
        return self._map(one)(params)

    def _diagnostics(
        self, params: tuple[Tree, Tree], step: jax.Array, tokens_RBT1: jax.Array
    ) -> Tree:
        rows = diagnostic_rows(self.config.train, self.model_def.cfg.n_layer, 1)
        diagnostics = make_diagnostics(self.model_def, *rows)
        one = lambda x: diagnostics(join(*x[0]), step, Batch(x[1]))
        return self._map(one)((params, tokens_RBT1))

    def _optimizer(self, values: Hyperparameters) -> optax.GradientTransformation:
        opt = replace(self.config, values).optimizer
        return make_optimizer(opt, trainable_infos(opt, self.model_def))


class VectorizedTrainer:
    """Runs that are trained together, and their states.

    Args:
      configs: one resolved config per run; only `HYPERPARAMETERS`, `INIT_FIELDS` and `WANDB_FIELDS`
        may differ.
      programs: default: programs for this number of runs, on all devices.
      states: states to continue from, on the host; default: those before the first step.

    Attributes:
      states: states stacked along a leading axis of runs; those after the last run are unused.

    Raises:
      ValueError: if other fields differ, or there are more runs than the programs' width.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        programs: VectorizedPrograms | None = None,
        states: Sequence[State] | None = None,
    ) -> None:
        free = (*HYPERPARAMETERS, *INIT_FIELDS, *WANDB_FIELDS)
        configs = [with_warmup_steps(config) for config in configs]
        for config in configs[1:]:
            if others := [n for n in difference(configs[0], config) if n not in free]:
                raise ValueError(f"runs trained together cannot differ in {', '.join(others)}")
        if programs is None:
            programs = VectorizedPrograms(configs[0], len(configs))
        if len(configs) > programs.width:
            raise ValueError(f"{len(configs)} runs for programs of width {programs.width}")
        self.configs, self.programs, self.model_def = configs, programs, programs.model_def
        self.states = self._stack(states or [programs.initial_state(c) for c in configs])
        self._hyperparameters = self._stack([hyperparameters(config) for config in configs])

    def advance(self, tokens_RNBT1: np.ndarray, n: int | None = None) -> Metrics:
        """Takes steps, and returns their metrics (R, N, …), still on the devices.

        Args:
          tokens_RNBT1: batches (B, T+1) of each run for each of N steps.
          n: number of steps to take; default: all N. (A different N would be recompiled.)
        """
        n_max = tokens_RNBT1.shape[1]
        tokens, steps = self._stack(list(tokens_RNBT1)), np.int32(n_max if n is None else n)
        train_step = self.programs.train_step(n_max)
        self.states, metrics = train_step(self.states, self._hyperparameters, tokens, steps)
        return metrics

    def read(self, metrics: Metrics) -> list[Metrics]:
        """Returns each run's metrics, on the host."""
        return self._split(jax.device_get(metrics))

    def state(self, i: int) -> State:
        """Returns a run's state, on the host."""
        return jax.tree.map(lambda x: np.asarray(x[i]), self.states)

    def eval_sums(self, step: int, batch: Batch) -> jax.Array:
        """Returns each run's `batch_sums` on the same batch, (R, 2), on the devices."""
        return self.programs.eval_sums(self._params, np.int32(step), batch)

    @property
    def _params(self) -> tuple[Tree, Tree]:
        return self.states.params, self.states.frozen

    def diagnostics(self, step: int, tokens_RBT1: np.ndarray) -> list[Metrics]:
        """Returns each run's diagnostics on its own batch (B, T+1), on the host."""
        tokens = self._stack(list(tokens_RBT1))
        return self._split(
            jax.device_get(self.programs.diagnostics(self._params, np.int32(step), tokens))
        )

    def _split(self, stacked: Tree) -> list[Tree]:
        of = lambda i: jax.tree.map(lambda x: x[i], stacked)
        return [of(i) for i in range(len(self.configs))]

    def _stack(self, values: Sequence[Tree]) -> Tree:
        """Puts each run's value on its device, padded with copies of the first run's."""
        values = [*values, *[values[0]] * (self.programs.width - len(values))]
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *values)
        return jax.device_put(stacked, self.programs.by_run)


def hyperparameters(config: Config) -> Hyperparameters:
    """Returns the `HYPERPARAMETERS` of a config."""
    config = with_warmup_steps(config)
    return {name: _number(value_of(config, name)) for name in HYPERPARAMETERS}


def _number(value: float | int) -> np.generic:
    return np.int32(value) if isinstance(value, int) else np.float32(value)


def _sequential_map(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return partial(lax.map, function)
