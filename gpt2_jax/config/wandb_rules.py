"""What wandb's client would refuse, checked before a run, which would not be tracked otherwise."""

from __future__ import annotations

import os

from gpt2_jax.config.sections import WandbConfig
from gpt2_jax.config.table import words

MODES = ("online", "offline", "disabled")
TAG_CHARS = 64
PROJECT_CHARS = 128
NOT_IN_PROJECT = "/\\#?%:"


def find_wandb_fault(given: WandbConfig) -> str | None:
    """Returns what wandb 0.31 would refuse, as one line that names the field; None if nothing.

    Args:
      given: `track.wandb` of a config; for an unset field, WANDB_* applies.
    """
    mode = given.mode or os.environ.get("WANDB_MODE")
    if mode is not None and mode not in MODES:
        return f"WANDB_MODE={mode} is not a valid mode; set it to one of {', '.join(MODES)}"
    if mode == "disabled":
        return None
    field = "track.wandb.project" if given.project else "WANDB_PROJECT"
    project = given.project or os.environ.get("WANDB_PROJECT") or ""
    if len(project) > PROJECT_CHARS:
        return f"{field} has {len(project)} characters; wandb allows {PROJECT_CHARS}"
    if found := [c for c in NOT_IN_PROJECT if c in project]:
        return (
            f"{field}={project!r} has {found[0]!r}; "
            f"wandb allows none of {NOT_IN_PROJECT} in the name of a project"
        )
    return _find_tag_fault(words(given.tags))


def _find_tag_fault(tags: tuple[str, ...]) -> str | None:
    field = "track.wandb.tags"
    if not tags and (given := os.environ.get("WANDB_TAGS")):
        field, tags = "WANDB_TAGS", tuple(given.split(","))
    for tag in tags:
        if not 1 <= len(tag) <= TAG_CHARS:
            shown = tag if len(tag) <= 24 else f"{tag[:20]}…"
            chars = f"{len(tag)} characters; wandb allows 1 to {TAG_CHARS}"
            return f"{field}: the tag {shown!r} has {chars}"
    return None
