"""Meshes, micro-batches and remat policies that fit, fastest first.

A formula ranks all candidates in a moment. Only the best are compiled, and their figures decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2_jax.config.capacity import FLOAT, parameter_bytes
from gpt2_jax.config.sections import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from gpt2_jax.config.table import FIELDS
from gpt2_jax.errors import counted
from gpt2_jax.scale.chips import Chip
from gpt2_jax.scale.compiler import TooLarge
from gpt2_jax.scale.meshes import Shape, divisors, mesh_fields, possible_meshes
from gpt2_jax.scale.report import Plan
from gpt2_jax.track.throughput import peak_flops

MAX_ROWS = 128  # sequences per device and micro-batch
UNCERTAINTY = 1.2  # how much less memory than guessed a step may need
# Vectors of the model's width that a block keeps per token for the backward pass, in the compute
# dtype, and the share of the forward pass that is repeated. For a policy that is not listed, the
# values of `elementwise` are a first guess; its compiled figures decide.
KEPT = {"none": 16, "elementwise": 11, "block": 1}
REPEATED = {"none": 0.0, "elementwise": 0.25, "block": 1.0}
MOVED = 60  # such vectors that a block reads and writes per token


@dataclass(frozen=True)
class Candidate:
    """A way to run a config on all devices.

    Attributes:
      rows: sequences per device and micro-batch.
    """

    mesh: Shape
    accumulation: int
    rows: int
    remat: str

    @property
    def changes(self) -> dict[str, Any]:
        """The config fields that it sets, by dotted name."""
        own = {"train.accumulation": self.accumulation, "model.remat": self.remat}
        return mesh_fields(self.mesh) | own

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Mesh, rows, micro-batches and remat policy, for a table."""
        return "x".join(map(str, self.mesh)), str(self.rows), str(self.accumulation), self.remat

    @property
    def label(self) -> str:
        """One line for messages."""
        mesh, rows, parts, remat = self.cells
        split = f"{counted(parts, 'micro-batch', 'es')} of {counted(rows, 'sequence')}"
        return f"mesh {mesh}, {split} per device, remat {remat}"

    @property
    def flags(self) -> str:
        """The flags that select it."""
        return " ".join(f"--config.{name}={value}" for name, value in self.changes.items())


