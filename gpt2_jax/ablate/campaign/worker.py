"""One worker of a campaign: takes cells that nobody has, trains them, until there are none left."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import jax
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.cells import (
    SILENT,
    Cell,
    Cells,
    Outcome,
    Plan,
    all_cells,
    cell_config,
)
from gpt2_jax.ablate.campaign.claims import DEAD_SECONDS, Claims
from gpt2_jax.ablate.campaign.design import Campaign, count
from gpt2_jax.ablate.campaign.labels import labels
from gpt2_jax.ablate.campaign.leftovers import sweep
from gpt2_jax.ablate.campaign.members import Member, Wave, check_same, open_member
from gpt2_jax.ablate.campaign.results import write_results
from gpt2_jax.ablate.guessing import guessing
from gpt2_jax.ablate.population import SMALL, Lanes, program_key
from gpt2_jax.ablate.report.tracked import group
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED, DiskError, Diverged, UserError
from gpt2_jax.files import disk_errors
from gpt2_jax.model.placements import AXES
from gpt2_jax.model.placements.resolve import resolve
from gpt2_jax.model.structure import structure
from gpt2_jax.track.display import Display
from gpt2_jax.train.checkpoint import Checkpoints
from gpt2_jax.train.loop import train
from gpt2_jax.train.mesh import find_devices
from gpt2_jax.train.rundir import Busy, RunDirectory
from gpt2_jax.train.signals import StopSignal

POLL_SECONDS = 2.0
ON_ACCELERATOR = 16  # small models trained together on a GPU or TPU
PREPARED = 2  # groups whose compiled programs are kept


class Worker:
    """A campaign in a directory, as one process sees it.

    Args:
      base: what every cell starts from, not resolved.
      shard: (i, n): begins with the i-th of n parts of the variants, from 0, and then helps.
    """

    def __init__(
        self, base: ConfigDict, campaign: Campaign, workdir: Path, shard: tuple[int, int] = (0, 1)
    ) -> None:
        self.base, self.campaign, self.workdir, self.shard = base, campaign, workdir, shard
        self.plan, self.cells = Plan(campaign), Cells(workdir)
        self._configs: dict[str, ConfigDict] = {}
        self._lanes: dict[str, Lanes] = {}
        self._later: set[str] = set()  # cells that another process trains in at the moment
        self._variants = Counter[str]()  # by their programs

    def check(self) -> list[Cell]:
        """Returns the cells known so far, once what is wrong with any of them is said.

        Raises:
          UserError: if a cell makes no sense, or was begun with another config.
        """
        if self.workdir.is_dir() and os.listdir(self.workdir) and not self.cells.exist():
            raise UserError(
                f"--workdir={self.workdir} is not empty and holds no campaign; choose another"
            )
        known, _ = all_cells(self.plan, self.cells)
        self._refuse_twins()
        for cell in known:
            directory = RunDirectory(str(self.cells.path(cell.name)))
            config = self.config(cell)
            check_same(directory, config)
            self.cells.rows(cell.name)
            text = _corpus(*_data(config))
            directory.check_data(text.corpus, text.tokenizer, f"data.source={config.data.source}")
        return known

    def _refuse_twins(self) -> None:
        """Refuses two variants that are one run under two names, such as the base's own value.

        Raises:
          UserError: naming both.
        """
        named: dict[str, str] = {}
        for name, cell in zip(labels(self.campaign), self._firsts(), strict=True):
            key = _run_key(self.config(cell))
            if (other := named.setdefault(key, name)) != name:
                raise UserError(
                    f"the campaign's variants {other} and {name} are the same run: one sets fields "
                    "to the values that the other has already; drop one of them"
                )

    def config(self, cell: Cell) -> ConfigDict:
        """Returns a cell's resolved config."""
        if cell.name not in self._configs:
            config = cell_config(self.base, self.campaign, cell.values)
            config.track.wandb.group = group(self.base, self.workdir)
            config.track.wandb.name = cell.name
            config.track.wandb.tags = (*config.track.wandb.tags, cell.purpose)
            if self._room(config) > 1:
                config.mesh.data = 1
            self._configs[cell.name] = config
        return self._configs[cell.name]

    def width(self, config: ConfigDict) -> int:
        """Returns how many cells like this one are trained together; 1: each on all devices."""
        width = self._room(config)
        return width if width == 1 else min(width, max(2, self._alike(config)))

    def _alike(self, config: ConfigDict) -> int:
        """Returns how many cells at a time there can be for this one's program: lanes cost."""
        if not self._variants:
            self._variants.update(program_key(self.config(cell)) for cell in self._firsts())
        search = self.campaign.search
        tried = max(search.n, 3 * (len(search.seeds) - 1)) if search else 0
        return max(tried, len(self.campaign.seeds)) * self._variants[program_key(config)]

    def _firsts(self) -> list[Cell]:
        """Returns a cell of each variant."""
        every = range(len(self.campaign.variants))
        return [self.plan.verdict_cells(i, 0)[0] for i in every]

    def _room(self, config: ConfigDict) -> int:
        """Returns how many cells like this one the devices are good for at a time."""
        model = structure(config.model)
        own_start = model.placement.profiled or config.train.init_from is not None
        if own_start or config.train.patience is not None:
            return 1
        if self.campaign.at_once is not None:
            return self.campaign.at_once
        if model.n_params() > SMALL:
            return 1
        n = len(find_devices())
        return n if jax.default_backend() == "cpu" else ON_ACCELERATOR * n

    def corpus(self, config: ConfigDict) -> Corpus:
        """Returns the text of a cell, opened once."""
        return _corpus(*_data(config)).corpus

    def lanes(self, config: ConfigDict) -> Lanes:
        """Returns the programs that train this cell's group, compiled at their first use."""
        key = program_key(config)
        if key not in self._lanes:
            while len(self._lanes) >= PREPARED:
                del self._lanes[next(iter(self._lanes))]
            self._lanes[key] = Lanes.fastest(config, self.width(config))
        return self._lanes[key]

    def work(self, display: Display, stop: StopSignal) -> int:
        """Trains cells until all are done or a signal comes; returns the process's exit code.

        Raises:
          DiskError: if there is no room, say, which would meet every other cell as well.
        """
        with Claims(self.workdir / "claims") as claims:
            self._tidy(claims)
            code = self._work(claims, display, stop)
            self._tidy(claims)
        return code

    def _tidy(self, claims: Claims) -> None:
        """Removes what killed workers left, and the checkpoints that the campaign does not keep."""
        sweep(self.workdir, claims.now() - DEAD_SECONDS)
        if not self.campaign.keep_checkpoints:
            for cell in all_cells(self.plan, self.cells)[0]:
                self.cells.drop_checkpoints(cell.name)

    def _work(self, claims: Claims, display: Display, stop: StopSignal) -> int:
        waiting = False
        while not stop.requested:
            known, outcomes = all_cells(self.plan, self.cells)
            updates = {c.name: self.config(c).train.steps for c in known}
            display.expect(sum(updates.values()) + self._to_come(outcomes))
            display.done(sum(updates[name] for name, o in outcomes.items() if o.is_final))
            todo = [c for c in known if c.name not in outcomes or not outcomes[c.name].is_final]
            if not todo:
                write_results(self.workdir, self.plan, self.cells)
                return EXIT_FINISHED
            if wave := self._take(self._in_turn(todo), outcomes, claims):
                waiting = False
                self._train(wave, claims, display, stop)
                write_results(self.workdir, self.plan, self.cells)
            else:
                if not waiting:
                    n = count(len(todo), "cell")
                    display.note(f"waiting for {n} of other workers")
                waiting = True
                time.sleep(POLL_SECONDS)
        return EXIT_STOPPED

    def _to_come(self, outcomes: dict[str, Outcome]) -> int:
        """Returns the updates of fresh seeds whose rate is not known yet."""
        variants = range(len(self.campaign.variants))
        open_ = [i for i in variants if not self.plan.searched(i, outcomes).settled]
        return sum(
            self.config(cell).train.steps for i in open_ for cell in self.plan.verdict_cells(i, 0)
        )

    def _in_turn(self, cells: list[Cell]) -> list[Cell]:
        """Returns the cells from this worker's part of the variants on, then the others'."""
        n, (i, of) = len(self.campaign.variants), self.shard
        first = i * n // of
        place = lambda cell: (cell.name in self._later, (cell.variant - first) % n)
        return sorted(cells, key=place)  # stable

    def _take(
        self, todo: Sequence[Cell], outcomes: dict[str, Outcome], claims: Claims
    ) -> list[Cell]:
        """Returns cells that can be trained together, claimed."""
        wave: list[Cell] = []
        width, like = 1, ("", 0)
        for cell in todo:
            config = self.config(cell)
            again = cell.name in outcomes  # it failed before: alone, so that it harms no other
            found = (program_key(config), self._step(cell))
            if wave and (again or found != like):
                continue
            if not claims.take(cell.name):
                continue
            if self.cells.outcome(cell.name) != outcomes.get(cell.name):
                claims.release(cell.name)  # somebody finished it since it was looked up
                continue
            wave.append(cell)
            width, like = (1 if again else self.width(config)), found
            if len(wave) >= width:
                break
        return wave

    def _step(self, cell: Cell) -> int:
        steps = Checkpoints(self.cells.path(cell.name).absolute() / "checkpoints").steps()
        return steps[-1] if steps else 0

    def _train(self, wave: list[Cell], claims: Claims, display: Display, stop: StopSignal) -> None:
        """Trains a wave and writes what became of each cell."""
        attempts = {c.name: o.attempts for c in wave if (o := self.cells.outcome(c.name))}
        try:
            diverged = self._run(wave, claims, display, stop)
        except DiskError:
            raise
        except Busy as error:
            display.note(str(error))
            for cell in wave:
                claims.release(cell.name)
            self._later = {cell.name for cell in wave}
            time.sleep(POLL_SECONDS)
            return
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            for cell in wave:
                if not claims.is_held(cell.name):
                    continue
                tries = attempts.get(cell.name, 0) + 1
                outcome = Outcome(
                    "failed", self._step(cell), None, None, reason=reason, attempts=tries
                )
                self._close(cell, outcome, claims, display)
                with self._log(cell) as log:
                    traceback.print_exc(file=log)
            return
        if stop.requested:
            return
        for cell in wave:
            if claims.is_held(cell.name):
                data = _corpus(*_data(self.config(cell)))
                outcome = self.cells.judge(cell.name, diverged.get(cell.name), data.guess_loss)
                self._close(cell, outcome, claims, display)

    def _close(self, cell: Cell, outcome: Outcome, claims: Claims, display: Display) -> None:
        self.cells.close(cell.name, outcome)
        if not self.campaign.keep_checkpoints:
            self.cells.drop_checkpoints(cell.name)
        claims.release(cell.name)
        display.note(f"{cell.name}: {_said(outcome)}")

    def _run(
        self, wave: list[Cell], claims: Claims, display: Display, stop: StopSignal
    ) -> dict[str, str]:
        """Trains a wave to its end and returns what was said of the cells that diverged."""
        first = self.config(wave[0])
        corpus, tokenizer, _ = _corpus(*_data(first))
        if self.width(first) == 1:
            display.start([wave[0].name], self._step(wave[0]))
            return self._run_alone(wave[0], stop)
        members: list[Member] = []
        with contextlib.ExitStack() as opened:
            for cell in wave:
                config, path = self.config(cell), str(self.cells.path(cell.name))
                held = lambda name=cell.name: claims.is_held(name)
                members.append(open_member(cell.name, config, path, corpus, tokenizer, held))
                opened.callback(members[-1].directory.unlock)
            running = Wave(members, self.lanes(first), corpus, display.advance, display.note)
            display.start([member.name for member in members], running.step)
            running.go(stop)
        return {member.name: member.diverged for member in members if member.diverged}

    def _run_alone(self, cell: Cell, stop: StopSignal) -> dict[str, str]:
        """Trains a cell as train.py would; what that prints goes to a file."""
        with (
            self._log(cell) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                train(self.config(cell), str(self.cells.path(cell.name)), stop=stop)
            except Diverged as error:
                return {cell.name: str(error)}
        return {}

    def _log(self, cell: Cell) -> IO[str]:
        """Opens what a cell says, or why it failed, to be added to."""
        logs = self.workdir / "logs"
        with disk_errors(str(logs)):
            logs.mkdir(exist_ok=True)
            return open(logs / f"{cell.name}.txt", "a", buffering=1, encoding="utf-8")


def _run_key(config: ConfigDict) -> str:
    """Returns what two resolved configs share if and only if they are one run."""
    placement = resolve(config.model)
    axes = {f"model.{axis}": getattr(placement, axis) for axis in AXES} | {"model.placement": None}
    fields = configs.flatten(config) | axes
    return repr([(name, v) for name, v in fields.items() if not name.startswith(SILENT)])


def _said(outcome: Outcome) -> str:
    match outcome.status:
        case "finished":
            return f"validation loss {outcome.loss:.4f}"
        case "diverged":
            return f"diverged ({outcome.reason})"
    again = "" if outcome.is_final else "; to be tried again"
    return f"failed ({outcome.reason}){again}"


def _data(config: ConfigDict) -> tuple[str, str | None, str, float, str | None]:
    data = config.data
    return (
        data.source,
        data.val_source,
        data.tokenizer,
        data.val_fraction,
        data.document_separator,
    )


class Text(NamedTuple):
    """What cells train on, and the loss of guessing."""

    corpus: Corpus
    tokenizer: Tokenizer
    guess_loss: float


@cache
def _corpus(
    source: str,
    val_source: str | None,
    tokenizer: str,
    val_fraction: float,
    document_separator: str | None,
) -> Text:
    """Returns the text of a config's cells, opened once."""
    corpus, opened = open_corpus(source, val_source, tokenizer, val_fraction, document_separator)
    corpus.check_validation()
    return Text(corpus, opened, guessing(corpus.val))
