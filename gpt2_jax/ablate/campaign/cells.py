"""A campaign's cells: their names, configs and directories, and what became of them."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.design import RATE, SEED, Campaign, Values, describe
from gpt2_jax.ablate.campaign.outcomes import Outcome, check_derived, read_outcome, write_outcome
from gpt2_jax.ablate.campaign.search import Search, score
from gpt2_jax.config_check import check
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import disk_errors
from gpt2_jax.model.structure import structure
from gpt2_jax.track.metrics import Row, read_rows
from gpt2_jax.train.origin import adopt, open_origin

ENDLESS = 2**31 - 1  # updates, while their number is not known
DEFINITION = "campaign.json"  # in a campaign's directory
# What a cell has of its own without being another run for it.
SILENT = ("track.", "train.sample_tokens", "mesh.data")
# Where the same text is: on another machine it may be elsewhere, and its hash shows that it is it.
MOVABLE = ("data.source", "data.val_source", "data.tokenizer")

Purpose = Literal["search", "verdict"]


@dataclass(frozen=True)
class Cell:
    """A run of a campaign.

    Attributes:
      variant: its place among the campaign's variants.
      values: all fields in which it differs from the base, but for the budget.
      k: number of its rate in the search, where there is one.
    """

    name: str
    variant: int
    values: Mapping[str, Any]
    purpose: Purpose
    k: int | None

    @property
    def seed(self) -> int:
        """The seed of its weights and of its data's order."""
        return self.values[SEED]


Outcomes = Mapping[str, Outcome]


def cell_name(values: Values) -> str:
    """Returns a name that is a folder's as well; long or strange ones end in a hash."""
    described = describe(values)
    name = re.sub(r"[^\w=.,+-]", "_", described, flags=re.ASCII)[:120]
    if name == described:
        return name
    return f"{name}-{hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]}"


class Searched(NamedTuple):
    """A search of one variant's rate.

    Attributes:
      cells: asked for so far. scores: of the rates whose cells are all in; lower is better.
      settled: whether it is at its end, with `contenders` the numbers of the rates that verdicts
        must hold at. unresolved: what it left open at its end.
    """

    cells: list[Cell]
    scores: dict[int, float]
    settled: bool
    contenders: tuple[int, ...] = ()
    unresolved: tuple[str, ...] = ()

    @property
    def best(self) -> int | None:
        """Number of the rate that the variant is judged at, None where there is none yet."""
        return self.contenders[0] if self.contenders else None


class Plan:
    """Which cells a campaign has, as far as the outcomes so far decide."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign

    def cells(self, outcomes: Outcomes) -> list[Cell]:
        """Returns all cells known so far, variant by variant, searches before verdicts."""
        out = []
        for i in range(len(self.campaign.variants)):
            searched = self.searched(i, outcomes)
            out += searched.cells
            if searched.settled:
                for k in searched.contenders or (None,):
                    out += self.verdict_cells(i, k)
        names = Counter(cell.name for cell in out)
        if twice := sorted(name for name, n in names.items() if n > 1):
            raise UserError(f"two cells of the campaign have the name {twice[0]}")
        return out

    def searched(self, variant: int, outcomes: Outcomes) -> Searched:
        """Returns how far the search of a variant's rate is; it goes on once all it asked is in."""
        search, cells, losses = self.campaign.search, list[Cell](), dict[int, list[float]]()
        if search is None:
            return Searched([], {}, True)
        scores: dict[int, float] = {}
        while asked := search.next(losses):
            new = [self._searched_cell(variant, search, k, i) for k, i in asked]
            cells += new
            if any(c.name not in outcomes or not outcomes[c.name].is_final for c in new):
                return Searched(cells, scores, False)
            for cell, (k, _) in zip(new, asked, strict=True):
                losses.setdefault(k, []).append(outcomes[cell.name].score)
            scores = {k: score(values) for k, values in losses.items()}
        contenders, unresolved = search.in_contention(losses), search.unresolved(losses)
        return Searched(cells, scores, True, tuple(contenders), tuple(unresolved))

    def verdict_cells(self, variant: int, best: int | None) -> list[Cell]:
        """Returns the cells of fresh seeds at one of a variant's rates in contention."""
        search = self.campaign.search
        rate = None if search is None or best is None else search.rate(best)
        return [self._cell(variant, "verdict", rate, best, s) for s in self.campaign.seeds]

    def _searched_cell(self, variant: int, search: Search, k: int, i: int) -> Cell:
        return self._cell(variant, "search", search.rate(k), k, search.seeds[i])

    def _cell(
        self, variant: int, purpose: Purpose, rate: float | None, k: int | None, seed: int
    ) -> Cell:
        values = dict(self.campaign.variants[variant])
        if rate is not None:
            values[RATE] = rate
        values[SEED] = seed
        return Cell(cell_name(values), variant, values, purpose, k)


