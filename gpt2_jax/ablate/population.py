"""Runs that differ only in numbers, trained together by one compiled program.

Members are spread over the devices; each device takes several updates of its own ones at a time, so
that a member's state stays in its caches and nobody waits for anybody. What a member becomes does
not depend on the others: on a CPU to the bit.
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
from ml_collections import ConfigDict

from gpt2_jax.config import difference, flatten, value_of
from gpt2_jax.errors import UserError
from gpt2_jax.model.attention import resolve_kernel
from gpt2_jax.model.structure import structure
from gpt2_jax.train.evaluation import batch_sums
from gpt2_jax.train.optimizer import make_optimizer
from gpt2_jax.train.probe import make_figures, training_rows
from gpt2_jax.train.program import memory_errors, peak_bytes
from gpt2_jax.train.schedule import warmup_steps
from gpt2_jax.train.state import State, jit_once, new_state
from gpt2_jax.train.step import Metrics, make_step

MEMBERS = "members"
AT_ONCE = 25  # updates a dispatch
TRIALS = 5  # dispatches that a trial's time is the median of
SMALL = 10_000_000  # parameters up to which a device is better filled by several models
# Fields whose values the train step takes as data; nothing is compiled anew for another value.
DIALS = (
    "optimizer.peak_lr",
    "optimizer.warmup_steps",
    "optimizer.final_lr_ratio",
    "optimizer.weight_decay",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.eps",
    "optimizer.momentum",
)
# Fields that decide initial values and nothing that comes after.
INITIAL = (
    "seed",
    "model.init_std",
    "model.init",
    "model.residual_init",
    "model.value_init",
    "model.query_init",
    "model.key_init",
    "model.embedding_std",
    "model.gate_bias",
)
OWN = ("track.wandb.name", "track.wandb.tags", "track.wandb.group")  # of no program

Dials = dict[str, Any]  # a value for each name in DIALS
Tree = Any


class Turned:
    """A config some of whose fields are other values, traced ones too, which a ConfigDict is not.

    Args:
      config: what everything else is read from.
      dials: `{"section.field": value}`.
    """

    def __init__(self, config: ConfigDict, dials: Dials, prefix: str = "") -> None:
        self._config, self._dials, self._prefix = config, dials, prefix

    def __getattr__(self, name: str) -> Any:
        full = self._prefix + name
        if full in self._dials:
            return self._dials[full]
        value = getattr(self._config, name)
        inside = isinstance(value, ConfigDict)
        return Turned(value, self._dials, f"{full}.") if inside else value


def with_warmup_steps(config: ConfigDict) -> ConfigDict:
    """Returns the config with its warm-up in steps, in which runs of one program may differ."""
    config = config.copy_and_resolve_references()
    config.optimizer.warmup_steps, config.optimizer.warmup_fraction = warmup_steps(config), 0.0
    return config


def program_key(config: ConfigDict) -> str:
    """Returns what two resolved configs share if and only if one program can train both."""
    free = {*DIALS, *INITIAL, *OWN}
    return json.dumps(
        {n: v for n, v in flatten(with_warmup_steps(config)).items() if n not in free}, default=str
    )


class Lanes:
    """The programs that train, score and observe a number of members at a time.

    Each is compiled once, for any number of updates and for all members whose configs have the
    same `program_key`.

    Args:
      config: resolved; of any member.
      width: members at a time, at least; a multiple of the devices that they are spread over.
      devices: unset: all, or as many as there are members.
      abreast: whether a device's members advance side by side (`vmap`), as suits a GPU that one of
        them does not fill; otherwise one after the other (`lax.map`).

    Raises:
      ValueError: if each member would start from a profile of its own.
    """

    def __init__(
        self,
        config: ConfigDict,
        width: int,
        devices: Sequence[jax.Device] | None = None,
        abreast: bool = False,
    ) -> None:
        self.config, self.key = with_warmup_steps(config), program_key(config)
        self.structure = structure(config.model)
        if self.structure.placement.profiled:
            raise ValueError("members of a population cannot start from a profile of their own")
        devices = (devices or jax.devices())[:width]
        self.width = -(-width // len(devices)) * len(devices)
        mesh = Mesh(devices, (MEMBERS,), axis_types=(AxisType.Auto,))
        self.device_kind: str = devices[0].device_kind
        self.attention = resolve_kernel(config.model, jax.default_backend())
        self.by_member = NamedSharding(mesh, PartitionSpec(MEMBERS))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self._over = jax.vmap if abreast else _in_turn
        members, shared = self.by_member.spec, self.everywhere.spec
        spread = partial(jax.shard_map, mesh=mesh, out_specs=members, check_vma=False)
        own = (members, members, members)
        self._update = jax.jit(spread(self._train, in_specs=(*own, shared)), donate_argnums=0)
        self._programs: dict[int, jax.stages.Compiled] = {}
        self.sums = jax.jit(spread(self._sums, in_specs=(members, shared, shared, shared)))
        self.figures = jax.jit(spread(self._figures, in_specs=(members, shared, members)))
        self._starts: dict[tuple, Callable[[np.uint32], State]] = {}

    @classmethod
    def fastest(cls, config: ConfigDict, width: int) -> Lanes:
        """Returns lanes on all devices, on an accelerator of the kind that a short trial prefers.

        One for which there is no room loses it. A CPU's are one after the other: side by side they
        are slower there, and their bits change with their number. So are those of a config that
        is to be deterministic, since trials are not.
        """
        if jax.default_backend() == "cpu" or config.train.deterministic:
            return cls(config, width)

        def seconds(lanes: Lanes) -> float:
            try:
                return lanes.trial_seconds()
            except (UserError, jax.errors.JaxRuntimeError):
                return math.inf

        return min((cls(config, width, abreast=abreast) for abreast in (False, True)), key=seconds)

    def trial_seconds(self, n: int = 5) -> float:
        """Returns the seconds that a step of all lanes takes, once compiled: a median."""
        population, taken = Population([self.config] * self.width, self), []
        tokens = np.zeros((self.width, AT_ONCE, *self._batch_shape), np.int32)
        jax.block_until_ready(population.advance(tokens, 1))
        for _ in range(TRIALS):
            started = time.monotonic()
            jax.block_until_ready(population.advance(tokens, n))
            taken.append((time.monotonic() - started) / n)
        return statistics.median(taken)

    def compile_all(self) -> None:
        """Compiles all that a member is trained, scored and observed with."""
        self.train()
        population = Population([self.config] * self.width, self)
        rows, length = self._batch_shape
        scored = np.zeros((rows // self.config.train.accumulation, length), np.int32)
        jax.block_until_ready(population.sums(0, scored, np.ones(scored[:, 1:].shape, np.float32)))
        if self.config.track.diagnostics_every is not None:
            population.figures(0, np.zeros((self.width, rows, length), np.int32))

    @property
    def _batch_shape(self) -> tuple[int, int]:
        return self.config.train.batch_size, self.config.data.seq_len + 1

    def lower(self, rows: int = AT_ONCE) -> jax.stages.Lowered:
        """Returns the program of up to `rows` updates, with nothing allocated or compiled."""
        dials = dials_of(self.config)
        init = lambda seed: new_state(self.structure, self._optimizer(dials), seed)
        one = (
            jax.eval_shape(init, np.uint32(0)),
            dials,
            jax.ShapeDtypeStruct((rows, *self._batch_shape), jnp.int32),
        )
        members = lambda x: jax.ShapeDtypeStruct(
            (self.width, *x.shape), x.dtype, sharding=self.by_member
        )
        return self._update.lower(*jax.tree.map(members, one), jax.ShapeDtypeStruct((), jnp.int32))

    def train(self, rows: int = AT_ONCE) -> jax.stages.Compiled:
        """Returns the program that makes up to `rows` updates, compiled at its first use."""
        if rows not in self._programs:
            with memory_errors():
                self._programs[rows] = self.lower(rows).compile()
        return self._programs[rows]

    @property
    def peak_bytes(self) -> int | None:
        """A member's share of its device's memory at the peak of an update."""
        peak = peak_bytes(self.train())
        return peak and peak * self.by_member.mesh.size // self.width

    def start(self, config: ConfigDict) -> State:
        """Returns a member's state before the first update, on the host."""
        # One program for the seeds of all that are alike in everything else.
        alike = tuple(value_of(config, name) for name in INITIAL if name != "seed")
        if alike not in self._starts:
            model, optimizer = structure(config.model), self._optimizer(dials_of(config))
            init = lambda seed: new_state(model, optimizer, seed)
            self._starts[alike] = jit_once(init, None)
        return jax.device_get(self._starts[alike](np.uint32(config.seed)))

    def _train(self, states: State, dials: Dials, tokens_MNBT1: jax.Array, n: jax.Array) -> Any:
        one = lambda x: self._advance(x[0], x[1], x[2], n)
        return self._over(one)((states, dials, tokens_MNBT1))

    def _advance(
        self, state: State, dials: Dials, tokens_NBT1: jax.Array, n: jax.Array
    ) -> tuple[State, Metrics]:
        config: Any = Turned(self.config, dials)
        step = make_step(config, self.structure, self._optimizer(dials), None)
        rows = tokens_NBT1.shape[0]
        like = jax.eval_shape(step, state, tokens_NBT1[0])[1]
        empty = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), like)

        def one(i: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, metrics = step(carry[0], tokens_NBT1[i])
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), carry[1], metrics)

        return lax.fori_loop(0, n, one, (state, empty))

    def _sums(
        self, params: Tree, step: jax.Array, tokens_BT1: jax.Array, mask_BT: jax.Array
    ) -> jax.Array:
        one = lambda params: batch_sums(self.structure, params, step, tokens_BT1, mask_BT)
        return self._over(one)(params)

    def _figures(self, params: Tree, step: jax.Array, tokens_MBT1: jax.Array) -> Tree:
        figures = make_figures(self.structure, *training_rows(self.config, 1))
        return self._over(lambda x: figures(x[0], step, x[1]))((params, tokens_MBT1))

    def _optimizer(self, dials: Dials) -> optax.GradientTransformation:
        config: Any = Turned(self.config, dials)
        return make_optimizer(config, self.structure.infos)


