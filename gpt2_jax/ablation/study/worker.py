"""One worker of a study, which trains trials that no other worker has leased until none is left."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import jax

from gpt2_jax import config as configs
from gpt2_jax.ablation.study.data import TrialData, open_trial_data
from gpt2_jax.ablation.study.design import Study
from gpt2_jax.ablation.study.labels import labels
from gpt2_jax.ablation.study.leases import EXPIRE_SECONDS, Leases
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.plan import Plan, is_done, known_trials
from gpt2_jax.ablation.study.results import write_results
from gpt2_jax.ablation.study.store import LEASES, TrialStore, remove_leftovers
from gpt2_jax.ablation.study.trial_batch import (
    OpenTrial,
    TrialBatch,
    check_trial,
    open_trial,
)
from gpt2_jax.ablation.study.trials import RESULT_NEUTRAL, Trial, trial_config, wandb_group
from gpt2_jax.ablation.vectorized import SMALL_MODEL, VectorizedPrograms, program_key
from gpt2_jax.config import Config
from gpt2_jax.errors import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    DiskError,
    Diverged,
    UserError,
    counted,
    shortened,
)
from gpt2_jax.evaluate.run_texts import TEXTS
from gpt2_jax.files import disk_errors
from gpt2_jax.model.definition import define_model
from gpt2_jax.placements import AXES
from gpt2_jax.track.progress import StudyProgress
from gpt2_jax.train.distributed.mesh import find_devices
from gpt2_jax.train.distributed.signals import StopSignal
from gpt2_jax.train.loop import train
from gpt2_jax.train.report import total_tokens
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.rundir import Busy, RunDirectory

POLL_SECONDS = 2.0
RUNS_PER_ACCELERATOR = 16  # small models trained together on a GPU or TPU
MAX_COMPILED = 2  # number of `VectorizedPrograms` to keep


class Worker:
    """One process that works on a study.

    Args:
      base: config that every trial starts from, not resolved.
      shard: (i, n), with i from 0: start with the i-th of n parts of the variants.
    """

    def __init__(
        self, base: Config, study: Study, workdir: Path, shard: tuple[int, int] = (0, 1)
    ) -> None:
        self.base, self.study, self.workdir, self.shard = base, study, workdir, shard
        self.plan, self.store = Plan(study), TrialStore(workdir)
        self._configs: dict[str, Config] = {}
        self._programs: dict[str, VectorizedPrograms] = {}
        self._postponed: set[str] = set()  # trials whose directories another process is using
        self._variants_by_program = Counter[str]()

    def check(self) -> list[Trial]:
        """Returns the trials known so far, after checking each of them.

        Raises:
          UserError: if a trial's config is not valid, or it was begun with another config.
        """
        if self.workdir.is_dir() and os.listdir(self.workdir) and not self.store.exists():
            raise UserError(
                f"--workdir={self.workdir} is not empty and holds no study; choose another"
            )
        known, _ = known_trials(self.plan, self.store)
        self._check_distinct()
        for trial in known:
            directory = RunDirectory(str(self.store.path(trial.name)))
            config = self.config(trial)
            check_trial(directory, config)
            self.store.rows(trial.name)
            text = _open(config)
            directory.check_data(text.corpus, text.tokenizer, f"data.source={config.data.source}")
        return known

    def _check_distinct(self) -> None:
        """Checks that no two variants are the same run, for example because one sets a default.

        Raises:
          UserError: naming both.
        """
        names: dict[str, str] = {}
        for name, trial in zip(labels(self.study), self._examples(), strict=True):
            key = _run_key(self.config(trial))
            if (other := names.setdefault(key, name)) != name:
                raise UserError(
                    f"the study's variants {other} and {name} are the same run: one sets fields to "
                    "values that the other already has; drop one of them"
                )

    def config(self, trial: Trial) -> Config:
        """Returns a trial's resolved config."""
        if trial.name not in self._configs:
            config = trial_config(self.base, self.study, trial.values)
            changes: dict[str, Any] = {
                "track.wandb.group": wandb_group(self.base.track.wandb, self.workdir),
                "track.wandb.name": trial.name,
                "track.wandb.tags": (*config.track.wandb.tags, trial.purpose),
            }
            if self._capacity(config) > 1:
                changes["mesh.data"] = 1
            self._configs[trial.name] = configs.replace(config, changes)
        return self._configs[trial.name]

    def width(self, config: Config) -> int:
        """Returns how many trials like this one to train together; 1 for each on all devices."""
        width = self._capacity(config)
        return width if width == 1 else min(width, max(2, self._max_batch(config)))

    def _max_batch(self, config: Config) -> int:
        """Returns how many trials this one's program may have to train at a time."""
        if not self._variants_by_program:
            keys = (program_key(self.config(trial)) for trial in self._examples())
            self._variants_by_program.update(keys)
        search = self.study.search
        searched = max(search.n, 3 * (len(search.seeds) - 1)) if search else 0
        per_variant = max(searched, len(self.study.seeds))
        return per_variant * self._variants_by_program[program_key(config)]

    def _examples(self) -> list[Trial]:
        return [self.plan.verdict_trials(i, 0)[0] for i in range(len(self.study.variants))]

    def _capacity(self, config: Config) -> int:
        """Returns how many trials like this one the devices can train efficiently at a time."""
        if config.task.name != "lm":
            return 1
        model = define_model(config.model, config.placement)
        others_weights = config.train.init_from is not None or config.train.teacher is not None
        own_start = model.spec.data_dependent_init or others_weights
        if own_start or config.train.patience is not None:
            return 1
        if (config.mesh.fsdp or 1) * config.mesh.tensor > 1:
            return 1
        if self.study.trials_per_batch is not None:
            return self.study.trials_per_batch
        if model.n_params() > SMALL_MODEL:
            return 1
        n = len(find_devices())
        return n if jax.default_backend() == "cpu" else RUNS_PER_ACCELERATOR * n

    def corpus(self, config: Config) -> Any:
        """Returns a trial's text or examples, which are opened only once."""
        return _open(config).corpus

    def total_tokens(self, config: Config) -> int:
        """Returns the number of tokens that a trial is trained on, without padding."""
        if config.task.name == "lm":
            return total_tokens(config)
        data = self.corpus(config)
        layout = data.sampler(config.data.seq_len, config.train.batch_size, config.seed)
        return data.tokens_per_step(layout) * config.train.steps

    def programs(self, config: Config) -> VectorizedPrograms:
        """Returns the programs for trials like this one, compiled at their first use."""
        key = program_key(config)
        if key not in self._programs:
            while len(self._programs) >= MAX_COMPILED:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = VectorizedPrograms.fastest(config, self.width(config))
        return self._programs[key]

    def work(self, display: StudyProgress, stop: StopSignal) -> int:
        """Trains trials until all are done or a signal arrives; returns the exit code.

        Raises:
          DiskError: for example if the disk is full, which would affect all other trials too.
        """
        with Leases(self.workdir / LEASES) as leases:
            self._clean_up(leases)
            code = self._work(leases, display, stop)
            self._clean_up(leases)
        return code

    def _clean_up(self, leases: Leases) -> None:
        """Removes leftovers of killed workers, and checkpoints that the study does not keep."""
        remove_leftovers(self.workdir, leases.now() - EXPIRE_SECONDS)
        if not self.study.keep_checkpoints:
            for trial in known_trials(self.plan, self.store)[0]:
                self.store.drop_checkpoints(trial.name)

    def _work(self, leases: Leases, display: StudyProgress, stop: StopSignal) -> int:
        waiting = False
        while not stop.requested:
            known, outcomes = known_trials(self.plan, self.store)
            steps = {t.name: self.config(t).train.steps for t in known}
            display.expect(sum(steps.values()) + self._steps_to_come(outcomes))
            display.done(sum(steps[name] for name, o in outcomes.items() if o.is_final))
            todo = [trial for trial in known if not is_done(trial, outcomes)]
            if not todo:
                write_results(self.workdir, self.plan, self.store)
                return EXIT_FINISHED
            if batch := self._take(self._in_order(todo), outcomes, leases):
                waiting = False
                self._train(batch, leases, display, stop)
                write_results(self.workdir, self.plan, self.store)
            else:
                if not waiting:
                    display.note(f"waiting for {counted(len(todo), 'trial')} of other workers")
                waiting = True
                time.sleep(POLL_SECONDS)
        return EXIT_STOPPED

    def _steps_to_come(self, outcomes: dict[str, Outcome]) -> int:
        """Returns the total steps of verdict trials whose learning rate is not known yet."""
        variants = range(len(self.study.variants))
        open_ = [i for i in variants if not self.plan.search_state(i, outcomes).settled]
        return sum(
            self.config(trial).train.steps
            for i in open_
            for trial in self.plan.verdict_trials(i, 0)
        )

    def _in_order(self, trials: list[Trial]) -> list[Trial]:
        """Returns the trials of this worker's part of the variants, then the others."""
        n, (i, parts) = len(self.study.variants), self.shard
        first = i * n // parts
        key = lambda trial: (trial.name in self._postponed, (trial.variant - first) % n)
        return sorted(trials, key=key)  # stable

    def _take(
        self, todo: Sequence[Trial], outcomes: dict[str, Outcome], leases: Leases
    ) -> list[Trial]:
        """Leases trials that can be trained together, and returns them."""
        batch: list[Trial] = []
        width, like = 1, ("", 0)
        for trial in todo:
            config = self.config(trial)
            is_retry = trial.name in outcomes  # trained alone, so that it cannot harm others
            found = (program_key(config), self._step(trial))
            if batch and (is_retry or found != like):
                continue
            if not leases.take(trial.name):
                continue
            if self.store.outcome(trial.name) != outcomes.get(trial.name):
                leases.release(trial.name)  # another worker has finished it in the meantime
                continue
            batch.append(trial)
            width, like = (1 if is_retry else self.width(config)), found
            if len(batch) >= width:
                break
        return batch

    def _step(self, trial: Trial) -> int:
        steps = Checkpoints(self.store.path(trial.name).absolute() / "checkpoints").steps()
        return steps[-1] if steps else 0

    def _train(
        self, batch: list[Trial], leases: Leases, display: StudyProgress, stop: StopSignal
    ) -> None:
        attempts = {t.name: o.attempts for t in batch if (o := self.store.outcome(t.name))}
        try:
            diverged = self._run(batch, leases, display, stop)
        except DiskError:
            raise
        except Busy as error:
            display.note(str(error))
            for trial in batch:
                leases.release(trial.name)
            self._postponed = {trial.name for trial in batch}
            time.sleep(POLL_SECONDS)
            return
        except Exception as error:
            reason = f"{type(error).__name__}: {shortened(error, 300)}"
            for trial in filter(lambda trial: leases.is_held(trial.name), batch):
                tries = attempts.get(trial.name, 0) + 1
                failed = Outcome("failed", self._step(trial), None, None, None, reason, tries)
                self._end(trial, failed, leases, display)
                with self._log(trial) as log:
                    traceback.print_exc(file=log)
            return
        if stop.requested:
            return
        for trial in filter(lambda trial: leases.is_held(trial.name), batch):
            text = _open(self.config(trial))
            outcome = self.store.judge(trial.name, diverged.get(trial.name), text.unigram_loss)
            self._end(trial, outcome, leases, display)

    def _end(self, trial: Trial, outcome: Outcome, leases: Leases, display: StudyProgress) -> None:
        self.store.write_outcome(trial.name, outcome)
        if not self.study.keep_checkpoints:
            self.store.drop_checkpoints(trial.name)
        leases.release(trial.name)
        display.note(f"{trial.name}: {_described(outcome)}")

    def _run(
        self, batch: list[Trial], leases: Leases, display: StudyProgress, stop: StopSignal
    ) -> dict[str, str]:
        """Trains a batch to its end and returns, for each trial that diverged, the reason."""
        config = self.config(batch[0])
        corpus, tokenizer, _ = _open(config)
        if self.width(config) == 1:
            display.start([batch[0].name], self._step(batch[0]))
            return self._run_alone(batch[0], stop)
        trials: list[OpenTrial] = []
        with contextlib.ExitStack() as opened:
            for trial in batch:
                path = str(self.store.path(trial.name))
                leased = lambda name=trial.name: leases.is_held(name)
                trials.append(
                    open_trial(trial.name, self.config(trial), path, corpus, tokenizer, leased)
                )
                opened.callback(trials[-1].directory.unlock)
            running = TrialBatch(
                trials, self.programs(config), corpus, display.advance, display.note
            )
            display.start([trial.name for trial in trials], running.step)
            running.run(stop)
        return {trial.name: trial.diverged for trial in trials if trial.diverged}

    def _run_alone(self, trial: Trial, stop: StopSignal) -> dict[str, str]:
        """Trains a trial as train.py does, with its output in a file."""
        with (
            self._log(trial) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                train(self.config(trial), str(self.store.path(trial.name)), TEXTS, stop)
            except Diverged as error:
                return {trial.name: error.reason}
        return {}

    def _log(self, trial: Trial) -> IO[str]:
        logs = self.workdir / "logs"
        with disk_errors(str(logs)):
            logs.mkdir(exist_ok=True)
            return open(logs / f"{trial.name}.txt", "a", buffering=1, encoding="utf-8")


def _run_key(config: Config) -> str:
    """Returns a key that resolved configs share if and only if they are the same run."""
    placement = config.placement.resolve()
    axes = {f"placement.{axis}": getattr(placement, axis) for axis in AXES}
    axes["placement.preset"] = None
    fields = configs.flatten(config) | axes
    return repr([(name, v) for name, v in fields.items() if not name.startswith(RESULT_NEUTRAL)])


def _described(outcome: Outcome) -> str:
    match outcome.status:
        case "finished":
            return f"validation loss {outcome.loss:.4f}"
        case "diverged":
            return f"diverged ({outcome.reason})"
    retry = "" if outcome.is_final else "; it will be retried"
    return f"failed ({outcome.reason}){retry}"


def _open(config: Config) -> TrialData:
    with_types = config.model.token_types > 0
    return open_trial_data(config.task, config.data, with_types, config.seed)
