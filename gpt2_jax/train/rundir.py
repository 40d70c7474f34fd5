"""A run's directory: its config, what it ran on, and who may write in it."""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
import sys
import time
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
    keep_tokenizer,
)
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors, write_atomic, write_json

STRETCHING = ("cosine", "linear", "wsd")  # schedules that depend on train.steps
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

    def lock(self) -> None:
        """Makes the directory if it is not there, and keeps other processes out of it."""
        with disk_errors(f"--workdir={self.path}"):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"--workdir={self.path} is a file; choose another")
            self.path.mkdir(parents=True, exist_ok=True)
            names = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            strange = set(names) - {self.info_path.name, TOKENIZER}  # written first
            if strange and not self.config_path.exists():
                raise UserError(
                    f"--workdir={self.path} is not empty and holds no run "
                    f"({', '.join(sorted(strange)[:3])}); choose another"
                )
            self._lock = open(self.path / ".lock", "w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Busy(
                f"another process is training in --workdir={self.path}; wait for it or stop it"
            ) from None

    def unlock(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            self._lock.close()

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
        """Returns `run.json`, empty where there is none yet."""
        if not self.info_path.exists():
            return {}
        try:
            info = json.loads(self.info_path.read_text(encoding="utf-8"))
            if not isinstance(info, dict):
                raise ValueError("it holds no fields")
            return info
        except (OSError, ValueError) as error:
            raise UserError(f"{self.info_path} is damaged: {error}") from None

    def folder_of(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint; imported weights are those of step 0."""
        folder = self.checkpoints_path / f"{step:08d}"
        return self.weights_path if step == 0 and not folder.exists() else folder

    def is_started(self) -> bool:
        """Returns whether training has begun here; an import alone has not."""
        return bool(self.read_info().get("starts"))

    def check_config(self, config: ConfigDict) -> None:
        """Refuses a config that does not continue the run that is here.

        Raises:
          UserError: naming the fields that differ.
        """
        if self.config_path.exists() and self.is_started():
            configs.check_resumable(self.read_config_beside(config), config, self.path)

    def check_corpus(self, corpus: Corpus, source: str) -> None:
        """Refuses a text that is not the one that the run here was trained on.

        Raises:
          UserError: if its content differs.
        """
        digest = corpus.manifest.corpus_hash()
        if self.read_info().get("corpus", digest) != digest:
            raise UserError(
                f"{self.path} was trained on another text than {source} gives now (its content "
                "or its split changed); choose another --workdir, or bring the old text back"
            )

    def claim(self, config: ConfigDict, corpus: Corpus) -> list[str]:
        """Writes the config and the text's hash, and returns lines that say what is new."""
        said = []
        if self.config_path.exists() and self.is_started():
            for name, (was, now) in configs.difference(
                self.read_config_beside(config), config
            ).items():
                said.append(f"{name} was {was!r}, is now {now!r}")
                opt = config.optimizer
                if name == "train.steps" and (opt.schedule in STRETCHING or opt.warmup_fraction):
                    said.append("the learning-rate schedule now stretches over the new train.steps")
        trained_on = corpus.manifest.tokenizer.get("fingerprint")
        tokenizer = load_tokenizer(self.tokenizer_for(config), trained_on)
        facts = {"corpus": corpus.manifest.corpus_hash(), "tokenizer": tokenizer.fingerprint}
        with disk_errors("config.json"):
            keep_tokenizer(self.path, tokenizer)
            write_json(self.info_path, self.read_info() | facts)
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
        info |= facts | {"changed": changed, "starts": [*info.get("starts", []), start]}
        with disk_errors("run.json"):
            write_json(self.info_path, info)

    def wandb_id(self) -> str:
        """Returns the run's wandb id, chosen at its first start and kept for its whole life."""
        info = self.read_info()
        if "wandb_id" not in info:
            import secrets

            info["wandb_id"] = secrets.token_hex(4)
            with disk_errors("run.json"):
                write_json(self.info_path, info)
        return info["wandb_id"]


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
