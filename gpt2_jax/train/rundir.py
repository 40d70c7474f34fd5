"""A run's directory: its config, what it ran on, and who may write in it."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.config_check import check_stored
from gpt2_jax.data.kept_tokenizer import (
    TOKENIZER,
    find_kept_tokenizer,
    has_fingerprint,
    is_replaced,
    keep_tokenizer,
)
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError, shown
from gpt2_jax.files import (
    check_creatable,
    check_format,
    disk_errors,
    missing_folders,
    open_lock,
    read_errors,
    read_fields,
    remove_empty,
    remove_temporary,
    write_atomic,
    write_json,
)
from gpt2_jax.train.identity import FORMAT_VERSION, Identity, new_run_id

STRETCHING = ("cosine", "linear", "wsd")  # schedules that depend on train.steps
INFO_TYPES = {
    **dict.fromkeys(("run_id", "wandb_id", "corpus", "tokenizer", "imported_from"), str),
    **dict.fromkeys(("starts", "devices"), list),
    **dict.fromkeys(("first_checkpoint", "parameters", "flops_per_token", "flops"), int),
    "peak_bytes_per_device": int,
    **dict.fromkeys(("placement", "changed"), dict),
}
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml_collections",
    "wandb",
    "gpt2_jax",
)


class Busy(UserError):
    """Another process has the directory."""


class RunDirectory:
    """`--workdir`: config.json, run.json, metrics.jsonl, checkpoints/, loss.png, wandb/.

    An imported one begins with config.json, run.json and weights/.

    Raises:
      UserError: if the path is remote, holds something else, or another process runs in it.
    """

    def __init__(self, workdir: str) -> None:
        if "://" in workdir:
            raise UserError(
                f"--workdir={workdir} is a remote path; metrics and checkpoints need a local or "
                "mounted file system"
            )
        self.path = Path(workdir)
        self.config_path = self.path / "config.json"
        self.info_path = self.path / "run.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoints_path = self.path.absolute() / "checkpoints"
        self.weights_path = self.path.absolute() / "weights"  # where it was imported, not trained
        self.plot_path = self.path / "loss.png"
        self.sample_path = self.path / "sample.txt"
        self._lock: IO[str] | None = None
        self._made: list[Path] = []  # what did not exist before the lock, innermost first
        self._claimed = False
        self._writing = threading.Lock()  # checkpoints are announced by a thread of their own

    def check_usable(self) -> None:
        """Refuses a path that cannot hold a run, and leaves nothing there.

        Raises:
          UserError: if there is something else, or another process trains there.
        """
        if not os.path.lexists(self.path):
            self._try_to_make()
            return
        with read_errors(self.path):
            if not self.path.is_dir():
                kind = "is a file" if self.path.is_file() else "is not a folder"
                raise UserError(f"--workdir={self.path} {kind}; choose another")
            names = [name for name in os.listdir(self.path) if not name.startswith(".")]
        strange = set(names) - {self.info_path.name, TOKENIZER}  # written first
        if strange and not self.config_path.exists() and not self.is_begun():
            raise UserError(
                f"--workdir={self.path} is not empty and holds no run "
                f"({', '.join(sorted(strange)[:3])}); choose another"
            )
        if (self.path / ".lock").is_file():
            with disk_errors(f"--workdir={self.path}"):
                self._take_lock().close()

    def _try_to_make(self) -> None:
        with disk_errors(f"--workdir={self.path}"):
            check_creatable(self.path)

    def lock(self) -> None:
        """Makes the directory if it does not exist, and keeps other processes out of it."""
        self.check_usable()
        with disk_errors(f"--workdir={self.path}"):
            self._made = missing_folders(self.path / ".lock")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            remove_temporary(self.path)

    def _take_lock(self) -> IO[str]:
        path = self.path / ".lock"
        while True:
            file = open_lock(path)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            except BlockingIOError:
                file.close()
                raise Busy(
                    f"another process is training in --workdir={self.path}; wait for it or stop it"
                ) from None
            except FileNotFoundError:
                pass
            file.close()  # it was deleted by the process that had it

    def unlock(self) -> None:
        """Lets other processes in; if no run was begun, removes what `lock` created."""
        if self._lock is None:
            return
        if self._made and not self._claimed:
            lock, *folders = self._made
            with suppress(OSError):
                lock.unlink()
            remove_empty(folders)
        self._lock.close()
        self._lock = None

    def read_config(self) -> ConfigDict:
        """Returns the run's config, from data alone: nothing in the directory is executed.

        A tokenizer file is the run's own copy, checked by its hash, wherever the config says that
        it was.
        """
        config = configs.from_json(self.config_path)
        check_stored(config, self.config_path)
        config.data.tokenizer = self.tokenizer_for(config)
        return config

    def tokenizer_for(self, config: ConfigDict) -> str:
        """Returns the name under which to load a config's tokenizer.

        That is the run's copy, if the config names the tokenizer that the run began with.

        Raises:
          UserError: if the copy is missing or is another file now.
        """
        name = config.data.tokenizer
        if not self._is_own_tokenizer(name):
            return name
        return find_kept_tokenizer(self.path, name, self.read_info().get("tokenizer"))

    def _is_own_tokenizer(self, name: str) -> bool:
        """Returns whether a `data.tokenizer` is the run's, by its name or by its content."""
        if not self.config_path.exists():
            return False
        if name == configs.from_json(self.config_path).data.tokenizer:
            return True
        recorded = self.read_info().get("tokenizer")
        return recorded is not None and has_fingerprint(name, recorded)

    def read_config_beside(self, config: ConfigDict) -> ConfigDict:
        """Returns the run's config to compare `config` with.

        `data.tokenizer` is the same in both if both are the same tokenizer.
        """
        old = configs.from_json(self.config_path)
        if self._is_own_tokenizer(config.data.tokenizer):
            old.data.tokenizer = config.data.tokenizer
        return old

    def read_info(self) -> dict[str, Any]:
        """Returns `run.json`, empty where there is none yet.

        Raises:
          UserError: if it is damaged or of a newer version of this program.
        """
        if not os.path.lexists(self.info_path):
            return {}
        info = read_fields(self.info_path)
        check_format(info, self.info_path, FORMAT_VERSION)
        for name, kind in INFO_TYPES.items():
            if type(info.get(name)) not in (kind, type(None)):
                raise UserError(f"{self.info_path} is damaged: {name}={shown(info[name])}")
        for start in info.get("starts") or []:
            if not isinstance(start, dict) or not isinstance(start.get("versions", {}), dict):
                raise UserError(f"{self.info_path} is damaged: starts has {shown(start)}")
        return info

    def change_info(self, **fields: Any) -> None:
        """Sets fields of run.json."""
        with self._writing, disk_errors("run.json"):
            write_json(self.info_path, self.read_info() | fields)

    def folder_of(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint; imported weights are those of step 0."""
        folder = self.checkpoints_path / f"{step:08d}"
        return self.weights_path if step == 0 and not folder.exists() else folder

    def is_started(self) -> bool:
        """Returns whether training has begun here, as run.json has it; an import alone has not."""
        return bool(self.read_info().get("starts"))

    def is_claimed(self) -> bool:
        """Returns whether a start has written config.json here, perhaps over that of an import."""
        return self.is_started() or self.read_info().get("corpus") is not None

    def is_begun(self) -> bool:
        """Returns whether rows or checkpoints show that training has begun here."""
        return os.path.lexists(self.metrics_path) or os.path.lexists(self.checkpoints_path)

    def identity(self) -> Identity:
        """Returns what each checkpoint of the run records of it."""
        info, config = self.read_info(), configs.from_json(self.config_path)
        known = {name: info.get(name) for name in ("corpus", "tokenizer")}
        return Identity(info["run_id"], config.to_dict(), **known)

    def note_first_checkpoint(self, step: int | None) -> None:
        """Records the step of the first checkpoint, just before it becomes valid; None: undone.

        From then on the run cannot be without a checkpoint unless something was lost.
        """
        if step is None or self.read_info().get("first_checkpoint") is None:
            self.change_info(first_checkpoint=step)

    def check_config(self, config: ConfigDict) -> None:
        """Refuses a config that does not continue the run that is here.

        Raises:
          UserError: naming the fields that differ.
        """
        if self.config_path.exists() and (self.is_started() or self.is_begun()):
            configs.check_resumable(self.read_config_beside(config), config, self.path)

    def check_data(self, corpus: Corpus, tokenizer: Tokenizer, source: str) -> None:
        """Refuses a text or a tokenizer that is not the one that the run here was trained with.

        Raises:
          UserError: if its content differs.
        """
        info, fingerprint = self.read_info(), tokenizer.fingerprint
        if info.get("tokenizer", fingerprint) != fingerprint:
            raise UserError(
                f"{self.path} was trained with a different tokenizer than {tokenizer.name} is now; "
                "choose another --workdir, or restore the old tokenizer"
            )
        if self.is_started() or self.is_begun():  # else a start was killed before it trained
            check_corpus(info.get("corpus"), corpus, source, self.path)

    def claim(self, config: ConfigDict, corpus: Corpus, tokenizer: Tokenizer) -> list[str]:
        """Writes the config and the run's identity, and returns lines that say what is new."""
        said = []
        if self.config_path.exists() and self.is_started():
            for name, (was, now) in configs.difference(
                self.read_config_beside(config), config
            ).items():
                said.append(f"{name} was {was!r}, is now {now!r}")
                opt = config.optimizer
                grows = opt.warmup_steps is None and opt.warmup_fraction > 0
                if name == "train.steps" and (opt.schedule in STRETCHING or grows):
                    said.append("the learning-rate schedule now stretches over the new train.steps")
        if is_replaced(config.data.tokenizer, tokenizer.fingerprint):
            said.append(
                f"data.tokenizer={config.data.tokenizer} is another file now; the run "
                f"continues with its copy, {self.path / TOKENIZER}"
            )
        self._claimed = True
        self.change_info(
            format_version=FORMAT_VERSION,
            run_id=self.read_info().get("run_id") or new_run_id(),
            corpus=corpus.manifest.corpus_hash(),
            tokenizer=tokenizer.fingerprint,
        )
        with disk_errors("config.json"):
            keep_tokenizer(self.path, tokenizer)
            write_atomic(self.config_path, configs.to_json(config))
        return said

    def describe(self, config: ConfigDict, facts: dict[str, Any], first_step: int) -> None:
        """Adds what this start runs with to run.json: versions, commit, devices, flags, counts."""
        info = self.read_info()
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "from_step": first_step,
            "flags": sys.argv[1:],
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
            "commit": commit(),
        }
        changed = {
            name: new for name, (_, new) in configs.difference(configs.default(), config).items()
        }
        self.change_info(**facts, changed=changed, starts=[*info.get("starts", []), start])

    def wandb_id(self) -> str:
        """Returns the run's wandb id, chosen at its first start and kept for its whole life."""
        info = self.read_info()
        if "wandb_id" not in info:
            import secrets

            info["wandb_id"] = secrets.token_hex(4)
            self.change_info(wandb_id=info["wandb_id"])
        return info["wandb_id"]


def check_corpus(known: str | None, corpus: Corpus, source: str, workdir: Path) -> None:
    """Refuses a text that is not the one that a run was trained on.

    Args:
      known: hash of the run's text, None where it is not known.

    Raises:
      UserError: if the content differs.
    """
    if known not in (None, corpus.manifest.corpus_hash()):
        raise UserError(
            f"{workdir} was trained on another text than {source} holds now (its content "
            "or its split changed); choose another --workdir, or restore the old text"
        )


def version(package: str) -> str | None:
    """Returns an installed package's version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Returns the commit of this checkout, with `+` if files differ from it; None outside git."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, encoding="utf-8", timeout=10
        )
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") or None
    except (OSError, subprocess.TimeoutExpired):
        return None
