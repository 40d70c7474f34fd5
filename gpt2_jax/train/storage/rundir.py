"""A run's directory: config, run.json and lock."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.config.check import check_stored
from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.data.examples.chat import TOKENIZER_CONFIG, save_chat_template
from gpt2_jax.data.run_data import RunData
from gpt2_jax.data.saved_tokenizer import (
    TOKENIZER,
    find_saved_tokenizer,
    has_fingerprint,
    save_tokenizer,
    tokenizer_file_changed,
)
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError, quoted
from gpt2_jax.files import (
    check_creatable,
    check_format,
    disk_errors,
    missing_folders,
    open_lock,
    read_errors,
    read_fields,
    remove_empty_folders,
    remove_temporary,
    write_atomic,
    write_json,
)
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.train.storage.identity import FORMAT_VERSION, Identity, check_corpus, new_run_id
from gpt2_jax.train.versions import PACKAGES, commit, version

FULL_RUN_SCHEDULES = ("cosine", "linear", "wsd")  # schedules that depend on train.steps
INFO_TYPES = {
    **dict.fromkeys(("run_id", "wandb_id", "corpus", "tokenizer", "imported_from"), str),
    **dict.fromkeys(("starts", "devices", "labels"), list),
    **dict.fromkeys(("first_checkpoint", "parameters", "flops_per_token", "flops"), int),
    "peak_bytes_per_device": int,
    **dict.fromkeys(("placement", "changed", "mesh", "saves", "sources", "streams", "best"), dict),
    "special_ids": dict,  # of an imported model
}


class Busy(UserError):
    """Another process is using the directory."""


class RunDirectory:
    """`--workdir`: config.json, run.json, metrics.jsonl, checkpoints/, loss.png, profile/, wandb/.

    An import creates it with config.json, run.json and weights/.

    Raises:
      UserError: if the path is remote.
    """

    def __init__(self, workdir: str) -> None:
        if "://" in workdir:
            raise UserError(
                f"--workdir={workdir} is in object storage, which has no locks and cannot rename "
                "files; use a local or shared disk, and copy it there, checkpoints first"
            )
        self.path = Path(workdir)
        self.config_path = self.path / "config.json"
        self.info_path = self.path / "run.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoints_path = self.path.absolute() / "checkpoints"
        self.weights_path = self.path.absolute() / "weights"  # imported, not trained
        self.plot_path = self.path / "loss.png"
        self.sample_path = self.path / "sample.txt"
        self.profile_path = self.path / "profile"
        self._lock: IO[str] | None = None
        self._created: list[Path] = []  # folders and lock that `lock` created, innermost first
        self._claimed = False
        self._writing = threading.Lock()  # run.json is also written by the saving thread

    def check_usable(self) -> None:
        """Checks that the path can hold a run; creates nothing.

        Raises:
          UserError: if it contains something else, or another process is training there.
        """
        if not os.path.lexists(self.path):
            with disk_errors(f"--workdir={self.path}"):
                check_creatable(self.path)
            return
        with read_errors(self.path):
            if not self.path.is_dir():
                kind = "is a file" if self.path.is_file() else "is not a folder"
                raise UserError(f"--workdir={self.path} {kind}; choose another")
            names = [name for name in os.listdir(self.path) if not name.startswith(".")]
        written_first = {self.info_path.name, TOKENIZER, TOKENIZER_CONFIG}
        strange = set(names) - written_first
        if strange and not self.config_path.exists() and not self.has_results():
            raise UserError(
                f"--workdir={self.path} is not empty and contains no run "
                f"({', '.join(sorted(strange)[:3])}); choose another"
            )
        if (self.path / ".lock").is_file():
            with disk_errors(f"--workdir={self.path}"):
                self._take_lock().close()

    def lock(self) -> None:
        """Creates the directory if necessary, and locks out other processes."""
        self.check_usable()
        with disk_errors(f"--workdir={self.path}"):
            self._created = missing_folders(self.path / ".lock")
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
            file.close()  # deleted by the process that held the lock

    def unlock(self) -> None:
        """Unlocks the directory; if no run was started, removes what `lock` created."""
        if self._lock is None:
            return
        if self._created and not self._claimed:
            lock, *folders = self._created
            with suppress(OSError):
                lock.unlink()
            remove_empty_folders(folders)
        self._lock.close()
        self._lock = None

    def read_config(self) -> Config:
        """Returns the run's config, parsed from JSON: nothing in the directory is executed.

        A tokenizer file is replaced by the run's copy, whose hash is checked.
        """
        config = configs.from_json(self.config_path)
        check_stored(config, self.config_path)
        return self.with_own_tokenizer(config)

    def with_own_tokenizer(self, config: Config) -> Config:
        """Returns the config with the run's copies of its tokenizer and its chat template.

        Raises:
          UserError: as `tokenizer_for`.
        """
        changes = {"data.tokenizer": self.tokenizer_for(config)}
        copy = self.path / TOKENIZER_CONFIG
        if config.task.name == "sft" and copy.is_file() and self.config_path.exists():
            named = configs.from_json(self.config_path).data.chat_template
            if named == config.data.chat_template:
                changes["data.chat_template"] = str(copy)
        return configs.replace(config, changes)

    def config_of(self, folder: Path) -> Config:
        """Returns the config of the parameters in a folder of the run.

        Imported weights have nothing that the training run in the directory adds (`tune`).

        Raises:
          UserError: as `read_config`.
        """
        config = self.read_config()
        imported = folder == self.weights_path
        return dataclasses.replace(config, tune=TuneConfig()) if imported else config

    def tokenizer_for(self, config: Config) -> str:
        """Returns the name or path to load a config's tokenizer from.

        This is the run's copy if the config names the tokenizer that the run started with.

        Raises:
          UserError: if the copy is missing or was changed.
        """
        name = config.data.tokenizer
        if not self._is_own_tokenizer(name):
            return name
        return find_saved_tokenizer(self.path, name, self.read_info().get("tokenizer"))

    def _is_own_tokenizer(self, name: str) -> bool:
        """Returns whether a `data.tokenizer` is the run's tokenizer, by name or content."""
        if not self.config_path.exists():
            return False
        if name == configs.from_json(self.config_path).data.tokenizer:
            return True
        recorded = self.read_info().get("tokenizer")
        return recorded is not None and has_fingerprint(name, recorded)

    def comparable_config(self, config: Config) -> Config:
        """Returns the run's config for comparison with `config`.

        Its `data.tokenizer` is that of `config` if both mean the same tokenizer.
        """
        old = configs.from_json(self.config_path)
        if self._is_own_tokenizer(config.data.tokenizer):
            return configs.replace(old, {"data.tokenizer": config.data.tokenizer})
        return old

    def best_by(self) -> str:
        """Returns the score that the run's checkpoints are compared by; `loss` if it has none."""
        if not self.config_path.exists():
            return LOSS
        return configs.from_json(self.config_path).train.best_by or LOSS

    def read_info(self) -> dict[str, Any]:
        """Returns the content of run.json, empty if the file does not exist.

        Raises:
          UserError: if it is damaged or from a newer version of this program.
        """
        if not os.path.lexists(self.info_path):
            return {}
        info = read_fields(self.info_path)
        check_format(info, self.info_path, FORMAT_VERSION)
        for name, kind in INFO_TYPES.items():
            if type(info.get(name)) not in (kind, type(None)):
                raise UserError(f"{self.info_path} is damaged: {name}={quoted(info[name])}")
        for start in info.get("starts") or []:
            if not isinstance(start, dict) or not isinstance(start.get("versions", {}), dict):
                raise UserError(f"{self.info_path} is damaged: starts has {quoted(start)}")
        return info

    def change_info(self, **fields: Any) -> None:
        """Sets fields of run.json."""
        with self._writing, disk_errors("run.json"):
            write_json(self.info_path, self.read_info() | fields)

    def folder_of(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint; imported weights count as step 0."""
        folder = self.checkpoints_path / f"{step:08d}"
        return self.weights_path if step == 0 and not folder.exists() else folder

    def is_started(self) -> bool:
        """Returns whether run.json records a start of training; an import does not count."""
        return bool(self.read_info().get("starts"))

    def is_claimed(self) -> bool:
        """Returns whether training has written config.json here, perhaps replacing an import's."""
        return self.is_started() or self.read_info().get("corpus") is not None

    def has_results(self) -> bool:
        """Returns whether metrics or checkpoints show that training has started here."""
        return os.path.lexists(self.metrics_path) or os.path.lexists(self.checkpoints_path)

    def identity(self) -> Identity:
        """Returns the identity that the run's checkpoints record."""
        info, config = self.read_info(), configs.from_json(self.config_path)
        known = {name: info.get(name) for name in ("corpus", "tokenizer")}
        return Identity(info["run_id"], configs.to_dict(config), **known)

    def record_first_checkpoint(self, step: int | None) -> None:
        """Records the step of the first checkpoint, just before it becomes valid; None clears it.

        A run with this record but without a checkpoint has lost one.
        """
        if step is None or self.read_info().get("first_checkpoint") is None:
            self.change_info(first_checkpoint=step)

    def check_config(self, config: Config) -> None:
        """Checks that a config continues the run in this directory.

        Raises:
          UserError: naming the fields that differ.
        """
        if self.is_config_fixed():
            configs.check_resumable(self.comparable_config(config), config, self.path)

    def is_config_fixed(self) -> bool:
        """Returns whether a run has started here, so that its config must be used again."""
        return self.config_path.exists() and (self.is_started() or self.has_results())

    def with_chosen_accumulation(self, config: Config) -> Config:
        """Returns the config with the `train.accumulation` that was chosen for this run."""
        if config.train.micro_batch is None or not self.is_config_fixed():
            return config
        old = configs.from_json(self.config_path).train
        if old.micro_batch is None or old.accumulation % config.train.accumulation:
            return config
        return configs.replace(config, {"train.accumulation": old.accumulation})

    def labels(self) -> list[str] | None:
        """Returns the label names of the run by id; None if it has none, or has not started."""
        return self.read_info().get("labels")

    def check_data(self, corpus: RunData, tokenizer: Tokenizer, source: str) -> None:
        """Checks that text and tokenizer are those that the run was trained with.

        Raises:
          UserError: if their content differs.
        """
        info, fingerprint = self.read_info(), tokenizer.fingerprint
        if info.get("tokenizer", fingerprint) != fingerprint:
            raise UserError(
                f"{self.path} was trained with another tokenizer than {tokenizer.name} is now; "
                "choose another --workdir, or restore the old tokenizer"
            )
        if self.is_started() or self.has_results():  # otherwise it was killed before training
            check_corpus(info.get("corpus"), corpus, source, self.path, info.get("sources"))

    def claim(self, config: Config, corpus: RunData, tokenizer: Tokenizer) -> list[str]:
        """Writes the config and the run's identity, and returns lines that list the changes."""
        changes = []
        if self.config_path.exists() and self.is_started():
            for name, (was, now) in configs.difference(
                self.comparable_config(config), config
            ).items():
                changes.append(f"{name} was {was!r}, is now {now!r}")
                opt = config.optimizer
                grows = opt.warmup_steps is None and opt.warmup_fraction > 0
                if name == "train.steps" and (opt.schedule in FULL_RUN_SCHEDULES or grows):
                    changes.append("the learning-rate schedule now spans the new train.steps")
        if tokenizer_file_changed(config.data.tokenizer, tokenizer.fingerprint):
            changes.append(
                f"data.tokenizer={config.data.tokenizer} is another file now; the run "
                f"continues with its copy, {self.path / TOKENIZER}"
            )
        self._claimed = True
        self.change_info(
            format_version=FORMAT_VERSION,
            run_id=self.read_info().get("run_id") or new_run_id(),
            corpus=corpus.content_hash(),
            **({"sources": hashes} if (hashes := corpus.source_hashes()) else {}),
            **({"labels": list(corpus.labels)} if corpus.labels else {}),
            tokenizer=tokenizer.fingerprint,
        )
        with disk_errors("config.json"):
            save_tokenizer(self.path, tokenizer)
            if isinstance(corpus, ExampleData) and corpus.template is not None:
                save_chat_template(self.path, corpus.template)
            write_atomic(self.config_path, configs.to_json(config))
        return changes

    def describe(self, config: Config, facts: dict[str, Any], first_step: int) -> None:
        """Records this start in run.json: versions, commit, devices, flags, counts."""
        info = self.read_info()
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "from_step": first_step,
            "flags": sys.argv[1:],
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
            "commit": commit(),
        }
        changed = {name: new for name, (_, new) in configs.difference(Config(), config).items()}
        self.change_info(**facts, changed=changed, starts=[*info.get("starts", []), start])

    def write_sample(self, text: str | None) -> None:
        """Writes sample.txt; None deletes it."""
        with disk_errors("sample.txt"):
            if text is None:
                self.sample_path.unlink(missing_ok=True)
            else:
                write_atomic(self.sample_path, text + "\n")

    def wandb_id(self) -> str:
        """Returns the run's wandb id, chosen at its first start."""
        info = self.read_info()
        if "wandb_id" not in info:
            import secrets

            info["wandb_id"] = secrets.token_hex(4)
            self.change_info(wandb_id=info["wandb_id"])
        return info["wandb_id"]
