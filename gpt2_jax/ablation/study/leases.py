"""Leases: files in a shared directory through which workers agree who trains which trial.

`leases/TRIAL.0` is the first lease on a trial, `TRIAL.1` the next; the one with the highest number
is valid. A worker takes a lease by creating its file, which only one process can do. Leases are
never deleted, so two workers that find the same dead owner cannot both replace it. Owners touch
their files. An owner that has not done so for a while, or whose process no longer exists on this
machine, is dead. So is the owner of a lease dated far in the future: it was copied from a machine
whose clock is ahead.
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

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 60.0


class Leases:
    """This worker's leases; a context manager that renews them.

    Args:
      folder: created if it does not exist.
    """

    def __init__(
        self,
        folder: Path,
        renew_seconds: float = RENEW_SECONDS,
        expire_seconds: float = EXPIRE_SECONDS,
    ) -> None:
        self._folder, self._renew, self._expire = folder, renew_seconds, expire_seconds
        self._me = {
            "owner": secrets.token_hex(8),
            "host": f"{socket.gethostname()} {_pid_namespace()}",
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
        }
        self._clock = folder / f".clock-{self._me['owner']}"
        self._held: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="leases", daemon=True)
        with disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        for clock in self._folder.glob(".clock-*"):
            if clock != self._clock and self._is_free(clock):
                clock.unlink(missing_ok=True)  # the owner is dead, or else creates it again
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        for trial in list(self._held):
            self.release(trial)
        self._clock.unlink(missing_ok=True)

    def take(self, trial: str) -> bool:
        """Takes the lease on a trial; returns False if another worker has it."""
        number = self._highest(trial)
        if number is not None and not self._is_free(self._path(trial, number)):
            return False
        number = 0 if number is None else number + 1
        with disk_errors("a lease"):
            try:
                file = open(self._path(trial, number), "x", encoding="utf-8")
            except FileExistsError:
                return False
            with file:
                json.dump(self._me, file)
        self._held[trial] = number
        return True

    def others(self) -> list[str]:
        """Returns the trials leased by other workers that are not known to be dead."""
        trials = {path.name.rpartition(".")[0] for path in self._folder.glob("*.*")} - {""}
        latest = {trial: self._highest(trial) for trial in sorted(trials)}
        return [
            trial
            for trial, number in latest.items()
            if number is not None
            and trial not in self._held
            and not self._is_free(self._path(trial, number))
        ]

    def is_held(self, trial: str) -> bool:
        """Returns whether this worker's lease is still valid: no other worker has replaced it."""
        return trial in self._held and self._highest(trial) == self._held[trial]

    def release(self, trial: str) -> None:
        """Makes a trial available to other workers."""
        number = self._held.pop(trial)
        with disk_errors("a lease"):
            write_json(self._path(trial, number), {"owner": None})

    def _path(self, trial: str, number: int) -> Path:
        return self._folder / f"{trial}.{number}"

    def _highest(self, trial: str) -> int | None:
        numbers = [
            int(name[len(trial) + 1 :])
            for name in os.listdir(self._folder)
            if name.startswith(f"{trial}.") and name[len(trial) + 1 :].isdecimal()
        ]
        return max(numbers, default=None)

    def _is_free(self, path: Path) -> bool:
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
            age = self.now() - path.stat().st_mtime
            if not isinstance(owner, dict):
                raise ValueError
        except (OSError, ValueError):
            owner, age = {}, self._age_if_incomplete(path)
        if owner.get("owner", "unknown") is None:
            return True
        if owner.get("host") == self._me["host"]:
            return _process_start(owner["pid"]) != owner["process_start"]
        return abs(age) > self._expire

    def _age_if_incomplete(self, path: Path) -> float:
        """Returns the age of a lease that its owner has not finished writing; 0 if it is gone."""
        return self.now() - path.stat().st_mtime if path.exists() else 0.0

    def now(self) -> float:
        """Returns the file system's time, which is the same for all workers."""
        # Use one descriptor: another worker may remove the file between two calls by name.
        descriptor = os.open(self._clock, os.O_RDWR | os.O_CREAT, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(self._me, file)
            file.flush()
            return os.fstat(descriptor).st_mtime

    def _work(self) -> None:
        while not self._ended.wait(self._renew):
            for trial, number in list(self._held.items()):
                with contextlib.suppress(
                    OSError
                ):  # the disk may have recovered by the next renewal
                    os.utime(self._path(trial, number))


def _pid_namespace() -> str:
    """Returns an id that distinguishes containers with the same host name; "" without /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> Any:
    """Returns a value that tells a process from later ones with its id; None if it has ended."""
    try:
        # Fields 3 and 22 of proc(5)'s stat; split after the name, which may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # zombie: dead, but not reaped
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
