"""Packs a study's directory into one file, to continue the study on another machine.

    gpt2-jax pack --workdir=runs/placement --out=placement.tar.gz

On the other machine, `tar -xf placement.tar.gz` creates the directory under the same name, and the
study's command continues it.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from gpt2_jax.ablation.study.packing import pack
from gpt2_jax.errors import UserError, counted

_WORKDIR = flags.DEFINE_string("workdir", None, "the study's directory")
_OUT = flags.DEFINE_string("out", None, "the file to write: .tar.gz or .tar")
_CHECKPOINTS = flags.DEFINE_boolean("checkpoints", False, "include finished trials' checkpoints")


def main(argv: list[str]) -> None:
    """Writes the file and prints its size."""
    del argv
    if not _WORKDIR.value or not _OUT.value:
        raise UserError("pass --workdir, the study's directory, and --out, the file to write")
    out = Path(_OUT.value)
    n = pack(Path(_WORKDIR.value), out, _CHECKPOINTS.value)
    print(f"{out}: {counted(n, 'file')}, {out.stat().st_size / 2**20:,.1f} MiB")
    print(f"to continue elsewhere: tar -xf {out.name}, then the study's command")