def candidates(
    model: ModelConfig, train: TrainConfig, mesh: MeshConfig, n_devices: int
) -> list[Candidate]:
    """Returns all ways to split a batch over all devices; axes of the mesh that are set stay."""
    found = []
    for data, fsdp, tensor in possible_meshes(n_devices, train.batch_size, model.n_head):
        stays = mesh.data in (None, data) and mesh.fsdp in (None, fsdp)
        if not (stays and tensor >= mesh.tensor and tensor % mesh.tensor == 0):
            continue
        rows_in_all = train.batch_size // (data * fsdp)
        for rows in divisors(rows_in_all):
            if rows <= MAX_ROWS:
                found += [
                    Candidate((data, fsdp, tensor), rows_in_all // rows, rows, remat)
                    for remat in FIELDS["model.remat"].choices
                ]
    return found


@dataclass(frozen=True)
class Workload:
    """What the formula needs to know of a run.

    Attributes:
      n_params: of the model. flops_per_token: by the usual formula.
      per_host: GPUs per host, None if a network between hosts plays no role.
    """

    model: ModelConfig
    optimizer: OptimizerConfig
    batch_size: int
    seq_len: int
    n_params: int
    flops_per_token: int
    chip: Chip
    per_host: int | None

    @property
    def _cast(self) -> int:
        return 2 if self.model.dtype == "bfloat16" else FLOAT

    @property
    def _has_scores(self) -> bool:
        """Whether attention scores are stored, because no kernel avoids it."""
        return self._cast == FLOAT

    def guess_bytes(self, candidate: Candidate) -> float:
        """Returns about how much memory a device needs."""
        (_, fsdp, tensor), model, cast = candidate.mesh, self.model, self._cast
        vocab, layers = model.vocab_size or 0, model.n_layer
        tokens = candidate.rows * self.seq_len
        n_gradients = 1 + (candidate.accumulation > 1)
        per_parameter = parameter_bytes(self.optimizer) + FLOAT * n_gradients
        state = per_parameter * self.n_params / (fsdp * tensor)
        in_blocks = self.n_params - vocab * model.n_embd
        kept_layers = layers if candidate.remat == "none" else 1
        gathered = cast * in_blocks / tensor * kept_layers / layers if fsdp > 1 else 0.0
        vectors = 2 + (KEPT.get(candidate.remat, 11) - 2) / tensor
        kept = tokens * layers * model.n_embd * cast * max(1, vectors)
        scores = tokens * model.n_head / tensor * self.seq_len * (FLOAT + cast)
        kept += scores * kept_layers if self._has_scores else 0.0
        return state + gathered + kept + tokens * vocab / tensor * (FLOAT + cast)

    def guess_seconds(self, candidate: Candidate) -> float:
        """Returns about how long a step takes."""
        (data, fsdp, tensor), model, cast = candidate.mesh, self.model, self._cast
        share, peak = self.chip.efficiency, peak_flops(self.chip.kind)
        assert peak is not None
        tokens = self.batch_size * self.seq_len / (data * fsdp)
        repeated = REPEATED.get(candidate.remat, 0.25)
        products = 1 + repeated / 3 if candidate.remat == "block" else 1.0
        compute = products * tokens / tensor * self.flops_per_token / (share.products * peak)
        per_token = model.n_layer * MOVED * model.n_embd * cast + (model.vocab_size or 0) * 10
        if self._has_scores:
            per_token += model.n_layer * model.n_head * self.seq_len * 30
        moved = tokens * per_token / tensor * (1 + repeated / 3)
        part = FLOAT * self.n_params / (fsdp * tensor)
        moved += part * (8 + 3 * candidate.accumulation)
        memory = moved / (share.memory * self.chip.bandwidth)
        return compute + memory + self._exchange_seconds(candidate, tokens)

    def _exchange_seconds(self, candidate: Candidate, tokens: float) -> float:
        (data, fsdp, tensor), cast = candidate.mesh, self._cast
        whole = self.n_params / tensor
        gathers = 1 if candidate.remat == "none" else 2
        sent = {
            "fsdp": candidate.accumulation * (gathers * cast + FLOAT) * whole * (1 - 1 / fsdp),
            "data": 2 * FLOAT * whole / fsdp * (1 - 1 / data),
            # Four all-reduces of activations in each block.
            "tensor": 8 * self.model.n_layer * tokens * self.model.n_embd * cast * (1 - 1 / tensor),
        }
        # Neighbors on `tensor` are closest, then those on `fsdp`.
        reach = {"tensor": tensor, "fsdp": tensor * fsdp, "data": tensor * fsdp * data}
        network = self.chip.network or self.chip.link
        far = lambda axis: self.per_host is not None and reach[axis] > self.per_host
        return sum(n / (network if far(axis) else self.chip.link) for axis, n in sent.items())

    def ranked(self, found: list[Candidate]) -> list[Candidate]:
        """Returns the candidates that may fit, the one with the shortest guessed step first."""
        limit = UNCERTAINTY * self.chip.memory
        fitting = [one for one in found if self.guess_bytes(one) <= limit]
        return sorted(fitting, key=self.guess_seconds)


Found = tuple[Candidate, Plan]


def search(
    ranked: list[Candidate],
    guess_bytes: Callable[[Candidate], float],
    plan: Callable[[Candidate], Plan | TooLarge | None],
    n_wanted: int,
) -> list[Found]:
    """Returns plans that fit, fastest first.

    Compiles candidates in order until `n_wanted` fit, at most twice as many. After one that does
    not fit, those that should need more memory are skipped.

    Args:
      plan: compiles a candidate; returns None if that takes too long.
    """
    found: list[Found] = []
    n_compiled, too_much = 0, float("inf")
    for candidate in ranked:
        if len(found) == n_wanted or n_compiled == 2 * n_wanted:
            break
        if guess_bytes(candidate) >= too_much:
            continue
        n_compiled += 1
        made = plan(candidate)
        if made is None:
            continue
        if isinstance(made, TooLarge) or made.figures.fits is False:
            too_much = guess_bytes(candidate)
        else:
            found.append((candidate, made))
    return sorted(found, key=lambda one: _step_seconds(one[1]))


def _step_seconds(plan: Plan) -> float:
    assert plan.estimate is not None
    return plan.estimate.step_seconds