class Population:
    """Runs on their way through `Lanes`.

    Args:
      configs: resolved, one for each member; alike but for `DIALS` and `INITIAL`.
      lanes: unset: as many as there are members, on all devices.
      states: to go on from, on the host; unset: those before the first update.

    Attributes:
      states: stacked along a leading axis of members (those beyond the last are idle copies).

    Raises:
      ValueError: if they differ in anything else, or are more than there are lanes.
    """

    def __init__(
        self,
        configs: Sequence[ConfigDict],
        lanes: Lanes | None = None,
        states: Sequence[State] | None = None,
    ) -> None:
        free = (*DIALS, *INITIAL, *OWN)
        configs = [with_warmup_steps(config) for config in configs]
        for config in configs[1:]:
            if others := [n for n in difference(configs[0], config) if n not in free]:
                raise ValueError(f"members of a population cannot differ in {', '.join(others)}")
        if lanes is None:
            lanes = Lanes(configs[0], len(configs))
        if len(configs) > lanes.width:
            raise ValueError(f"{len(configs)} members for {lanes.width} lanes")
        self.configs, self.lanes, self.structure = configs, lanes, lanes.structure
        self.states = self._spread(states or [lanes.start(config) for config in configs])
        self._dials = self._spread([dials_of(config) for config in configs])

    def advance(self, tokens_MNBT1: np.ndarray, n: int | None = None) -> Metrics:
        """Trains, and returns what the updates measured, (M, N, …) and still on the devices.

        Args:
          tokens_MNBT1: batches (B, T+1) of each member for each of N updates.
          n: how many of them to make; unset: all. (Another N would be compiled anew.)
        """
        rows = tokens_MNBT1.shape[1]
        tokens, updates = self._spread(list(tokens_MNBT1)), np.int32(rows if n is None else n)
        self.states, metrics = self.lanes.train(rows)(self.states, self._dials, tokens, updates)
        return metrics

    def read(self, metrics: Metrics) -> list[Metrics]:
        """Returns on the host what each member measured."""
        return self._members(jax.device_get(metrics))

    def member(self, i: int) -> State:
        """Returns a member's state, on the host."""
        return jax.tree.map(lambda x: np.asarray(x[i]), self.states)

    def sums(self, step: int, tokens_BT1: np.ndarray, mask_BT: np.ndarray) -> jax.Array:
        """Returns nats and hits of each member on the same batch, (M, 2) and on the devices."""
        return self.lanes.sums(self.states.params, np.int32(step), tokens_BT1, mask_BT)

    def figures(self, step: int, tokens_MBT1: np.ndarray) -> list[Metrics]:
        """Returns each member's figures by depth on a batch (B, T+1) of its own, on the host."""
        tokens = self._spread(list(tokens_MBT1))
        return self._members(
            jax.device_get(self.lanes.figures(self.states.params, np.int32(step), tokens))
        )

    def _members(self, stacked: Tree) -> list[Tree]:
        of = lambda i: jax.tree.map(lambda x: x[i], stacked)
        return [of(i) for i in range(len(self.configs))]

    def _spread(self, values: Sequence[Tree]) -> Tree:
        """Puts each member's value on its device; the first again where lanes are left."""
        values = [*values, *[values[0]] * (self.lanes.width - len(values))]
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *values)
        return jax.device_put(stacked, self.lanes.by_member)


def dials_of(config: ConfigDict) -> Dials:
    """Returns the values of a config's dials."""
    config = with_warmup_steps(config)
    return {name: _number(value_of(config, name)) for name in DIALS}


def _number(value: float | int) -> np.generic:
    return np.int32(value) if isinstance(value, int) else np.float32(value)


def _in_turn(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return partial(lax.map, function)
