"""Initial weights from another run or an import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.config.task_rules import ARCHITECTURE
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.data.saved_tokenizer import same_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import read_fields
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.model.heads import HEADS, HeadSpec
from gpt2_jax.placements import AXES
from gpt2_jax.placements.axes import SCALES
from gpt2_jax.tasks.task import TASKS, head_of
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.optim.pruning import pruned
from gpt2_jax.train.state import State, abstract_params
from gpt2_jax.train.storage.checkpoint import restore_params
from gpt2_jax.train.storage.checkpoint_ref import CheckpointRef, find_checkpoint
from gpt2_jax.train.storage.checksums import find_damage
from gpt2_jax.train.storage.identity import META
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.train.storage.verify import check_identity
from gpt2_jax.tuning.definition import INSERTS, define_tuned

# How attention treats packed documents: taken from the source, but any weights can change it.
DOCUMENTS = ("model.document_mask", "model.end_of_text")
# Fields that the weights determine; the others control how the model is run and trained.
DETERMINED = (
    "placement.preset",
    "placement.module",
    "model.architecture",
    "model.n_layer",
    "model.n_encoder_layer",
    "model.n_head",
    "model.n_embd",
    "model.n_positions",
    "model.position_offset",
    "model.logits_bias",
    "model.n_inner",
    "model.vocab_size",
    "model.vocab_multiple",
    "model.scale_attn_weights",
    "model.scale_attn_by_inverse_layer_idx",
    "model.tie_head",
    "model.share_embeddings",
    "model.token_types",
    *(f"placement.{name}" for name in AXES),
    "data.tokenizer",
    *DOCUMENTS,
)
# Fields among them that may differ without changing the parameters: factors that are not learned.
CHANGEABLE = tuple(f"placement.{name}" for name in (*SCALES, "drop_path"))


@dataclass(frozen=True)
class PretrainedSource:
    """A folder of weights, and the config of the run that saved them."""

    folder: Path
    config: Config
    name: str
    step: int = 0


def find_source(config: Config, directory: RunDirectory) -> PretrainedSource | None:
    """Returns the source named by `train.init_from`, or the weights imported into the directory.

    Raises:
      UserError: if the weights are missing.
    """
    given = config.train.init_from
    if directory.weights_path.exists():
        if given is not None:
            raise UserError(
                f"{directory.path} already contains imported weights; leave train.init_from unset, "
                "or choose another --workdir"
            )
        folder = directory.weights_path
        return PretrainedSource(folder, directory.config_of(folder), str(directory.path))
    if given is None:
        return None
    if directory.config_path.exists():  # a run that started from these weights continues
        started = directory.read_config()
        before = CheckpointRef.parse(started.train.init_from or "")
        if isinstance(before.step, int) and before.is_named_by(given):
            source = RunDirectory(before.workdir)  # may be gone, as the run has its own weights
            folder = source.folder_of(before.step)
            known = source.config_path.exists()
            tune = source.config_of(folder).tune if known else TuneConfig()
            return PretrainedSource(folder, replace(started, tune=tune), str(before), before.step)
    return open_source(given)


def define_merged(config: Config) -> ModelDef:
    """Returns the model of weights that `load_pretrained` returns."""
    tune = config.tune if config.tune.method in INSERTS else TuneConfig()
    head = head_of(config.task, config.head)
    return define_tuned(config.model, config.placement, tune, head=head)


def adopt_model(config: Config, source: PretrainedSource, say: Callable[[str], None]) -> Config:
    """Returns the config with the fields that the source determines, and its step.

    A field with its default value counts as unset. An unset sequence length is taken from the
    source as well.

    Args:
      say: called with one line that lists the changed fields.

    Raises:
      UserError: if the config describes a different model than that of the weights, or the
        weights are those of a model with modules that tuning has added.
    """
    _check_architecture(config, source)
    if (method := source.config.tune.method) in INSERTS:
        raise UserError(
            f"train.init_from: {source.name} was tuned with tune.method={method}, which adds "
            f"modules to the model; start from {source.config.train.init_from}, the run before it"
        )
    asked, default = configs.flatten(config), configs.flatten(Config())
    stored = configs.flatten(source.config)
    changes: dict[str, Any] = {}
    for name in DETERMINED:
        is_set = asked[name] != default[name]
        if name in DOCUMENTS and is_set:
            continue
        if name in CHANGEABLE and is_set:
            adopted = configs.replace(config, changes)
            if not _is_learned(adopted, source, name):
                continue
        same = name == "data.tokenizer" and same_tokenizer(asked[name], stored[name])
        if is_set and not same and asked[name] != stored[name]:
            raise UserError(
                f"{name}={asked[name]!r}, but the weights of {source.name} have "
                f"{stored[name]!r}; leave it unset"
            )
        changes[name] = stored[name]
    if asked["data.seq_len"] == default["data.seq_len"]:
        changes["data.seq_len"] = stored["data.seq_len"]
    _check_positions(configs.replace(config, changes), source.name)
    changed = [
        f"{name}={changes[name]!r}"
        for name in asked
        if changes.get(name, asked[name]) != asked[name]
    ]
    say(f"from {source.name}: {', '.join(changed) or 'nothing but the weights'}")
    if config.train.init_from is not None:
        changes["train.init_from"] = source.name
    return configs.replace(config, changes)


def _check_architecture(config: Config, source: PretrainedSource) -> None:
    """Refuses weights of an architecture that the task does not support."""
    task, stored = config.task.name, source.config.model.architecture
    if stored != (needed := ARCHITECTURE[task]):
        raise UserError(
            f"the weights of {source.name} have model.architecture={stored}, but task.name={task} "
            f"needs {needed}; start from other weights, or change task.name"
        )


def _check_positions(config: Config, name: str) -> None:
    """Refuses rows that are longer than the positions of the weights called `name`."""
    most, data = config.model.n_positions, config.data
    given = configs.words(data.lengths)
    kept = [text for text in given if text.isdecimal() and int(text) < most]
    lengths = f" and data.lengths={','.join(kept)}" if len(kept) < len(given) else ""
    for field, length in (("seq_len", data.seq_len), ("source_len", data.source_len)):
        if length is not None and length > most:
            raise UserError(
                f"data.{field}={length} is longer than the {most} positions of {name}; set "
                f"data.{field}={most}{lengths}"
            )


def _is_learned(config: Config, source: PretrainedSource, name: str) -> bool:
    """Returns whether a factor has parameters in the config or in the source."""
    leaf = name.rpartition(".")[2]
    texts = [getattr(c.placement.resolve(), leaf) for c in (config, source.config)]
    return any("learned" in text for text in texts)


def open_source(given: str, field: str = "train.init_from") -> PretrainedSource:
    """Returns the weights of `DIR`, `DIR@best` or `DIR@STEP`.

    Args:
      field: the field that names them, for errors.

    Raises:
      UserError: if they do not exist, are damaged, or belong to another run.
    """
    try:
        ref = CheckpointRef.parse(given)
        _check_folder(Path(ref.workdir))
        step = find_checkpoint(ref)
        directory = RunDirectory(ref.workdir)
        folder = directory.folder_of(step)
        config = directory.config_of(folder)
    except UserError as error:
        raise UserError(f"{field}={given}: {error}") from None
    return PretrainedSource(folder, config, str(CheckpointRef(ref.workdir, step)), step)


def _check_folder(folder: Path) -> None:
    """Refuses what is not the directory of a run.

    Raises:
      UserError: saying what it is, and what to do.
    """
    fix = "set it to the --workdir of a run: DIR, DIR@STEP or DIR@best"
    if not os.path.lexists(folder):
        raise UserError(f"{folder} does not exist; {fix}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not the directory of a run; {fix}")
    if (folder / META).is_file():
        run = folder.parent if folder.name == "weights" else folder.parent.parent
        raise UserError(f"{folder} is a checkpoint of a run; set it to {run}, or {run}@STEP")
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder} is not the directory of a run: it has no config.json; {fix}")
    if "model_type" in read_fields(config_path):
        raise UserError(
            f"{folder} is a Hugging Face checkpoint; run `gpt2-jax import --model={folder} "
            "--workdir=DIR`, and set it to DIR"
        )


def load_pretrained(
    source: PretrainedSource,
    mesh: Mesh,
    head: HeadSpec,
    keeps_outputs: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Any:
    """Returns the weights on a mesh, with low-rank updates of a tuned source added to them.

    A head's parameters that the source does not have, or has for another task or other labels, are
    missing.

    Args:
      head: of the model that starts from the weights.
      keeps_outputs: whether the outputs of the source's head mean the same, as returned by
        `has_same_outputs`.
      say: called with one line that names the source, and what is not taken from it.

    Raises:
      UserError: if they belong to another model, or the run that saved them has deleted them.
    """
    stored = source.config
    tune = replace(stored.tune, trained=())  # patterns may be those of another head
    model = define_tuned(stored.model, stored.placement, tune, head=head)
    like = abstract_params(model, mesh)
    params, unused = _restore(source, like, keeps_outputs)
    new = sorted(_names(like) - _names(params))
    parts = [f"new: {', '.join(new)}"] * bool(new)
    parts += [f"not used: {', '.join(unused)}"] * bool(unused)
    say("; ".join([f"weights from {source.name}", *parts]))
    return model.merged(params)[1]


def _restore(source: PretrainedSource, like: Any, keeps_outputs: bool) -> tuple[Any, list[str]]:
    """Returns the weights, and the names of those that are not used."""
    unused: list[str] = []

    def select(like: Any, saved: Any) -> Any:
        found = without_other_heads(like, saved, keeps_outputs)
        unused.extend(sorted(_names(saved) - _names(found)))
        return found

    try:
        return restore_params(source.folder, like, source.step, select), unused
    except Exception:
        if os.path.lexists(source.folder):
            raise
        raise UserError(
            f"{source.folder} was deleted before its weights were read, perhaps by the run that "
            "saved it; start in another --workdir from a checkpoint that still exists"
        ) from None


def initial_state(
    config: Config, compiled: CompiledStep, labels: Sequence[str], source: PretrainedSource
) -> State:
    """Returns the state before the first step of a run that starts from weights.

    Args:
      labels: that the run predicts.
    """
    state, model = compiled.init(), compiled.model_def
    keeps_outputs = has_same_outputs(source, config, labels)
    weights = load_pretrained(source, compiled.mesh, model.head, keeps_outputs, print)
    params = model.with_weights(state.all_params, weights)
    if sparsity := config.optimizer.sparsity:
        prune = partial(pruned, model, sparsity=sparsity)
        params = jax.jit(prune, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params)
        print(f"pruned {sparsity:.0%} of the weights of each matrix of the blocks")
    return compiled.replace_params(state, params)


def without_other_heads(like: Any, saved: Any, keeps_outputs: bool = True) -> Any:
    """Returns the part of `like` whose parameters are saved: all but new ones of a head.

    Args:
      like: arrays or their shapes, by name. saved: shapes as tuples.
      keeps_outputs: as in `load_pretrained`.

    Raises:
      ValueError: if anything but a head differs.
    """
    body = {name: part for name, part in like.items() if name not in HEADS}
    shapes = {name: part for name, part in saved.items() if name not in HEADS}
    if _shapes(body) != shapes:
        raise ValueError
    heads = {name: _matching(like[name], saved.get(name)) for name in HEADS if name in like}
    if not keeps_outputs and isinstance(heads.get("head"), dict):
        outputs = ("kernel", "bias")
        heads["head"] = {n: part for n, part in heads["head"].items() if n not in outputs} or None
    return body | {name: part for name, part in heads.items() if part is not None}


def _shapes(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _shapes(part) for name, part in tree.items()}
    return tree.shape


def _matching(like: Any, saved: Any) -> Any:
    """Returns the part of `like` with the saved names and shapes, None if there is none."""
    if not isinstance(like, dict):
        return like if like.shape == saved else None
    if not isinstance(saved, dict):
        return None
    parts = {name: _matching(part, saved.get(name)) for name, part in like.items()}
    return {name: part for name, part in parts.items() if part is not None} or None


def _names(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix[:-1]}
    return {name for key, part in tree.items() for name in _names(part, f"{prefix}{key}.")}


def has_same_outputs(source: PretrainedSource, config: Config, labels: Sequence[str]) -> bool:
    """Returns whether the outputs of a source's head mean the same as those of a run's.

    Args:
      labels: that the run predicts.
    """
    directory = _directory_of(source)
    stored = directory.read_config()
    heads = [head_of(one.task, one.head) for one in (stored, config)]
    if heads[0] != heads[1]:
        return False
    return not TASKS[config.task.name].has_labels or directory.labels() == list(labels)


def _directory_of(source: PretrainedSource) -> RunDirectory:
    folder = source.folder
    imported = folder == RunDirectory(str(folder.parent)).weights_path
    return RunDirectory(str(folder.parent if imported else folder.parent.parent))


def check_source(source: PretrainedSource) -> None:
    """Checks initial weights.

    Raises:
      UserError: if they are damaged or missing, or belong to another run.
    """
    folder = source.folder
    if fault := find_damage(folder):
        raise UserError(
            f"the initial weights, {folder}, are damaged or gone: {fault}; restore them from a copy"
        )
    if doubt := check_identity(_directory_of(source), source.step, folder):
        print(f"warning: {doubt}", file=sys.stderr)
