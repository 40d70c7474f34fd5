"""From a config and a directory to a trained model: set up, feed the step, write down, save."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.config_check import check
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_STOPPED, Diverged, UserError
from gpt2_jax.files import disk_errors, write_atomic
from gpt2_jax.model.structure import Structure, structure
from gpt2_jax.track.bar import Progress
from gpt2_jax.track.metrics import MetricsFile, Row, evaluations_since_best, read_rows
from gpt2_jax.track.plot import plot_loss
from gpt2_jax.track.throughput import utilisation
from gpt2_jax.track.wandb_log import WandbLog
from gpt2_jax.train import report
from gpt2_jax.train.checkpoint import Checkpoints, damage, restore_params
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.feed import Prefetch, StopSignal
from gpt2_jax.train.memory import keep_freed_memory
from gpt2_jax.train.mesh import configure_devices
from gpt2_jax.train.origin import Origin, adopt, find_origin
from gpt2_jax.train.patterns import rate_factors
from gpt2_jax.train.probe import by_block, compile_probe
from gpt2_jax.train.program import Program, compile_program, memory_errors
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.state import State
from gpt2_jax.train.step import BLOCK_GRAD_NORMS, Metrics

# (config, model structure, parameters, tokenizer) -> text
Sample = Callable[[ConfigDict, Structure, Any, Tokenizer], str]


def train(config: ConfigDict, workdir: str, sample: Sample | None = None) -> int:
    """Trains, or continues, the run in `workdir`, and returns the process's exit code.

    A run is resumed in this order: 1. the config and the text must be those of the directory;
    2. the step is compiled; 3. the newest undamaged checkpoint is restored; 4. rows of
    metrics.jsonl past it are cut off; 5. batches start at its step.

    Args:
      sample: makes the text that is shown at the end.

    Raises:
      UserError: for wrong input, before anything expensive.
      Diverged: if too many updates in a row had to be skipped.
    """
    directory = RunDirectory(workdir)
    config, origin = _complete(config, directory)
    data = config.data
    keep_freed_memory(config)
    directory.lock()
    try:
        directory.check_config(config)
        configure_devices(config)
        if config.optimizer.frozen or config.optimizer.lr_multipliers:
            rate_factors(config, structure(config.model))  # a wrong pattern is said at once
        corpus, tokenizer = open_corpus(
            data.source, data.val_source, data.tokenizer, data.val_fraction
        )
        assert corpus.train is not None
        sampler = Sampler(corpus.train, data.seq_len, config.train.batch_size, config.seed)
        directory.check_corpus(corpus, f"data.source={data.source}")
        if len(corpus.val) < 2:
            raise UserError("the validation text has fewer than two tokens; give more of it")
        if _is_finished(config, directory):
            _say_finished(config, directory)
            return EXIT_FINISHED
        with StopSignal() as stop, memory_errors():
            program = compile_program(config)
            for line in directory.claim(config, corpus):
                print(f"changed: {line}")
            run = _open_run(config, directory, origin, corpus, program, sampler)
            return run.go(stop, tokenizer, sample)
    finally:
        directory.unlock()


def _complete(config: ConfigDict, directory: RunDirectory) -> tuple[ConfigDict, Origin | None]:
    """Returns the config with everything in it that weights and tokenizer decide, checked."""
    origin = find_origin(config, directory)
    if origin is not None:
        config = adopt(config, origin, lambda line: print(line))
    check(config)
    return configs.resolve(config, load_tokenizer(config.data.tokenizer).size), origin


def _say_finished(config: ConfigDict, directory: RunDirectory) -> None:
    early = not Checkpoints(directory.checkpoints_path).path(config.train.steps).exists()
    field = "train.patience" if early else "train.steps"
    print(f"{directory.path} is finished: raise {field} to go on")
    report.print_end(directory)


def _is_finished(config: ConfigDict, directory: RunDirectory) -> bool:
    """Returns whether the run has all that it is to have, so that nothing need be compiled."""
    wanted = [directory.config_path, directory.metrics_path, directory.plot_path]
    if config.train.sample_tokens:
        wanted.append(directory.sample_path)
    if not all(path.exists() for path in wanted):
        return False
    rows = read_rows(directory.metrics_path)
    early = rows and _is_stale(config, rows)
    step = rows[-1]["step"] if early else config.train.steps
    last = Checkpoints(directory.checkpoints_path).path(step)
    return last.exists() and damage(last) is None


def _is_stale(config: ConfigDict, rows: list[Row]) -> bool:
    """Returns whether the validation loss has not fallen for `train.patience` evaluations."""
    patience = config.train.patience
    return patience is not None and evaluations_since_best(rows) >= patience


def _open_run(
    config: ConfigDict,
    directory: RunDirectory,
    origin: Origin | None,
    corpus: Corpus,
    program: Program,
    sampler: Sampler,
) -> Run:
    with disk_errors("checkpoints/"):
        directory.checkpoints_path.mkdir(exist_ok=True)
    checkpoints = Checkpoints(directory.checkpoints_path, config.train.keep_checkpoints)
    checkpoints.clean()
    found = checkpoints.latest(lambda line: print(f"warning: {line}"), set_aside=True)
    first = found or 0
    remaining = config.train.steps - first
    seconds = program.trial_seconds(sampler.batch(first)) if remaining >= 10 else None
    if found is None:
        state = program.start(sampler.batch(0))
        if origin is not None:
            if fault := damage(origin.folder):
                raise UserError(f"the first weights, {origin.folder}, are damaged or gone: {fault}")
            params = restore_params(origin.folder, program.shapes.params)
            state = state._replace(params=params)
            print(f"weights from {origin.name}")
    else:
        state = checkpoints.restore(found, program.shapes)
        print(f"continuing {directory.path} after update {found}")
    print(report.start_report(config, program, corpus, first, seconds), flush=True)
    directory.describe(config, report.facts(config, program), first)
    metrics = MetricsFile(directory.metrics_path, -1 if found is None else found)
    checkpoints.before_commit = metrics.sync
    return Run(
        config, directory, corpus, program, sampler, checkpoints, metrics, state, first, found
    )


@dataclass
class Run:
    """A run in progress. `step` counts the updates dispatched."""

    config: ConfigDict
    directory: RunDirectory
    corpus: Corpus
    program: Program
    sampler: Sampler
    checkpoints: Checkpoints
    metrics: MetricsFile
    state: State
    step: int
    saved_step: int | None
    stopped_by: str | None = None
    wandb: WandbLog = field(init=False)
    progress: Progress = field(init=False)
    evaluator: Evaluator = field(init=False)

    def __post_init__(self) -> None:
        train, seq_len = self.config.train, self.config.data.seq_len
        self.progress = Progress(train.steps, self.step, report.tokens_per_step(self.config))
        rows = read_rows(self.directory.metrics_path)
        self.wandb = WandbLog(
            report.wandb_options(self.config, self.directory),
            self.config.to_dict(),
            rows,
            self.progress.note,
        )
        self.evaluations = [row for row in rows if "val/loss" in row]
        self.evaluator = Evaluator(
            self.program.structure,
            self.program.mesh,
            seq_len,
            train.batch_size // train.accumulation,
        )
        self.probe = compile_probe(self.config, self.program)
        self.tokens_per_step = report.tokens_per_step(self.config)
        self.flops_per_token = self.program.structure.flops_per_token(seq_len)
        self.device_kind = self.program.mesh.devices.flat[0].device_kind
        # Metrics of an update, and figures by depth, on the devices and not read yet.
        self.pending: tuple[int, Metrics, Metrics] | None = None
        self.clock = time.monotonic()  # when the last row was read, less pauses
        self.clock_step = self.step
        self.longest_skipped = 0

    def go(self, stop: StopSignal, tokenizer: Tokenizer, sample: Sample | None) -> int:
        """Trains to the end or to a signal, and leaves the directory complete."""
        code = EXIT_DIVERGED
        try:
            with jax.transfer_guard("disallow"):
                self._train(stop)
            self.checkpoints.wait()
            self.progress.close()
            text = None if self.stopped_by else self._sample(tokenizer, sample)
            self._finish(text)
            code = EXIT_STOPPED if self.stopped_by else EXIT_FINISHED
        finally:
            with ExitStack() as last:  # each of these, whatever the others meet
                last.callback(self.wandb.close, code)
                last.callback(self.metrics.close)
                last.callback(self.checkpoints.close)
        return code

    def _train(self, stop: StopSignal) -> None:
        steps = self.config.train.steps
        if self.saved_step is None:
            with self._paused():
                self.evaluations = [{"step": 0, "tokens": 0, **self._evaluate()}]
                if figures := self._figures(self.program.put(self.sampler.batch(0))):
                    self.evaluations[0] |= by_block(jax.device_get(figures))
                self._write(self.evaluations[0])
        until = self.step if self._is_stale() else steps
        with Prefetch(self.sampler.batch, self.program.put, self.step, until) as batches:
            before: jax.Array | None = None
            for batch in batches:
                if stop.requested:
                    break
                self.state, metrics = self.program.step(self.state, batch)
                self.step += 1
                # Wait for the update before: one runs, one is queued, the host is never further.
                # (A CPU's collectives lock up for good with dozens of programs in flight.)
                if before is not None:
                    before.block_until_ready()
                    self.progress.advance(self.step - 1)
                before = metrics["loss"]
                self._write_pending()
                if self._due(self.step):
                    self.pending = (self.step, metrics, self._figures(batch))
                if self._is_stop(self.step):
                    with self._paused():
                        self._evaluate_and_save()
                    if self._is_stale():
                        break
        self._write_pending()
        if stop.requested and self.step < steps and not self._is_stale():
            self.stopped_by = stop.requested
            if self.saved_step != self.step:
                self._save(None)
        self.progress.advance(self.step)

    def _since_best(self) -> int:
        return evaluations_since_best(self.evaluations)

    def _is_stale(self) -> bool:
        return _is_stale(self.config, self.evaluations)

    def _due(self, step: int) -> bool:
        every = self.config.train.log_every
        return step % every == 0 or self._is_stop(step) or self._is_probed(step)

    def _is_probed(self, step: int) -> bool:
        every = self.config.track.diagnostics_every
        return every is not None and (step % every == 0 or step == self.config.train.steps)

    def _figures(self, batch: jax.Array) -> Metrics:
        """Returns the figures by depth that are due, on the devices; none where none are."""
        if self.probe is None or not self._is_probed(self.step):
            return {}
        return self.probe(self.state.params, self.state.step, batch)

    def _is_stop(self, step: int) -> bool:
        train = self.config.train
        every = (train.eval_every, train.checkpoint_every)
        return step == train.steps or any(step % n == 0 for n in every)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Leaves the time spent inside out of the speed."""
        jax.block_until_ready(self.state)
        before = time.monotonic()
        yield
        self.clock += time.monotonic() - before
        self.progress.pause(time.monotonic() - before)

    def _evaluate_and_save(self) -> None:
        row = self._row()
        train, last = self.config.train, self.step == self.config.train.steps
        if last or self.step % train.eval_every == 0:
            row |= self._evaluate()
            self.evaluations.append(row)
        self._write(row)
        # With patience the weights that are wanted at the end are those of the best evaluation.
        best = train.patience and row is self.evaluations[-1 - self._since_best()]
        if last or best or self._is_stale() or self.step % train.checkpoint_every == 0:
            self._save(row.get("val/loss"))

    def _save(self, val_loss: float | None) -> None:
        self.checkpoints.save(self.step, self.state, val_loss)
        self.saved_step = self.step

    def _write_pending(self) -> None:
        if self.pending is not None:
            self._write(self._row())

    def _row(self) -> Row:
        """Reads the pending update's metrics from the devices: the only read in the loop."""
        assert self.pending is not None
        (step, metrics, figures), self.pending = self.pending, None
        read = jax.device_get(metrics | figures)
        values = {name: read[name].item() for name in metrics if name != BLOCK_GRAD_NORMS}
        by_depth = {name: read[name] for name in figures}
        if by_depth:
            by_depth["grad_norm"] = read[BLOCK_GRAD_NORMS]
        now = time.monotonic()
        speed = (step - self.clock_step) * self.tokens_per_step / (now - self.clock)
        self.clock, self.clock_step = now, step
        self.progress.show(values["loss"])
        self.longest_skipped = values["longest_skipped"]
        row = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            **{f"train/{name}": values[name] for name in ("loss", "grad_norm", "lr", "skipped")},
            "perf/tokens_per_sec": speed,
            "perf/step_ms": self.tokens_per_step / speed * 1e3,
            **by_block(by_depth),
        }
        n_devices = self.program.mesh.devices.size
        mfu = utilisation(speed, self.flops_per_token, self.device_kind, n_devices)
        return row if mfu is None else row | {"perf/mfu": mfu}

    def _evaluate(self) -> dict[str, float]:
        score = self.evaluator.score(
            self.state.params, self.step, self.corpus.val, self.config.train.eval_tokens
        )
        self.progress.note(f"update {self.step}: validation loss {score.loss:.4f}", score.loss)
        return score.metrics(self.corpus.bytes_per_token("val"))

    def _write(self, row: Row) -> None:
        self.metrics.write(row)
        self.wandb.log(row)
        if self.longest_skipped >= self.config.optimizer.max_skipped:
            raise Diverged(
                f"by update {row['step']}, {self.longest_skipped} updates in a row had a gradient "
                "that was not finite or an outlier, and were skipped; lower optimizer.peak_lr, "
                "lengthen the warm-up or raise optimizer.skip_outliers, in another --workdir "
                f"({self.directory.path} keeps the record of this one)"
            )

    def _sample(self, tokenizer: Tokenizer, sample: Sample | None) -> str | None:
        if sample is None or self.config.train.sample_tokens == 0:
            return None
        text = sample(self.config, self.program.structure, self.state.params, tokenizer)
        with disk_errors("sample.txt"):
            write_atomic(self.directory.sample_path, text + "\n")
        return text

    def _finish(self, text: str | None) -> None:
        config = self.config
        rows = read_rows(self.directory.metrics_path)
        title = f"{config.model.placement} on {config.data.source}"
        subtitle = (
            f"{self.program.structure.n_params():,} parameters, {rows[-1]['tokens']:,} tokens"
        )
        if speeds := [row["perf/tokens_per_sec"] for row in rows if "perf/tokens_per_sec" in row]:
            subtitle += f", {statistics.median(speeds):,.0f} tokens/s on {self.device_kind}"
        plot_loss(rows, self.directory.plot_path, title, subtitle)
        self.wandb.show(self.step, self.directory.plot_path, text)
        final = {k: v for row in rows for k, v in row.items() if k.startswith("val/")}
        self.wandb.summarize({f"final/{name}": value for name, value in final.items()})
        report.print_end(self.directory)
        if self._is_stale() and self.step < config.train.steps:
            best = self.evaluations[-1 - self._since_best()]["step"]
            print(f"stopped early after update {self.step}: update {best} was the best")
        if self.stopped_by:
            command = shlex.join([sys.executable, *sys.argv])
            print(f"stopped by {self.stopped_by} after update {self.step}, saved; go on: {command}")
