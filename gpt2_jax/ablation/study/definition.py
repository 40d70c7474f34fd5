"""Loads a study file, which is executed, and stores it as study.json, which is not."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from gpt2_jax import config as configs
from gpt2_jax.ablation.study.design import LEARNING_RATE, Study
from gpt2_jax.ablation.study.formats import VERSION, read_stored
from gpt2_jax.ablation.study.search import Search
from gpt2_jax.ablation.study.store import DEFINITION, OUTCOMES, TRIALS, check_not_outdated
from gpt2_jax.ablation.study.trials import MOVABLE, RESULT_NEUTRAL
from gpt2_jax.ablation.study.variants import explicit
from gpt2_jax.config import Config
from gpt2_jax.config.files import executing
from gpt2_jax.errors import Damaged, UserError
from gpt2_jax.files import check_creatable, disk_errors, fields_sha256, to_json, write_json


@dataclasses.dataclass(frozen=True)
class Definition:
    """The content of study.json; reports are written from it without executing anything.

    Attributes:
      file: the value of `--config`.
      file_config: what the file's `get_config()` returns.
      base: `file_config` with the command line's changes.
    """

    file: str
    file_config: Config
    base: Config
    study: Study

    @property
    def title(self) -> str:
        """A title made from the file's name."""
        return Path(self.file.partition(":")[0]).stem.replace("_", " ").capitalize()


def load(argument: str, base: Config) -> Definition:
    """Loads a study file.

    Args:
      argument: the value of `--config`: `FILE` or `FILE:arg`.
      base: the file's `get_config()` with the command line's changes.

    Raises:
      UserError: if the file does not exist or does not define a valid study.
    """
    path, has_arg, arg = argument.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config={path} does not exist; configs/ablations/ has examples")
    spec = importlib.util.spec_from_file_location("study_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with executing(argument):
        spec.loader.exec_module(module)
        _check_functions(module, path)
        args = (arg,) if has_arg else ()
        config, study = module.get_config(*args), module.get_study(*args)
        if not isinstance(study, Study):
            raise UserError(f"--config={path}: get_study() must return a Study")
        study.check()
    config = configs.freeze(config, f"--config={path}: ")
    fixed = study.fields_set()
    if overridden := [name for name in configs.difference(config, base) if name in fixed]:
        raise UserError(
            f"--config.{overridden[0]} has no effect: the study sets it for every trial; change "
            f"get_study() in {path}, or omit the flag"
        )
    return Definition(argument, config, base, study)


def _check_functions(module: Any, path: str) -> None:
    if hasattr(module, "get_campaign"):
        raise UserError(
            f"--config={path}: rename get_campaign() to get_study(); it returns a Study"
        )
    if not hasattr(module, "get_study"):
        raise UserError(
            f"--config={path} has no get_study(), so it is a run's config, not a study file: use "
            "train.py, or see configs/ablations/ for study files"
        )


def write(workdir: Path, definition: Definition) -> None:
    """Writes study.json, including a hash of its content."""
    fields = {
        "format_version": VERSION,
        "file": definition.file,
        "file_config": configs.to_dict(definition.file_config),
        "base": configs.to_dict(definition.base),
        "study": dataclasses.asdict(definition.study),
    }
    stored = json.loads(to_json(fields))  # hash the values as they will be read
    with disk_errors(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / DEFINITION, stored | {"sha256": fields_sha256(stored)})


def read(workdir: Path) -> Definition:
    """Reads study.json.

    Raises:
      UserError: if the file does not exist or is damaged.
    """
    path = workdir / DEFINITION
    if not os.path.exists(path):  # unlike Path.exists, also if the name is too long
        check_not_outdated(workdir)
        raise UserError(f"{path} does not exist; is this the work directory of a study?")
    try:
        stored = read_stored(path)
        if stored.pop("sha256", None) != fields_sha256(stored):
            raise Damaged(f"{path} is damaged: it was changed after it was written; restore a copy")
    except Damaged as error:
        raise Damaged(f"{error}; or remove it and run the study's command again") from None
    try:
        fields: dict[str, Any] = dict(stored["study"])
        if fields["search"] is not None:
            fields["search"] = Search(**fields["search"])
        file_config, base = (
            configs.from_dict(dict(stored[name]), path) for name in ("file_config", "base")
        )
        return Definition(str(stored["file"]), file_config, base, Study(**fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {error})") from None


def check_workdir(workdir: Path) -> None:
    """Checks that a work directory can be created and used.

    Raises:
      UserError: if it cannot.
    """
    if "://" in str(workdir) or re.match(r"\w+:/", str(workdir)):
        raise UserError(
            f"--workdir={workdir} is in object storage; a study needs a local or shared disk"
        )
    try:
        nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}; choose another") from None
    if not nearest.is_dir():
        raise UserError(f"--workdir={workdir}: {nearest} is a file; choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: {nearest} is not writable; choose another")
    with disk_errors(f"--workdir={workdir}"):
        check_creatable(workdir)
    check_not_outdated(workdir)


def check_same(workdir: Path, definition: Definition) -> None:
    """Checks that a directory does not contain trials of another study.

    A changed study file may add and drop variants and seeds, but not change what all trials share.

    Raises:
      UserError: naming the difference.
    """
    has_trials = any(any((workdir / name).glob("*")) for name in (TRIALS, OUTCOMES))
    if not (workdir / DEFINITION).exists() or not has_trials:
        return
    old, new = read(workdir), definition
    as_sets = lambda variants: {tuple(sorted(map(repr, explicit(v).items()))) for v in variants}
    if not as_sets(old.study.variants) & as_sets(new.study.variants):
        raise UserError(
            f"--workdir={workdir} holds another study, from {old.file}, which has none of the "
            f"variants of {new.file}; choose another --workdir"
        )
    free = set.intersection(*map(set, (*old.study.variants, *new.study.variants)))
    free |= {LEARNING_RATE} if old.study.search and new.study.search else set()
    if new.study.tokens or new.study.flops:
        free.add("train.steps")
    ignored = (*RESULT_NEUTRAL, *MOVABLE)
    changed = {
        name: values
        for name, values in configs.difference(old.base, new.base, ignored).items()
        if name not in free
    }
    budget = lambda study: (study.tokens, study.flops)
    if budget(old.study) != budget(new.study):
        changed["tokens, flops"] = (budget(old.study), budget(new.study))
    if changed:
        raise UserError(f"--workdir={workdir} {describe_changes(changed)}")


def describe_changes(changed: dict[str, tuple[Any, Any]]) -> str:
    """Returns the end of an error message about fields that changed from one value to another."""
    return (
        f"was begun with another config: {configs.listed(changed)}; fields that all trials share "
        "cannot change within a study: restore them, or choose another --workdir"
    )
