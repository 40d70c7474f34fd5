"""A function of the rows of batches, compiled for a mesh, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.losses import AnyBatch
from gpt2_jax.train.batch_shapes import batch_key
from gpt2_jax.train.distributed.mesh import (
    DATA,
    FSDP,
    by_rows,
    manual_axes,
    own_rows,
    put_rows,
    replicated,
    row_axes,
    to_mesh,
)
from gpt2_jax.train.distributed.sharding import make_layout

MAX_IN_FLIGHT = 8  # batches on the devices at a time


class RowProgram:
    """One compiled program per shape of a batch, without collectives between rows.

    Args:
      n_rows: rows of a batch, a multiple of the number of devices that share them.
      compute: `(model, params, step, batch) -> outputs` of a device's rows; the outputs of all
        devices are concatenated.
    """

    def __init__(
        self, model_def: ModelDef, mesh: Mesh, n_rows: int, compute: Callable[..., Any]
    ) -> None:
        self._mesh, self._n_rows = mesh, n_rows
        everywhere, rows = PartitionSpec(), PartitionSpec(row_axes(mesh))
        layout = make_layout(model_def, mesh)
        of_device, split = layout.on_device, layout.specs_of(model_def.shapes, FSDP)
        # The host adds up what devices return, so that batches do not wait for each other.
        # Besides, several collectives in flight can deadlock a CPU's few threads.
        # Pallas calls do not declare how their results vary over the mesh, as check_vma requires.
        by_row = jax.shard_map(
            lambda *inputs: compute(of_device, *inputs),
            mesh=mesh,
            axis_names=manual_axes(mesh),
            in_specs=(split, everywhere, rows),
            out_specs=rows,
            check_vma=False,
        )
        self._jitted: Any = jax.jit(by_row)
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._shardings: Any = None  # those that the programs are compiled for
        # With collectives in the forward pass, a CPU must finish each batch before the next.
        is_cpu = model_def.target.is_cpu
        self._in_flight = 1 if is_cpu and mesh.size > mesh.shape[DATA] else MAX_IN_FLIGHT

    @property
    def rows(self) -> np.ndarray:
        """The rows of a batch that this process reads."""
        return own_rows(self._mesh, self._n_rows)

    def compile(self, shapes: Any, batches: Sequence[AnyBatch]) -> None:
        """Compiles the programs, which are otherwise compiled when they are first needed.

        Args:
          shapes: shapes and shardings of the parameters.
          batches: of the shapes to compile for, with any number of rows.
        """
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self._mesh))
        for batch in batches:
            abstract = jax.tree.map(self._abstract, batch)
            self._compiled[batch_key(batch)] = self._jitted.lower(shapes, step, abstract).compile()
        self._shardings = jax.tree.map(lambda x: x.sharding, shapes)

    def _abstract(self, x: Any) -> jax.ShapeDtypeStruct:
        shape = (self._n_rows, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=by_rows(self._mesh))

    def outputs(self, params: Any, step: int, batches: Iterable[AnyBatch]) -> Iterator[Any]:
        """Yields the outputs of each batch, which stay on the devices.

        Args:
          step: number of steps the parameters were trained for.
          batches: this process's `rows` of each.
        """
        if self._shardings is not None:
            params = jax.device_put(params, self._shardings)
        in_flight: list[Any] = []
        at = to_mesh(np.array(step, np.int32), replicated(self._mesh))
        for batch in batches:
            program = self._compiled.get(batch_key(batch), self._jitted)
            found = program(params, at, put_rows(batch, self._mesh, self._n_rows))
            in_flight.append(found)
            if len(in_flight) >= self._in_flight:
                jax.block_until_ready(in_flight.pop(0))
            yield found
