"""A campaign's file, executed once, and campaign.json, which needs no execution."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.cells import DEFINITION
from gpt2_jax.ablate.campaign.design import Campaign
from gpt2_jax.ablate.campaign.search import Search
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, write_json


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
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_campaign"):
            raise UserError(
                f"--config={path} has no get_campaign(): it is a run's, not a campaign's; train.py "
                "takes it, and configs/ablations/* show the other kind"
            )
        args = (arg,) if parted else ()
        config, campaign = module.get_config(*args), module.get_campaign(*args)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={path}: {type(error).__name__}: {error}") from None
    if not isinstance(campaign, Campaign):
        raise UserError(f"--config={path}: get_campaign() must return a Campaign")
    campaign.check()
    axes = {name for variant in campaign.variants for name in variant}
    if given := [name for name in configs.difference(config, base) if name in axes]:
        raise UserError(f"--config.{given[0]} has no effect: the campaign's variants set it")
    return Definition(argument, config, base, campaign)


def write(workdir: Path, definition: Definition) -> None:
    """Writes campaign.json."""
    with disk_errors(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(
            workdir / DEFINITION,
            {
                "file": definition.file,
                "given": definition.given.to_dict(),
                "base": definition.base.to_dict(),
                "campaign": dataclasses.asdict(definition.campaign),
            },
        )


def read(workdir: Path) -> Definition:
    """Returns what `write` wrote.

    Raises:
      UserError: if there is no campaign.
    """
    path = workdir / DEFINITION
    if not path.exists():
        raise UserError(f"{path} does not exist: is this a campaign's work directory?")
    stored = json.loads(path.read_text())
    fields = stored["campaign"]
    if fields["search"] is not None:
        fields["search"] = Search(**fields["search"])
    given, base = (configs.from_dict(stored[name], path) for name in ("given", "base"))
    return Definition(stored["file"], given, base, Campaign(**fields))