def cell_config(base: ConfigDict, campaign: Campaign, values: Mapping[str, Any]) -> ConfigDict:
    """Returns the resolved config of a cell: the base with the values and the budget.

    Raises:
      UserError: if it makes no sense.
    """
    config = base.copy_and_resolve_references()
    try:
        for name, value in values.items():
            configs.set_value(config, name, value)
        config.train.sample_tokens = 0
        if config.train.init_from is not None:
            config = _pinned(config)
        vocabulary = vocabulary_size(config.data.tokenizer)
        set_budget(config, campaign, vocabulary)
        check(config)
        return configs.resolve(config, vocabulary)
    except UserError as error:
        raise UserError(f"{describe(dict(values))}: {error}") from None


@cache
def vocabulary_size(tokenizer: str) -> int:
    """Returns the number of ids of a tokenizer, by its name."""
    return load_tokenizer(tokenizer).size


def _pinned(config: ConfigDict) -> ConfigDict:
    """Returns the config with the facts of its first weights, whose update it must name."""
    given = config.train.init_from
    origin = open_origin(given)
    if origin.name != given:
        raise UserError(
            f"train.init_from={given} is another update whenever that run goes on; for a campaign "
            f"name it: {origin.name}"
        )
    return adopt(config, origin, lambda line: None)


def set_budget(config: ConfigDict, campaign: Campaign, vocabulary: int) -> None:
    """Sets `train.steps` to the least number of updates that take the budget of tokens or FLOPs.

    Raises:
      UserError: if the config makes no sense with any number of updates.
    """
    tokens, per_step = campaign.tokens, config.train.batch_size * config.data.seq_len
    if campaign.flops is not None:
        config.train.steps = ENDLESS
        check(config)
        model = structure(configs.resolve(config, vocabulary).model)
        tokens = math.ceil(campaign.flops / model.flops_per_token(config.data.seq_len))
    if tokens is not None:
        configs.set_value(config, "train.steps", max(1, math.ceil(tokens / per_step)))


