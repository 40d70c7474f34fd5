"""Where a run's first weights come from, when not from chance: another run, or an import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.data.kept_tokenizer import same_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.model.placements import AXES
from gpt2_jax.model.placements.axes import SCALES
from gpt2_jax.model.placements.resolve import resolve
from gpt2_jax.train.checkpoint import damage, restore_params
from gpt2_jax.train.restore import find_checkpoint
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.verify import check_identity

# Fields that say what the weights are; the others say how they are run and trained.
FACTS = (
    "model.placement",
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.n_positions",
    "model.n_inner",
    "model.vocab_size",
    "model.vocab_multiple",
    "model.scale_attn_weights",
    "model.scale_attn_by_inverse_layer_idx",
    "model.tie_head",
    *(f"model.{name}" for name in AXES),
    "data.tokenizer",
)
# Of them, what another run of the same parameters may have otherwise: factors that are not learned.
OPEN = tuple(f"model.{name}" for name in (*SCALES, "drop_path"))


@dataclass(frozen=True)
class Origin:
    """A folder of weights, and the config of the run that they are from."""

    folder: Path
    config: ConfigDict
    name: str
    step: int = 0


def find_origin(config: ConfigDict, directory: RunDirectory) -> Origin | None:
    """Returns what `train.init_from` names, or the weights that an import left in the directory.

    Raises:
      UserError: if there are none where they should be.
    """
    given = config.train.init_from
    if directory.weights_path.exists():
        if given is not None:
            raise UserError(
                f"{directory.path} holds imported weights of its own; leave train.init_from unset, "
                "or choose another --workdir"
            )
        return Origin(directory.weights_path, directory.read_config(), str(directory.path))
    if given is None:
        return None
    if directory.config_path.exists():  # the run that was begun from there goes on
        begun = directory.read_config()
        before = begun.train.init_from or ""
        source, _, step = before.rpartition("@")
        if source and given in (before, source, f"{source}@best"):
            return Origin(RunDirectory(source).folder_of(int(step)), begun, before, int(step))
    return open_origin(given)


def adopt(config: ConfigDict, origin: Origin, say: Callable[[str], None]) -> ConfigDict:
    """Returns the config with the facts of the origin's weights, and its name with the update.

    A field at its usual value is taken to be left open; the sequence length, so left, is the
    origin's as well.

    Args:
      say: told in one line which fields were changed.

    Raises:
      UserError: if the config asks for another model than the weights are of.
    """
    config = config.copy_and_resolve_references()
    asked, usual = configs.flatten(config), configs.flatten(configs.default())
    facts = configs.flatten(origin.config)
    for name in FACTS:
        if name in OPEN and asked[name] != usual[name] and not _is_learned(config, origin, name):
            continue
        same = name == "data.tokenizer" and same_tokenizer(asked[name], facts[name])
        if not same and asked[name] not in (usual[name], facts[name]):
            raise UserError(
                f"{name}={asked[name]!r}, but the weights of {origin.name} have "
                f"{facts[name]!r}; leave it unset"
            )
        section, _, leaf = name.partition(".")
        config[section][leaf] = facts[name]
    if asked["data.seq_len"] == usual["data.seq_len"]:
        config.data.seq_len = facts["data.seq_len"]
    now = configs.flatten(config)
    changed = [f"{name}={now[name]!r}" for name in now if now[name] != asked[name]]
    say(f"from {origin.name}: {', '.join(changed) or 'nothing but the weights'}")
    if config.train.init_from is not None:
        config.train.init_from = origin.name
    return config


def _is_learned(config: ConfigDict, origin: Origin, name: str) -> bool:
    """Returns whether a factor has parameters in the config or in the origin."""
    leaf = name.rpartition(".")[2]
    texts = [getattr(resolve(model), leaf) for model in (config.model, origin.config.model)]
    return any("learned" in text for text in texts)


def open_origin(given: str) -> Origin:
    """Returns the weights of `DIR`, `DIR@best` or `DIR@STEP`, with the number of their step.

    Raises:
      UserError: if there are none, or they are damaged or another run's.
    """
    path, _, step = given.rpartition("@")
    if not path or Path(given).is_dir():  # a path may have the sign in it
        path, step = given, ""
    directory = RunDirectory(path)
    try:
        if step and step != "best" and not step.isdecimal():
            raise UserError(f"{step!r} after @ is neither a number of steps nor `best`")
        number = find_checkpoint(path, step or None)
        config = directory.read_config()
    except UserError as error:
        raise UserError(f"train.init_from={given}: {error}") from None
    return Origin(directory.folder_of(number), config, f"{path}@{number}", number)


def restore_origin(origin: Origin, like: Any) -> Any:
    """Returns the weights, with the shapes and shardings of `like`.

    Raises:
      UserError: if they are another model's, or were deleted by the run that saved them.
    """
    try:
        return restore_params(origin.folder, like, origin.step)
    except Exception:
        if os.path.lexists(origin.folder):
            raise
        raise UserError(
            f"{origin.folder} was deleted before its weights were read, perhaps by the run that "
            "saved it; begin in another --workdir from a checkpoint that is still there"
        ) from None


def check_origin(origin: Origin) -> None:
    """Refuses weights that a run is to begin with and that are not what they should be.

    Raises:
      UserError: if they are damaged, gone, or another run's.
    """
    folder = origin.folder
    if fault := damage(folder):
        raise UserError(f"the first weights, {folder}, are damaged or gone: {fault}")
    imported = folder == RunDirectory(str(folder.parent)).weights_path
    directory = RunDirectory(str(folder.parent if imported else folder.parent.parent))
    if doubt := check_identity(directory, origin.step, folder):
        print(f"warning: {doubt}", file=sys.stderr)
