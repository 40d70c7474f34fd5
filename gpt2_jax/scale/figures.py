"""What a compiled train step says of itself: memory, FLOPs, bytes and collectives per device."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax.stages import Compiled

from gpt2_jax.config.sections import TrainConfig
from gpt2_jax.hlo.collectives import Collective, find_collectives
from gpt2_jax.hlo.kinds import work_of
from gpt2_jax.hlo.text import Program, parse
from gpt2_jax.hlo.traffic import memory_traffic
from gpt2_jax.scale.flops import executed_flops
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.distributed.mesh import n_row_devices
from gpt2_jax.train.distributed.sharding import make_layout


@dataclass(frozen=True)
class Exchange:
    """All collectives of one kind between the same number of devices, per step and device.

    Attributes:
      devices: that take part in each. between_hosts: whether they are in several hosts.
      count: how many there are. bytes: of the arrays gathered or reduced.
      sent_bytes: what a device sends, with a ring.
    """

    kind: str
    devices: int
    between_hosts: bool
    count: int
    bytes: int
    sent_bytes: float


@dataclass(frozen=True)
class Figures:
    """Everything known of a compiled step; bytes and FLOPs are per device and step.

    Attributes:
      mesh: sizes of the axes. device_kind: jax's name.
      n_params: of the model. flops_per_token: by the usual formula (`ModelDef.flops_per_token`).
      tokens_per_step: predicted tokens. rows: sequences per device and micro-batch.
      parameters, optimizer, gradients: bytes. peak: bytes at the step's peak, None if unknown.
      memory: bytes that a program may use, None if unknown.
      product_flops, attention_flops: executed. traffic: bytes by kind (`hlo.kinds.work_of`).
      attention: the kernel. whole: large parameters that the mesh does not split.
    """

    mesh: dict[str, int]
    device_kind: str
    n_params: int
    flops_per_token: int
    tokens_per_step: int
    rows: int
    parameters: int
    optimizer: int
    gradients: int
    peak: int | None
    memory: int | None
    product_flops: float
    attention_flops: float
    traffic: dict[str, int]
    exchanges: list[Exchange]
    attention: str
    compile_seconds: float
    whole: list[str]

    @property
    def n_devices(self) -> int:
        """The number of devices that the step runs on."""
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the memory; None if one of them is unknown."""
        return None if self.peak is None or self.memory is None else self.peak <= self.memory

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Figures:
        """Returns the figures that `to_json` stored."""
        exchanges = [Exchange(**one) for one in stored["exchanges"]]
        return cls(**stored | {"exchanges": exchanges})


def figures_of(
    step: CompiledStep,
    train: TrainConfig,
    seq_len: int,
    memory: int | None,
    per_host: int | None = None,
) -> Figures:
    """Returns the figures of a compiled step.

    Args:
      memory: bytes that a program may use on a device, None if unknown.
      per_host: the number of devices in a host; None if it plays no role.
    """
    mesh, model, compiled = step.mesh, step.model_def, cast(Compiled, step.step)
    program = parse(compiled.as_text() or "")
    flops = executed_flops(step.jaxpr.jaxpr)
    trained = bytes_per_device(step.shapes.params)
    return Figures(
        mesh=dict(mesh.shape),
        device_kind=mesh.devices.flat[0].device_kind,
        n_params=model.n_params(),
        flops_per_token=model.flops_per_token(seq_len),
        tokens_per_step=train.batch_size * seq_len,
        rows=train.batch_size // train.accumulation // n_row_devices(mesh),
        parameters=trained + bytes_per_device(step.shapes.frozen),
        optimizer=bytes_per_device(step.shapes.opt_state),
        gradients=trained,
        peak=step.peak_bytes,
        memory=memory,
        product_flops=flops.products / mesh.size,
        attention_flops=flops.attention / mesh.size,
        traffic=memory_traffic(program, work_of),
        exchanges=exchanges_of(program, mesh.size, per_host),
        attention=step.attention,
        compile_seconds=step.compile_seconds,
        whole=make_layout(model, mesh).whole,
    )


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    local = lambda x: x.sharding.shard_shape(x.shape)
    return sum(math.prod(local(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def exchanges_of(program: Program, n_devices: int, per_host: int | None) -> list[Exchange]:
    """Returns the collectives of a program, summed by kind and number of devices."""
    found: dict[tuple[str, int, bool], list[Collective]] = defaultdict(list)
    for one in find_collectives(program, n_devices):
        hosts = {device // per_host for device in one.group} if per_host else {0}
        found[one.kind, len(one.group), len(hosts) > 1].append(one)
    return [
        Exchange(
            *key,
            count=sum(one.times for one in ones),
            bytes=sum(one.times * one.bytes for one in ones),
            sent_bytes=sum(one.times * one.sent_bytes for one in ones),
        )
        for key, ones in sorted(found.items())
    ]
