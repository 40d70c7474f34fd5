"""Cells trained together, each into an ordinary run directory of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.cells import MOVABLE, SILENT
from gpt2_jax.ablate.population import AT_ONCE, Lanes, Population
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_STOPPED, Diverged, UserError
from gpt2_jax.track.metrics import Row
from gpt2_jax.train import report
from gpt2_jax.train.checkpoint import Checkpoints
from gpt2_jax.train.evaluation import Score, choose_windows, masked_batches
from gpt2_jax.train.record import Record
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.signals import StopSignal
from gpt2_jax.train.state import State
from gpt2_jax.train.verify import examine, is_usable, open_checkpoints


@dataclass
class Member:
    """A run on its way through lanes.

    Attributes:
      config: resolved.
      may_go_on: asked before anything is saved; false once somebody else has the cell.
      diverged: what was said when it did.
    """

    name: str
    config: ConfigDict
    directory: RunDirectory
    may_go_on: Callable[[], bool]
    sampler: Sampler
    checkpoints: Checkpoints
    found: int | None
    record: Record = field(init=False)
    diverged: str | None = None
    lost: bool = False

    @property
    def is_in(self) -> bool:
        """Whether it still writes its record."""
        return self.diverged is None and not self.lost

    def leave(self, code: int, say: Callable[[str], None]) -> None:
        """Ends its record, reports what wandb lacks of it, and unlocks its directory."""
        with ExitStack() as last:
            last.callback(self.directory.unlock)
            last.callback(self.record.close, code)
        if self.record.wandb.problem is not None:
            say(f"{self.name}: {self.record.wandb.problem}")


def open_member(
    name: str,
    config: ConfigDict,
    path: str,
    corpus: Corpus,
    tokenizer: Tokenizer,
    may_go_on: Callable[[], bool],
) -> Member:
    """Locks a cell's directory and finds where it stands.

    Raises:
      UserError: if the directory is of another run, or another process trains in it.
    """
    directory = RunDirectory(path)
    directory.lock()
    try:
        check_same(directory, config)
        directory.check_data(corpus, tokenizer, f"data.source={config.data.source}")
        standing = examine(directory)
        directory.claim(config, corpus, tokenizer)
        checkpoints = open_checkpoints(directory, max(2, config.train.keep_checkpoints), standing)
        assert corpus.train is not None
        batch, length = config.train.batch_size, config.data.seq_len
        sampler = Sampler(corpus.train, length, batch, config.seed)
    except BaseException:
        directory.unlock()
        raise
    return Member(name, config, directory, may_go_on, sampler, checkpoints, standing.step)


def check_same(directory: RunDirectory, config: ConfigDict) -> None:
    """Refuses a cell that was begun with another config: unlike a run, it cannot be prolonged.

    Raises:
      UserError: naming the fields that differ.
    """
    if not (directory.config_path.exists() and (directory.is_started() or directory.is_begun())):
        return
    same_text = MOVABLE if "corpus" in directory.read_info() else ()  # `check_corpus` sees to it
    changed = {
        name: values
        for name, values in configs.difference(directory.read_config_beside(config), config).items()
        if not name.startswith((*SILENT, *same_text))
    }
    if changed:
        listed = ", ".join(f"{name} (was {a!r}, now {b!r})" for name, (a, b) in changed.items())
        raise UserError(
            f"{directory.path} was begun with another config: {listed}; what all cells share "
            "cannot change within a campaign: set it back, or take another --workdir"
        )


class Wave:
    """Members that start together at the newest step that all of them have.

    Args:
      shown: told the updates made and the last losses, and what there is to say.
    """

    def __init__(
        self,
        members: Sequence[Member],
        lanes: Lanes,
        corpus: Corpus,
        shown: Callable[[int, str], None],
        say: Callable[[str], None],
    ) -> None:
        self.members, self.corpus, self.shown, self.say = members, corpus, shown, say
        self.config = members[0].config
        self.first = _common_step(members)
        for member in members:
            if self.first is None:
                member.directory.note_first_checkpoint(None)
            # Before the record is cut there, lest a kill leave them without the rows before them.
            member.checkpoints.forget_after(self.first or 0)
        device = lanes.device_kind
        for member in members:
            member.directory.describe(
                member.config,
                report.counts(
                    member.config, lanes.structure, [device], lanes.attention, lanes.peak_bytes
                ),
                self.first or 0,
            )
            member.record = Record(
                member.config,
                member.directory,
                lanes.structure,
                [device],
                member.checkpoints,
                self.first,
                lambda line: None,  # wandb's own lines would be one for each cell
            )
        self.population = Population(
            [member.config for member in members], lanes, [self._state(m, lanes) for m in members]
        )
        self.step = self.first or 0
        self.chosen = choose_windows(
            len(corpus.val), self.config.data.seq_len, self.config.train.eval_tokens
        )

    def _state(self, member: Member, lanes: Lanes) -> State:
        start = lanes.start(member.config)
        if self.first is None:
            return start
        like = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), start)
        return jax.device_get(member.checkpoints.restore(self.first, like))

    def go(self, stop: StopSignal) -> None:
        """Trains to the end or to a signal; then every member's record is closed."""
        code = EXIT_FINISHED
        try:
            self._train(stop)
            for member in self.members:
                if member.is_in:
                    member.checkpoints.wait()
                    stopped = bool(stop.requested) and self.step < self.config.train.steps
                    member.record.finish(self.step, None, stopped)
            if stop.requested:
                code = EXIT_STOPPED
        except BaseException:
            code = EXIT_DIVERGED
            raise
        finally:
            with ExitStack() as last:
                for member in self.members:
                    last.callback(member.leave, code if member.is_in else EXIT_DIVERGED, self.say)

    def _train(self, stop: StopSignal) -> None:
        steps = self.config.train.steps
        if self.first is None:
            figures = self._figures()
            for member, scored, by_depth in zip(self.members, self._score(), figures, strict=True):
                member.record.begin(scored, by_depth)
        tokens, n = self._tokens()
        while self.step < steps and not stop.requested:
            if not any(member.is_in for member in self.members):
                return
            started = time.monotonic()
            metrics = self.population.advance(tokens, n)
            before, last = self.step, tokens[:, n - 1]
            self.step += n
            tokens, n_next = self._tokens()  # while the devices are at work
            jax.block_until_ready(metrics)
            speed = n * report.tokens_per_step(self.config) / (time.monotonic() - started)
            self._write(before, n, self.population.read(metrics), last, speed)
            n = n_next
        if stop.requested and self.step < steps:
            self._save({member.name: None for member in self.members})

    def _tokens(self) -> tuple[np.ndarray, int]:
        """Returns the next batches (M, N, B, T+1), padded, and up to which the next stop is."""
        record, steps = self.members[0].record, self.config.train.steps
        n = 0
        while n < AT_ONCE and self.step + n < steps:
            n += 1
            if record.is_stop(self.step + n) or record.is_probed(self.step + n):
                break
        batches = [[m.sampler.batch(self.step + i) for i in range(n)] for m in self.members]
        rows = np.zeros((len(self.members), AT_ONCE, *self._shape), np.int32)
        if n:
            rows[:, :n] = batches
        return rows, n

    @property
    def _shape(self) -> tuple[int, int]:
        return self.config.train.batch_size, self.config.data.seq_len + 1

    def _write(self, before: int, n: int, read: list[Any], last: np.ndarray, speed: float) -> None:
        """Writes the rows of n updates, and what belongs to the step behind them."""
        record = self.members[0].record
        none: list[Any] = [{} for _ in self.members]
        figures = self._figures(last) if record.is_probed(self.step) else none
        scores = self._score() if record.is_evaluated(self.step) else none
        kept: dict[str, float | None] = {}
        for i, member in enumerate(self.members):
            for step in range(before + 1, self.step + 1):
                if not member.is_in or not record.is_due(step):
                    continue
                of_last = (figures[i], scores[i]) if step == self.step else ({}, {})
                values = {name: x[step - before - 1] for name, x in read[i].items()}
                row = member.record.row(step, values | of_last[0], of_last[0].keys(), speed)
                row |= of_last[1]
                self._write_row(member, row)
            if member.is_in and record.is_stop(self.step) and member.record.is_kept(row):
                kept[member.name] = scores[i].get("val/loss")
        self._save(kept)
        losses = [f"{read[i]['loss'][n - 1]:.3f}" for i, m in enumerate(self.members) if m.is_in]
        self.shown(n * len(self.members), " ".join(losses))

    def _write_row(self, member: Member, row: Row) -> None:
        try:
            member.record.write(row)
        except Diverged as error:
            member.diverged = str(error)
            member.record.wandb.summarize({"diverged_at": row["step"]})

    def _save(self, kept: dict[str, float | None]) -> None:
        """Starts a checkpoint of each of these, unless somebody else took the cell over."""
        for i, member in enumerate(self.members):
            if member.name not in kept or not member.is_in:
                continue
            if member.record.saved_step == self.step:
                continue
            if not member.may_go_on():
                member.lost = True
                self.say(f"{member.name}: another worker took it over")
                continue
            member.record.save(self.step, self.population.member(i), kept[member.name])

    def _score(self) -> list[dict[str, float]]:
        """Returns each member's scores on the validation text."""
        batch, length = self.config.train.batch_size, self.config.data.seq_len
        parts = masked_batches(
            self.corpus.val, self.chosen, batch // self.config.train.accumulation, length
        )
        sums = [self.population.sums(self.step, *part) for part in parts]
        total_M2 = np.asarray(jax.device_get(sums), np.float64).sum(0)
        tokens = sum(scored for _, _, scored in self.chosen)
        per_token = self.corpus.bytes_per_token("val")
        return [
            Score(nats, round(hits), tokens).metrics(per_token)
            for nats, hits in total_M2[: len(self.members)].tolist()
        ]

    def _figures(self, batches: np.ndarray | None = None) -> list[Any]:
        """Returns each member's figures by depth, if it has any, on a batch (M, B, T+1)."""
        if self.config.track.diagnostics_every is None:
            return [{} for _ in self.members]
        if batches is None:
            batches = np.stack([member.sampler.batch(0) for member in self.members])
        return self.population.figures(self.step, batches)


def _common_step(members: Sequence[Member]) -> int | None:
    """Returns the newest step of which every member has a checkpoint, None if there is none."""
    if any(member.found is None for member in members):
        return None
    shared = set.intersection(*(set(member.checkpoints.steps()) for member in members))
    for step in sorted(shared, reverse=True):
        if all(m.found == step or is_usable(m.directory, step) for m in members):
            return step
    return None
