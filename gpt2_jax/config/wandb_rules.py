"""Checks settings that wandb would refuse, as it would then not track the run."""

from __future__ import annotations

import os

from gpt2_jax.config.sections import WandbConfig
from gpt2_jax.config.table import FIELDS, words

TAG_CHARS = 64
PROJECT_CHARS = 128
NOT_IN_PROJECT = "/\\#?%:"


def find_wandb_fault(settings: WandbConfig) -> str | None:
    """Returns one line about a setting that wandb 0.31 would refuse, naming the field, or None.

    Args:
      settings: `track.wandb` of a config; an unset field gets its value from WANDB_*.
    """
    mode = settings.mode or os.environ.get("WANDB_MODE")
    modes = FIELDS["track.wandb.mode"].choices
    if mode is not None and mode not in modes:
        return f"WANDB_MODE={mode} is not a valid mode; set it to one of {', '.join(modes)}"
    if mode == "disabled":
        return None
    field = "track.wandb.project" if settings.project else "WANDB_PROJECT"
    project = settings.project or os.environ.get("WANDB_PROJECT") or ""
    if len(project) > PROJECT_CHARS:
        return f"{field} has {len(project)} characters; wandb allows {PROJECT_CHARS}"
    if found := [c for c in NOT_IN_PROJECT if c in project]:
        return (
            f"{field}={project!r} contains {found[0]!r}; "
            f"wandb does not allow {NOT_IN_PROJECT} in project names"
        )
    return _find_tag_fault(words(settings.tags))


def _find_tag_fault(tags: tuple[str, ...]) -> str | None:
    field = "track.wandb.tags"
    if not tags and (value := os.environ.get("WANDB_TAGS")):
        field, tags = "WANDB_TAGS", tuple(value.split(","))
    for tag in tags:
        if not 1 <= len(tag) <= TAG_CHARS:
            shown = tag if len(tag) <= 24 else f"{tag[:20]}…"
            chars = f"{len(tag)} characters; wandb allows 1 to {TAG_CHARS}"
            return f"{field}: tag {shown!r} has {chars}"
    return None