def command(file: str, given: ConfigDict, config: ConfigDict, workdir: str) -> str:
    """Returns the command line that trains a cell alone.

    Args:
      given: what the file's `get_config()` returns, before anything was changed.
      config: of the cell.
    """
    resolved = ("model.n_inner", "model.vocab_size")
    changed = {
        name: new
        for name, (old, new) in configs.difference(given, config).items()
        if not name.startswith("track.") and not (name in resolved and old is None)
    }
    flags = [f"--config.{name}={_flag(value)}" for name, value in changed.items()]
    words = ["python", "train.py", f"--config={file}", f"--workdir={workdir}", *flags]
    return " ".join(shlex.quote(word) for word in words)


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Cells:
    """The cells' directories in a campaign's."""

    def __init__(self, workdir: Path) -> None:
        self._folder, self._ends = workdir / "cells", workdir / "outcomes"
        self._definition = workdir / DEFINITION
        self._final: dict[str, Outcome] = {}

    def exist(self) -> bool:
        """Returns whether the directory is a campaign's, be it one without cells yet.

        It still is if campaign.json was lost: cells and outcomes are checked one by one.
        """
        return self._definition.exists() or (self._folder.is_dir() and self._ends.is_dir())

    def path(self, name: str) -> Path:
        """Returns the run directory of a cell."""
        return self._folder / name

    def outcomes(self, cells: list[Cell]) -> dict[str, Outcome]:
        """Returns what became of those of the cells that came to an end."""
        found = {cell.name: self.outcome(cell.name) for cell in cells}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def others(self, cells: list[Cell]) -> int:
        """Returns how many cells came to an end that are none of these."""
        there = {path.stem for path in self._ends.glob("*.json")} if self._ends.exists() else set()
        return len(there - {cell.name for cell in cells})

    def outcome(self, name: str) -> Outcome | None:
        """Returns what became of a cell, None if it did not come to an end yet.

        Raises:
          UserError: if its outcome, or its run since then, was changed or lost.
        """
        if name not in self._final:
            path = self._outcome_path(name)
            if not path.exists():
                return None
            outcome, is_certain = read_outcome(path, self.path(name))
            if not is_certain and outcome.status == "finished":
                derived = self.judge(name, None, outcome.guess_loss)
                check_derived(path, outcome, derived)
            if not outcome.is_final:
                return outcome
            self._final[name] = outcome
        return self._final[name]

    def is_done(self, name: str) -> bool:
        """Returns whether a cell came to an end, and is not to be tried again."""
        outcome = self.outcome(name)
        return outcome is not None and outcome.is_final

    def close(self, name: str, outcome: Outcome) -> None:
        """Writes what became of a cell."""
        with disk_errors("outcomes/"):
            self._ends.mkdir(parents=True, exist_ok=True)
            write_outcome(self._outcome_path(name), outcome, self.path(name))

    def drop_checkpoints(self, name: str) -> None:
        """Removes the checkpoints of a cell that is not to be trained any more."""
        folder = self.path(name) / "checkpoints"
        outcome = self.outcome(name)
        if outcome is not None and outcome.status != "failed" and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)  # another worker removes it as well

    def forget_failures(self, cells: list[Cell]) -> int:
        """Makes cells that failed count as not tried, and returns how many they were."""
        failed = [n for n, o in self.outcomes(cells).items() if o.status == "failed"]
        for name in failed:
            self._final.pop(name, None)
            self._outcome_path(name).unlink(missing_ok=True)
        return len(failed)

    def judge(self, name: str, diverged: str | None, guess_loss: float | None) -> Outcome:
        """Returns the outcome that a run's own metrics tell.

        The loss is that of the end; with `train.patience`, which waits for the loss to rise, the
        best.

        Args:
          diverged: what was said when it diverged.
          guess_loss: `guessing` of the validation text.

        Raises:
          UserError: if there are none, or any is there twice or out of order.
        """
        rows = self.rows(name)
        if not rows:
            raise UserError(f"{self.path(name)} has no metrics.jsonl; bring the old one back")
        scored = [row for row in rows if "val/loss" in row]
        start = scored[0]["val/loss"] if scored and scored[0]["step"] == 0 else None
        patient = configs.from_json(self.path(name) / "config.json").train.patience is not None
        known = [row["val/loss"] for row in scored if row["val/loss"] is not None]
        loss = min(known, default=None) if patient else scored[-1]["val/loss"] if scored else None
        if diverged is None and loss is None:
            diverged = "the validation loss is not finite"
        step = rows[-1]["step"]
        if diverged is not None:
            reason = diverged.partition(", and were skipped")[0]  # what to do is for a terminal
            return Outcome("diverged", step, None, start, guess_loss, reason)
        return Outcome("finished", step, loss, start, guess_loss)

    def rows(self, name: str) -> list[Row]:
        """Returns a cell's metrics, none if it has no row yet.

        Raises:
          UserError: if any is there twice or out of order.
        """
        path = self.path(name) / "metrics.jsonl"
        rows = read_rows(path)
        for before, after in itertools.pairwise(row["step"] for row in rows):
            if before >= after:
                raise UserError(
                    f"{path} has step {after} after step {before}; bring the old one back, or "
                    f"remove {self.path(name)} to have the cell trained again"
                )
        return rows

    def _outcome_path(self, name: str) -> Path:
        return self._ends / f"{name}.json"  # a cell's own directory is a run's and nothing else


def all_cells(plan: Plan, cells: Cells) -> tuple[list[Cell], dict[str, Outcome]]:
    """Returns the cells known so far, and what became of those that came to an end."""
    outcomes: dict[str, Outcome] = {}
    while True:
        known = plan.cells(outcomes)
        found = cells.outcomes(known)
        if found == outcomes:
            return known, outcomes
        outcomes = found
