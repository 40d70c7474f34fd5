"""Plans a run: chooses the mesh, compiles the step elsewhere, and estimates time and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2_jax.config.sections import MeshConfig, ModelConfig, TrainConfig
from gpt2_jax.scale.compiler import TooLarge, compile_elsewhere
from gpt2_jax.scale.estimate import chip_of, estimate
from gpt2_jax.scale.meshes import choose_mesh, mesh_fields
from gpt2_jax.scale.report import Plan
from gpt2_jax.scale.targets import Machine


@dataclass(frozen=True)
class Planner:
    """Plans variants of a run on a machine.

    Attributes:
      config: resolved, as `config.json` stores it.
      total_tokens: of the run. state_bytes: of the state and a gradient, whole.
      price: US dollars per device and hour, None for the table's.
      timeout: seconds for each compilation.
    """

    machine: Machine
    config: dict[str, Any]
    total_tokens: int
    state_bytes: int
    price: float | None
    timeout: float

    def mesh(self, model: ModelConfig, train: TrainConfig, mesh: MeshConfig) -> dict[str, int]:
        """Returns the config fields of the mesh; empty for this machine, which chooses itself.

        Raises:
          UserError: if the mesh cannot work.
        """
        chip = self.machine.chip
        if chip is None:
            return {}
        n, needed = self.machine.n_devices, self.state_bytes
        return mesh_fields(choose_mesh(model, train, mesh, n, needed, chip.memory))

    def plan(self, changes: dict[str, Any]) -> Plan | TooLarge:
        """Returns the plan of the config with some fields changed, by dotted name.

        Raises:
          UserError: if the step cannot be compiled.
        """
        found = compile_elsewhere(self.machine, self.config, changes, self.timeout)
        if isinstance(found, TooLarge):
            return found
        chip = self.machine.chip or chip_of(found.device_kind)
        n_devices = self.machine.n_devices if self.machine.chip else found.n_devices
        if chip is None:
            return Plan(self.machine.name, n_devices, found, None, None, None)
        price = chip.price if self.price is None else self.price
        made = estimate(found, chip, n_devices, self.total_tokens, price)
        return Plan(self.machine.name, n_devices, found, made, chip, price)
