"""Packs a campaign's directory into one file, to be continued on another machine.

    python -m gpt2_jax.ablate.campaign.pack --workdir=runs/placement --out=placement.tar.gz

There, `tar -xf placement.tar.gz` makes the directory again, under the same name, and the same
command as before continues it.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from gpt2_jax import cli
from gpt2_jax.ablate.campaign.packing import pack
from gpt2_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "a campaign's directory")
_OUT = flags.DEFINE_string("out", None, "the file to write: .tar.gz or .tar")
_CHECKPOINTS = flags.DEFINE_boolean("checkpoints", False, "also those of finished cells")


def main(argv: list[str]) -> None:
    """Writes the file and says how large it is."""
    del argv
    if not _WORKDIR.value or not _OUT.value:
        raise UserError("give --workdir, the campaign's directory, and --out, the file to write")
    out = Path(_OUT.value)
    n = pack(Path(_WORKDIR.value), out, _CHECKPOINTS.value)
    print(f"{out}: {n:,} files, {out.stat().st_size / 2**20:,.1f} MiB")
    print(f"to continue elsewhere: tar -xf {out.name}, then the campaign's command")


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
