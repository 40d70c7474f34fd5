"""Opens a run from its directory, for evaluation, sampling or export, and the text of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gpt2_jax.config import Config, replace, resolve, with_labels
from gpt2_jax.config.capacity import FLOAT
from gpt2_jax.config.check import check
from gpt2_jax.config.sections import DataConfig
from gpt2_jax.data.dataset import Dataset, open_dataset
from gpt2_jax.data.layout.shape import Layout
from gpt2_jax.data.run_data import Batches, RunData
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.files import sha256
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.tasks.data import ExampleData, open_example_data
from gpt2_jax.tasks.task import TASKS, head_of
from gpt2_jax.train.distributed.mesh import configure_devices, make_mesh
from gpt2_jax.train.malloc import keep_freed_memory
from gpt2_jax.train.state import abstract_params
from gpt2_jax.train.storage.checkpoint import restore_params
from gpt2_jax.train.storage.checkpoint_ref import CheckpointRef, parse_step, with_checkpoint
from gpt2_jax.train.storage.checksums import SUMS
from gpt2_jax.train.storage.identity import check_corpus, read_meta
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.tuning.definition import define_tuned


@dataclass(frozen=True)
class OpenedRun:
    """A checkpoint's parameters on this machine's devices.

    Attributes:
      corpus: hash of the training text, None if unknown.
      sums: hash of the checkpoint's files.
    """

    config: Config
    model_def: ModelDef
    mesh: Mesh
    params: Any
    step: int
    corpus: str | None
    sums: str


def open_run(
    workdir: str,
    step: int | str | None = None,
    devices: int | None = None,
    merge: bool = True,
) -> OpenedRun:
    """Opens a run at one of its checkpoints; nothing in the directory is written or executed.

    Args:
      step: as in `CheckpointRef`.
      devices: number of devices to use; None for as many as divide the run's batch.
      merge: whether low-rank updates (`tune.method=lora`, `dora`) are added to their matrices.

    Raises:
      UserError: as `find_checkpoint`.
    """
    ref = CheckpointRef(workdir, parse_step(step))
    directory = RunDirectory(workdir)
    # This machine may have a different number of devices.
    config = replace(
        directory.read_config(), {"mesh.data": devices, "mesh.fsdp": None, "mesh.tensor": 1}
    )

    def restore(step: int, folder: Path) -> OpenedRun:
        configure_devices(config.train, config.mesh)
        keep_freed_memory(config.model, config.data, config.train, config.mesh)
        own = dataclasses.replace(config, tune=directory.config_of(folder).tune)
        head = head_of(own.task, own.head)
        tuned = define_tuned(own.model, own.placement, own.tune, head=head)
        mesh = make_mesh(config.train, config.mesh, FLOAT * tuned.n_params())
        stored = restore_params(folder, abstract_params(tuned, mesh), step)
        model, params = tuned.merged(stored) if merge else (tuned, stored)
        identity, info = read_meta(folder).identity, directory.read_info()
        corpus = info.get("corpus") if identity is None else identity.corpus
        return OpenedRun(own, model, mesh, params, step, corpus, sha256(folder / SUMS))

    return with_checkpoint(directory, ref, restore)


def open_data(data: DataConfig) -> tuple[Dataset, Tokenizer]:
    """Opens the text of a config, and its tokenizer.

    Raises:
      UserError: as `open_dataset`.
    """
    return open_dataset(
        data.source,
        data.val_source,
        data.tokenizer,
        data.val_fraction,
        data.document_separator,
        data.stream_files,
    )


def open_examples(config: Config, labels: Sequence[str] | None = None) -> ExampleData:
    """Opens the examples of a config's task.

    Args:
      labels: label names by id of an earlier run, None for those of the training examples.

    Raises:
      UserError: as `open_example_data`.
    """
    with_types = config.model.token_types > 0
    return open_example_data(config.task, config.data, with_types, config.seed, labels)


def named_sources(data: DataConfig) -> str:
    """Returns the fields that name the files of the data, with their values, for errors."""
    others = {"data.val_source": data.val_source, "data.test_source": data.test_source}
    listed = [f"{name}={value}" for name, value in others.items() if value is not None]
    return f"data.source={data.source}" + (f" with {' and '.join(listed)}" if listed else "")


def open_training_data(config: Config) -> tuple[RunData, Tokenizer]:
    """Opens the text of a config that need not be resolved, or the examples of its task."""
    if config.task.name == "lm":
        return open_data(config.data)
    examples = open_examples(config)
    return examples, examples.tokenizer


def resolve_on(config: Config, data: RunData, tokenizer: Tokenizer) -> tuple[Config, Batches]:
    """Returns the config with the fields that depend on its data, and its training batches.

    Raises:
      UserError: if a field is not valid for the data.
    """
    batches = data.sampler(config.data.seq_len, config.train.batch_size, config.seed)
    config = resolve(config, tokenizer.size, tokenizer.end_of_text)
    if TASKS[config.task.name].has_labels:
        config = with_labels(config, data.labels)
    if config.train.epochs is not None:
        assert isinstance(batches, Layout)
        config = replace(config, {"train.steps": batches.steps(config.train.epochs)})
    check(config)  # again, now that all sizes are known
    return config, batches


def open_run_examples(run: OpenedRun, workdir: str) -> ExampleData:
    """Opens the examples that a run was trained on.

    Raises:
      UserError: if their content has changed, or as `open_examples`.
    """
    data = open_examples(run.config, RunDirectory(workdir).labels())
    check_corpus(run.corpus, data, named_sources(run.config.data), Path(workdir))
    return data


def open_run_data(run: OpenedRun, workdir: str) -> Dataset:
    """Opens the text that a run was trained on.

    Raises:
      UserError: if its content has changed, or as `open_data`.
    """
    data = run.config.data
    corpus, _ = open_data(data)
    check_corpus(run.corpus, corpus, named_sources(data), Path(workdir))
    if corpus.streams:
        known = RunDirectory(workdir).read_info().get("streams") or {}
        corpus.keep_counts(known, lambda counts: None)
    return corpus
