"""Runs that differ only in numbers, trained together by one compiled program.

Members are spread over the devices; each device takes its own one after the other, several updates
at a time, so that a member's state stays in its caches and nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gpt2_jax.config import difference, value_of
from gpt2_jax.model.structure import structure
from gpt2_jax.train.optimizer import make_optimizer
from gpt2_jax.train.state import State, new_state
from gpt2_jax.train.step import Metrics, make_step

MEMBERS = "members"
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

Dials = dict[str, Any]  # a value for each name in DIALS


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


class Population:
    """A group of runs and the program that trains them.

    Args:
      configs: resolved, one for each member; alike but for `DIALS` and `seed`.
      devices: to spread them over; unset: all.

    Raises:
      ValueError: if they differ in anything else, or each would start from a profile of its own.
    """

    def __init__(
        self, configs: Sequence[ConfigDict], devices: Sequence[jax.Device] | None = None
    ) -> None:
        for config in configs[1:]:
            if others := [n for n in difference(configs[0], config) if n not in (*DIALS, "seed")]:
                raise ValueError(f"members of a population cannot differ in {', '.join(others)}")
        self.configs = configs
        self.structure = structure(configs[0].model)
        if self.structure.placement.profiled:
            raise ValueError("members of a population cannot start from a profile of their own")
        devices = (devices or jax.devices())[: len(configs)]
        self._mesh = Mesh(devices, (MEMBERS,), axis_types=(AxisType.Auto,))
        self._dials = {
            name: self._spread([_number(value_of(config, name)) for config in configs])
            for name in DIALS
        }
        by_member = PartitionSpec(MEMBERS)
        over_members = partial(
            jax.shard_map, mesh=self._mesh, in_specs=by_member, out_specs=by_member, check_vma=False
        )
        self._init = jax.jit(over_members(lambda *xs: lax.map(self._start, xs)))
        self._train = jax.jit(over_members(lambda *xs: lax.map(self._go_on, xs)), donate_argnums=0)

    def init(self) -> State:
        """Returns the states before the first update, stacked along a leading axis of members."""
        seeds = self._spread([np.uint32(config.seed) for config in self.configs])
        return self._init(seeds, self._dials)

    def advance(self, states: State, tokens_MNBT1: np.ndarray) -> tuple[State, Metrics]:
        """Returns the states N updates later, and what they measured, (M, N) and on the host.

        Args:
          tokens_MNBT1: batches (B, T+1) of each member for each of the N updates.
        """
        states, metrics = self._train(states, self._dials, self._spread(list(tokens_MNBT1)))
        return states, jax.tree.map(lambda x: x[: len(self.configs)], jax.device_get(metrics))

    def _start(self, member: tuple[jax.Array, Dials]) -> State:
        seed, dials = member
        return new_state(self.structure, self._optimizer(dials), seed)

    def _go_on(self, member: tuple[State, Dials, jax.Array]) -> tuple[State, Metrics]:
        state, dials, tokens_NBT1 = member
        config: Any = Turned(self.configs[0], dials)
        step = make_step(config, self.structure, self._optimizer(dials), None)
        return lax.scan(step, state, tokens_NBT1)

    def _optimizer(self, dials: Dials) -> optax.GradientTransformation:
        config: Any = Turned(self.configs[0], dials)
        return make_optimizer(config, self.structure.infos)

    def _spread(self, values: Sequence[Any]) -> jax.Array:
        """Puts one value for each member on its device; the first again where places are left."""
        n = self._mesh.devices.size
        missing = -len(values) % n
        rows = np.stack([*values, *[values[0]] * missing])
        return jax.device_put(rows, NamedSharding(self._mesh, PartitionSpec(MEMBERS)))


def _number(value: float | int) -> np.generic:
    return np.int32(value) if isinstance(value, int) else np.float32(value)
