"""The run directory as seen by processes other than the first."""

from __future__ import annotations

from typing import Any

from gpt2_jax.train.storage.rundir import RunDirectory


class FollowedDirectory(RunDirectory):
    """The run directory of another process, which writes it; nothing is written or locked here."""

    def check_usable(self) -> None:
        """Leaves the check, which takes the lock for a moment, to the other process."""

    def lock(self) -> None:
        """Leaves the lock to the other process."""

    def claim(self, *args: Any, **kwargs: Any) -> list[str]:
        """Returns no changes: the other process has reported them."""
        return []

    def change_info(self, **fields: Any) -> None:
        """Leaves run.json to the other process."""

    def write_sample(self, text: str | None) -> None:
        """Leaves sample.txt to the other process."""
