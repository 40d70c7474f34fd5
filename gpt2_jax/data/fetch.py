r"""Fetches remote files ahead of their use: a process downloads and tokenizes each of them.

A file becomes a prepared folder with a single split, in the cache. Fetching is resumable and two
processes that need the same file share the work, as in any preparation.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2_jax.data import remote
from gpt2_jax.data.manifest import MANIFEST
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.remote import RemoteFile
from gpt2_jax.data.separator import SeparatedSource
from gpt2_jax.data.shards import Corpus, open_prepared
from gpt2_jax.data.sources import Files, Source
from gpt2_jax.data.split import Plan
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import EXIT_STOPPED, EXIT_WRONG_INPUT, Unavailable, UserError
from gpt2_jax.files import cache_dir, disk_errors, open_lock

AT_ONCE = 2  # so that one file is tokenized while the next is downloaded
CPU_SHARE = 4  # a process tokenizes on a fourth of the cores, and leaves the others to training
_OPENING = 3  # attempts to open a folder that other runs may delete


@dataclass(frozen=True)
class Job:
    """A file to fetch and how to tokenize it.

    Attributes:
      tokenizer: as in `data.tokenizer`. fingerprint: that tokenizer's.
    """

    file: RemoteFile
    tokenizer: str
    fingerprint: str
    separator: str | None

    @property
    def folder(self) -> Path:
        """The prepared folder, in the cache."""
        facts = [asdict(self.file), self.fingerprint, self.separator]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        return cache_dir() / "streams" / key

    def delete(self) -> None:
        """Deletes the folder and any interrupted download, unless it is being fetched."""
        with suppress(OSError), open_lock(self._lock_path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self._downloads, ignore_errors=True)

    @property
    def _downloads(self) -> Path:
        return self.folder.with_suffix(".download")

    @property
    def _lock_path(self) -> Path:
        return self.folder.with_suffix(".lock")

    def work(self) -> None:
        """Downloads and tokenizes the file, unless its folder is complete.

        Raises:
          UserError: if the file cannot be read, has changed, or is not valid text.
        """
        with disk_errors("the cache (set XDG_CACHE_HOME)"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self._lock_path)
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.folder / MANIFEST).is_file():
                return
            with disk_errors("the cache (set XDG_CACHE_HOME)"):
                self._downloads.mkdir(exist_ok=True)
            path = self._downloads / self.file.name
            remote.download(self.file, path)
            self._prepare(path)
            shutil.rmtree(self._downloads, ignore_errors=True)

    def _prepare(self, path: Path) -> None:
        """Tokenizes the downloaded file, all of it as validation text."""
        source: Source = Files(self.file.url, [path])
        if self.separator is not None:
            source = SeparatedSource(source, self.separator)
        plan = Plan(None, source, 0.0, self.separator)
        tokenizer = load_tokenizer(self.tokenizer, self.fingerprint)
        processes = max(1, (os.cpu_count() or 1) // CPU_SHARE)
        try:
            prepare(plan, tokenizer, self.folder, processes=processes)
        except UserError as error:
            raise UserError(str(error).replace(str(path), self.file.url)) from None


def jobs_of(files: Sequence[RemoteFile], tokenizer: Tokenizer, separator: str | None) -> list[Job]:
    """Returns a job for each file."""
    return [Job(file, tokenizer.name, tokenizer.fingerprint, separator) for file in files]


class Fetcher:
    """Runs jobs in the background, and opens their folders.

    Only a few processes run at a time. They end when this process ends, even if it is killed.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._futures: dict[int, Future[Corpus]] = {}
        self._slots = threading.Semaphore(AT_ONCE)

    def request(self, i: int) -> Future[Corpus]:
        """Starts to fetch file i, unless it is already there or on its way."""
        if i not in self._futures:
            future = self._futures[i] = Future()
            # A daemon, so that the end of training does not wait for it.
            threading.Thread(target=self._fetch, args=(self._jobs[i], future), daemon=True).start()
        return self._futures[i]

    def open(self, i: int) -> Corpus:
        """Returns the tokens of file i as validation text, waiting until it is fetched.

        Raises:
          UserError: as `Job.work`.
        """
        future = self._futures.get(i)
        if future is not None and future.done() and future.exception() is not None:
            del self._futures[i]  # it failed in the background, perhaps long ago
        try:
            return self.request(i).result()
        except BaseException:
            self._futures.pop(i, None)  # the next call tries again
            raise

    def keep_only(self, kept: Collection[int]) -> None:
        """Deletes the folders of all other files that were fetched here."""
        for i in [i for i, future in self._futures.items() if i not in kept and future.done()]:
            del self._futures[i]
            self._jobs[i].delete()

    def _fetch(self, job: Job, future: Future[Corpus]) -> None:
        try:
            with self._slots:
                future.set_result(_open(job))
        except BaseException as error:  # re-raised in `open`
            future.set_exception(error)


def _open(job: Job) -> Corpus:
    """Returns the corpus of a job's folder, which is fetched if necessary."""
    for _ in range(_OPENING - 1):
        if not (job.folder / MANIFEST).is_file():
            _run(job)
        with suppress(UserError):  # it is damaged, or another run has just deleted it
            return open_prepared(job.folder)
        job.delete()
    _run(job)
    return open_prepared(job.folder)


def _run(job: Job) -> None:
    """Runs a job in a process of its own.

    Raises:
      Unavailable: if the file cannot be read, or the process is killed.
      UserError: if the file has changed, or is not valid text.
    """
    settings = {"ATTEMPTS": remote.ATTEMPTS, "FIRST_DELAY": remote.FIRST_DELAY}
    command = [sys.executable, "-m", __name__, json.dumps([asdict(job), settings])]
    # In a session of its own, because a signal to the run's process group must not end it: the run
    # may need this file to reach the end of its step.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stderr is not None
        output = process.stderr.read().decode(errors="replace")
        code = process.wait()
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    ended = f"error: source {job.file.url}: fetching it ended with exit code {code}; try again"
    message = (lines or [ended])[-1].removeprefix("error: ")
    if code == EXIT_WRONG_INPUT:
        raise UserError(message)
    if code:
        raise Unavailable(message)


def _main() -> int:
    """Runs the job that the command line describes; ends when its standard input is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    described, settings = json.loads(sys.argv[1])
    remote.ATTEMPTS, remote.FIRST_DELAY = settings["ATTEMPTS"], settings["FIRST_DELAY"]
    job = Job(**{**described, "file": RemoteFile(**described["file"])})
    try:
        job.work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_STOPPED if isinstance(error, Unavailable) else EXIT_WRONG_INPUT
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
