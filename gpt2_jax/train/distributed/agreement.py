"""Checks before the first step that the processes of a run agree, and share a disk.

Otherwise they would compile different programs and wait for each other forever, or train on wrong
data. Every process reports the same difference in one line.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError, quoted
from gpt2_jax.files import disk_errors
from gpt2_jax.train.distributed.processes import Processes
from gpt2_jax.train.versions import PACKAGES, version

SECONDS_UNTIL_VISIBLE = 10.0  # of a new file on a network file system
MAX_LISTED = 5  # differences in an error


def check_same_program(processes: Processes, fields: Mapping[str, Any], module: str | None) -> None:
    """Refuses processes with different configs, versions or code.

    Args:
      fields: the config by dotted names.
      module: name of the user's module with placements, None if there is none.

    Raises:
      UserError: naming the process and what differs.
    """
    if processes.count == 1:
        return
    versions = {f"the version of {name}": version(name) for name in PACKAGES}
    described = {**fields, "the version of Python": platform.python_version(), **versions}
    described["the code of gpt2_jax"] = _hash_of(sorted(Path(__file__).parents[2].rglob("*.py")))
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    described["the code of placement.module"] = file and _hash_of([Path(file)])
    _compare(processes, "program", described, "start all with the same command and versions")


def check_same_data(processes: Processes, corpus: str, tokenizer: str) -> None:
    """Refuses processes that read different text, or tokenize it differently.

    Args:
      corpus: hash of the dataset. tokenizer: fingerprint of the tokenizer.

    Raises:
      UserError: naming the process and what differs.
    """
    described = {"the content of data.source": corpus}
    described["the content of data.tokenizer"] = tokenizer
    _compare(processes, "data", described, "give all of them the same files")


def _compare(processes: Processes, name: str, described: Mapping[str, Any], advice: str) -> None:
    first, *others = processes.gather(f"same {name}", dict(described))
    for index, other in enumerate(others, 1):
        if different := [key for key in first if first[key] != other.get(key)]:
            listed = ", ".join(_difference(key, first, other) for key in different[:MAX_LISTED])
            raise UserError(f"process {index} differs from process 0: {listed}; {advice}")


def _difference(key: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if key.startswith(("the code", "the content")):
        return f"{key} is not the same"
    return f"{key} is {quoted(other.get(key))} instead of {quoted(first[key])}"


def _hash_of(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def check_shared_folder(processes: Processes, folder: Path) -> None:
    """Refuses a work directory that the processes do not share.

    Args:
      folder: exists where process 0 runs.

    Raises:
      UserError: naming the first process that does not see the files of process 0.
    """
    if processes.count == 1:
        return
    probe = folder / processes.broadcast("probe", f".shared.{secrets.token_hex(4)}.tmp")
    try:
        with processes.together("write probe"), disk_errors(f"--workdir={folder}"):
            if processes.is_main:
                probe.touch()
        seen = processes.gather("see probe", [socket.gethostname(), _appears(probe)])
    finally:
        if processes.is_main:
            probe.unlink(missing_ok=True)
    for index, (host, is_seen) in enumerate(seen):
        if not is_seen:
            raise UserError(
                f"--workdir={folder} of process {index} on {host} is not that of process 0 on "
                f"{seen[0][0]}; choose a folder on a file system that all processes share"
            )


def _appears(path: Path) -> bool:
    """Returns whether a file exists, after waiting for a network file system to show it."""
    deadline = time.monotonic() + SECONDS_UNTIL_VISIBLE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        for folder in (path.parent.parent, path.parent):  # listing it refreshes NFS's cache
            with suppress(OSError):
                os.listdir(folder)
        time.sleep(0.2)
    return True
