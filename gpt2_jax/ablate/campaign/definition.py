"""A campaign's file, executed once, and campaign.json, which needs no execution."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.cells import DEFINITION, MOVABLE, SILENT
from gpt2_jax.ablate.campaign.design import RATE, Campaign
from gpt2_jax.ablate.campaign.search import Search
from gpt2_jax.ablate.campaign.stored import VERSION, read_stored
from gpt2_jax.ablate.campaign.variants import given
from gpt2_jax.config_file import executing
from gpt2_jax.errors import Damaged, UserError
from gpt2_jax.files import check_creatable, disk_errors, fields_sha256, to_json, write_json


@dataclasses.dataclass(frozen=True)
class Definition:
    """What campaign.json holds, so that a report needs to execute nothing.

    Attributes:
      file: as given by `--config`. given: what its `get_config()` returns.
      base: that with the command line's changes.
    """

    file: str
    given: ConfigDict
    base: ConfigDict
    campaign: Campaign

    @property
    def title(self) -> str:
        """The file's name as words."""
        return Path(self.file.partition(":")[0]).stem.replace("_", " ").capitalize()


def load(argument: str, base: ConfigDict) -> Definition:
    """Returns the campaign of a file, given as `--config` is: `FILE` or `FILE:arg`.

    Args:
      base: what the command line made of the file's `get_config()`.

    Raises:
      UserError: if there is no such file, or it does not hold both.
    """
    path, parted, arg = argument.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config={path} is not there; the shipped ones are configs/ablations/*")
    spec = importlib.util.spec_from_file_location("campaign_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with executing(argument):
        spec.loader.exec_module(module)
        if not hasattr(module, "get_campaign"):
            raise UserError(
                f"--config={path} has no get_campaign(): it is a run's, not a campaign's; train.py "
                "takes it, and configs/ablations/* show the other kind"
            )
        args = (arg,) if parted else ()
        config, campaign = module.get_config(*args), module.get_campaign(*args)
        if not isinstance(campaign, Campaign):
            raise UserError(f"--config={path}: get_campaign() must return a Campaign")
        campaign.check()
    configs.validate(config, f"--config={path}: ")
    set_here = campaign.sets()
    if given := [name for name in configs.difference(config, base) if name in set_here]:
        raise UserError(
            f"--config.{given[0]} has no effect: the campaign sets it for every cell; change "
            f"get_campaign() in {path}, or leave the flag out"
        )
    return Definition(argument, config, base, campaign)


def write(workdir: Path, definition: Definition) -> None:
    """Writes campaign.json, with a hash of itself."""
    fields = {
        "format_version": VERSION,
        "file": definition.file,
        "given": definition.given.to_dict(),
        "base": definition.base.to_dict(),
        "campaign": dataclasses.asdict(definition.campaign),
    }
    stored = json.loads(to_json(fields))  # as it is read again
    with disk_errors(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / DEFINITION, stored | {"sha256": fields_sha256(stored)})


def read(workdir: Path) -> Definition:
    """Returns what `write` wrote.

    Raises:
      UserError: if there is no campaign, or its file was damaged.
    """
    path = workdir / DEFINITION
    if not os.path.exists(path):  # unlike Path's, also where a name is too long to be one
        raise UserError(f"{path} does not exist: is this a campaign's work directory?")
    try:
        stored = read_stored(path)
        digest = stored.pop("sha256", None)  # older versions wrote none
        if digest not in (None, fields_sha256(stored)):
            raise Damaged(
                f"{path} is damaged: it was changed after it was written; bring it back from a copy"
            )
    except Damaged as error:
        raise Damaged(
            f"{error}; or remove it, and the campaign's command writes it again"
        ) from None
    try:
        fields: dict[str, Any] = dict(stored["campaign"])
        if fields["search"] is not None:
            fields["search"] = Search(**fields["search"])
        first, base = (configs.from_dict(dict(stored[name]), path) for name in ("given", "base"))
        return Definition(str(stored["file"]), first, base, Campaign(**fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {error})") from None


def check_place(workdir: Path) -> None:
    """Refuses a place where no directory can be made, before anything is computed.

    Raises:
      UserError: saying why.
    """
    if "://" in str(workdir) or re.match(r"\w+:/", str(workdir)):
        raise UserError(f"--workdir={workdir} is a remote path; a campaign needs a mounted one")
    try:
        there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}; choose another") from None
    if not there.is_dir():
        raise UserError(f"--workdir={workdir}: {there} is a file; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: {there} cannot be written; choose another")
    with disk_errors(f"--workdir={workdir}"):
        check_creatable(workdir)


def check_same(workdir: Path, definition: Definition) -> None:
    """Refuses a directory with the cells of another campaign, which this one would mix with.

    A changed file may add and drop variants and seeds; what all cells share it may not change.

    Raises:
      UserError: naming what differs.
    """
    if not (workdir / DEFINITION).exists() or not _has_cells(workdir):
        return
    old, new = read(workdir), definition
    shared = lambda variants: [tuple(sorted(map(repr, given(v).items()))) for v in variants]
    if not set(shared(old.campaign.variants)) & set(shared(new.campaign.variants)):
        raise UserError(
            f"--workdir={workdir} holds another campaign, of {old.file}, which has none of the "
            f"variants of {new.file}; choose another --workdir"
        )
    open_ = set.intersection(*map(set, (*old.campaign.variants, *new.campaign.variants)))
    open_ |= {RATE} if old.campaign.search and new.campaign.search else set()
    if new.campaign.tokens or new.campaign.flops:
        open_.add("train.steps")
    changed = {
        name: values
        for name, values in configs.difference(old.base, new.base).items()
        if name not in open_ and not name.startswith((*SILENT, *MOVABLE))
    }
    budget = lambda campaign: (campaign.tokens, campaign.flops)
    if budget(old.campaign) != budget(new.campaign):
        changed["tokens, flops"] = (budget(old.campaign), budget(new.campaign))
    if changed:
        listed = ", ".join(f"{name} (was {a!r}, now {b!r})" for name, (a, b) in changed.items())
        raise UserError(
            f"--workdir={workdir} was begun with another config: {listed}; what all cells share "
            "cannot change within a campaign: set it back, or take another --workdir"
        )


def _has_cells(workdir: Path) -> bool:
    return any(any((workdir / name).glob("*")) for name in ("cells", "outcomes"))
