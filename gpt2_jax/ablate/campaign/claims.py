"""Which worker trains which cell, agreed on through files in a directory that all of them see.

`claims/CELL.0` is the first claim on a cell, `CELL.1` the next, and the one with the highest number
holds. A claim is made by creating its file, which only one process can do, and is never deleted, so
that two workers who find the same dead owner cannot both take its place. Owners touch their files;
one that has not for a while, or whose process is gone from this machine, is dead. So is one whose
claim is dated in the future: it was copied from a machine whose clock is ahead.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any, Self

from gpt2_jax.files import disk_errors, write_json

BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0


class Claims:
    """This worker's claims. Enter it, so that they are kept alive.

    Args:
      folder: made if it is not there.
    """

    def __init__(
        self, folder: Path, beat_seconds: float = BEAT_SECONDS, dead_seconds: float = DEAD_SECONDS
    ) -> None:
        self._folder, self._beat, self._dead = folder, beat_seconds, dead_seconds
        self._me = {
            "owner": secrets.token_hex(8),
            "host": f"{socket.gethostname()} {_pid_namespace()}",
            "pid": os.getpid(),
            "born": _born(os.getpid()),
        }
        self._clock = folder / f".clock-{self._me['owner']}"
        self._held: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="claims", daemon=True)
        with disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        for clock in self._folder.glob(".clock-*"):
            if clock != self._clock and self._is_free(clock):
                clock.unlink(missing_ok=True)  # its owner was killed, or makes it again
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        for cell in list(self._held):
            self.release(cell)
        self._clock.unlink(missing_ok=True)

    def take(self, cell: str) -> bool:
        """Returns whether the cell is this worker's now."""
        number = self._highest(cell)
        if number is not None and not self._is_free(self._path(cell, number)):
            return False
        number = 0 if number is None else number + 1
        with disk_errors("a claim"):
            try:
                file = open(self._path(cell, number), "x", encoding="utf-8")
            except FileExistsError:
                return False
            with file:
                json.dump(self._me, file)
        self._held[cell] = number
        return True

    def others(self) -> list[str]:
        """Returns the cells that other workers, alive as far as is known, have."""
        cells = {path.name.rpartition(".")[0] for path in self._folder.glob("*.*")} - {""}
        latest = {cell: self._highest(cell) for cell in sorted(cells)}
        return [
            cell
            for cell, number in latest.items()
            if number is not None
            and cell not in self._held
            and not self._is_free(self._path(cell, number))
        ]

    def is_held(self, cell: str) -> bool:
        """Returns whether a claim of this worker still holds: nobody took it for dead."""
        return cell in self._held and self._highest(cell) == self._held[cell]

    def release(self, cell: str) -> None:
        """Lets others have the cell."""
        number = self._held.pop(cell)
        with disk_errors("a claim"):
            write_json(self._path(cell, number), {"owner": None})

    def _path(self, cell: str, number: int) -> Path:
        return self._folder / f"{cell}.{number}"

    def _highest(self, cell: str) -> int | None:
        numbers = [
            int(name[len(cell) + 1 :])
            for name in os.listdir(self._folder)
            if name.startswith(f"{cell}.") and name[len(cell) + 1 :].isdecimal()
        ]
        return max(numbers, default=None)

    def _is_free(self, path: Path) -> bool:
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
            age = self.now() - path.stat().st_mtime
            if not isinstance(owner, dict):
                raise ValueError
        except (OSError, ValueError):
            owner, age = {}, self._age_of_torn(path)
        if owner.get("owner", "unknown") is None:
            return True
        if owner.get("host") == self._me["host"]:
            return _born(owner["pid"]) != owner["born"]
        return abs(age) > self._dead

    def _age_of_torn(self, path: Path) -> float:
        """Returns the age of a claim whose owner was killed, or is not done, writing it."""
        return self.now() - path.stat().st_mtime if path.exists() else 0.0

    def now(self) -> float:
        """Returns the time as the file system has it, which is everybody's."""
        # By its descriptor: another worker may remove the file between two calls by name.
        descriptor = os.open(self._clock, os.O_RDWR | os.O_CREAT, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(self._me, file)
            file.flush()
            return os.fstat(descriptor).st_mtime

    def _work(self) -> None:
        while not self._ended.wait(self._beat):
            for cell, number in list(self._held.items()):
                with contextlib.suppress(OSError):  # the next beat may reach the disk again
                    os.utime(self._path(cell, number))


def _pid_namespace() -> str:
    """Returns what tells containers apart that call themselves the same; nothing without /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> Any:
    """Returns what tells a process from a later one of the same number, None if it is gone."""
    try:
        # Fields 3 and 22 of proc(5)'s stat, counted behind the name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # dead, though nobody asked for its code
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
