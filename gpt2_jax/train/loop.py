"""From a config and a directory to a run: what is checked, compiled and restored before it."""

from __future__ import annotations

from contextlib import nullcontext

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.capacity import check_memory
from gpt2_jax.config_check import check
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Corpus
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED
from gpt2_jax.model.structure import structure
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.track.screen import forgiving_output, say, status
from gpt2_jax.train import report
from gpt2_jax.train.checkpoint import Checkpoints
from gpt2_jax.train.memory import keep_freed_memory
from gpt2_jax.train.mesh import configure_devices
from gpt2_jax.train.origin import Origin, adopt, check_origin, find_origin, restore_origin
from gpt2_jax.train.patterns import rate_factors
from gpt2_jax.train.program import Program, compile_program, memory_errors
from gpt2_jax.train.record import is_stale
from gpt2_jax.train.run import Run, Sample, how_to_continue
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.signals import Stopped, StopSignal
from gpt2_jax.train.verify import Standing, examine, open_checkpoints


def train(
    config: ConfigDict,
    workdir: str,
    sample: Sample | None = None,
    stop: StopSignal | None = None,
) -> int:
    """Trains, or continues, the run in `workdir`, and returns the process's exit code.

    A run is resumed in this order: 1. the config, the text and the tokenizer must be those of the
    directory, and what lies in it must fit together; 2. the step is compiled; 3. the newest
    undamaged checkpoint is restored; 4. rows of metrics.jsonl past it are cut off; 5. batches
    start at its step. Nothing is created before all that can be checked has been.

    Args:
      sample: makes the text that is shown at the end.
      stop: entered already; unset: the run's own.

    Raises:
      UserError: for wrong input, before anything expensive.
      Diverged: if too many steps in a row had to be skipped.
    """
    with forgiving_output(), StopSignal() if stop is None else nullcontext(stop) as stop:
        try:
            return _train(config, workdir, sample, stop)
        except Stopped as signal:
            print(f"stopped by {signal} before training began; {how_to_continue()}")
            return EXIT_STOPPED


def _train(config: ConfigDict, workdir: str, sample: Sample | None, stop: StopSignal) -> int:
    directory = RunDirectory(workdir)
    directory.check_usable()
    config, origin = _complete(config, directory)
    directory.check_config(config)
    data = config.data
    keep_freed_memory(config)
    configure_devices(config)
    if config.optimizer.frozen or config.optimizer.lr_multipliers:
        rate_factors(config, structure(config.model))  # report a wrong pattern at once
    say("preparing the text")
    with stop.immediate():
        corpus, tokenizer = open_corpus(
            data.source,
            data.val_source,
            directory.tokenizer_for(config),
            data.val_fraction,
            data.document_separator,
        )
    assert corpus.train is not None
    sampler = Sampler(corpus.train, data.seq_len, config.train.batch_size, config.seed)
    corpus.check_validation()
    directory.lock()
    try:
        directory.check_config(config)  # again: nobody else can write now
        directory.check_data(corpus, tokenizer, f"data.source={data.source}")
        standing = examine(directory)
        if _is_finished(config, directory, standing):
            _say_finished(config, directory)
            return EXIT_FINISHED
        if standing.step is None and origin is not None:
            check_origin(origin)
        with memory_errors():
            with stop.immediate(), status("compiling the train step"):
                program = compile_program(config)
            for line in directory.claim(config, corpus, tokenizer):
                print(f"changed: {line}")
            run = _open_run(config, directory, standing, origin, corpus, program, sampler, stop)
            return run.go(tokenizer, sample)
    finally:
        directory.unlock()


def _complete(config: ConfigDict, directory: RunDirectory) -> tuple[ConfigDict, Origin | None]:
    """Returns the config with everything in it that weights and tokenizer decide, checked."""
    origin = find_origin(config, directory)
    if origin is not None:
        config = adopt(config, origin, lambda line: print(line))
    check(config)
    tokenizer = load_tokenizer(directory.tokenizer_for(config))
    config = configs.resolve(config, tokenizer.size)
    check_memory(config, training=True)  # again, with the vocabulary's size
    return config, origin


def _say_finished(config: ConfigDict, directory: RunDirectory) -> None:
    early = not Checkpoints(directory.checkpoints_path).path(config.train.steps).exists()
    field = "train.patience" if early else "train.steps"
    print(f"{directory.path} is finished: raise {field} to continue it")
    report.print_end(directory)


def _is_finished(config: ConfigDict, directory: RunDirectory, standing: Standing) -> bool:
    """Returns whether the run has all that it is to have, so that nothing need be compiled."""
    wanted = [directory.config_path, directory.metrics_path, directory.plot_path]
    if config.train.sample_tokens:
        wanted.append(directory.sample_path)
    if standing.step is None or standing.damaged or not all(path.is_file() for path in wanted):
        return False
    rows = read_rows(directory.metrics_path)
    if not rows or "val/loss" not in rows[-1]:
        return False  # stopped in the last evaluation
    last = rows[-1]["step"]
    wanted_step = last if is_stale(config, rows) else config.train.steps
    return standing.step == wanted_step and last <= standing.step


def _open_run(
    config: ConfigDict,
    directory: RunDirectory,
    standing: Standing,
    origin: Origin | None,
    corpus: Corpus,
    program: Program,
    sampler: Sampler,
    stop: StopSignal,
) -> Run:
    for step, fault in standing.damaged:
        print(f"warning: checkpoint {directory.folder_of(step)} is damaged ({fault}): passed over")
    checkpoints = open_checkpoints(directory, config.train.keep_checkpoints, standing)
    found = standing.step
    first = found or 0
    remaining = config.train.steps - first
    seconds = None
    if remaining >= 10:
        with stop.immediate(), status("timing a few steps"):
            seconds = program.trial_seconds(sampler.batch(first))
    if found is None:
        state = program.start(sampler.batch(0))
        if origin is not None:
            state = state._replace(params=restore_origin(origin, program.shapes.params))
            print(f"weights from {origin.name}")
    else:
        state = checkpoints.restore(found, program.shapes)
        print(f"continuing {directory.path} after step {found}")
    print(report.start_report(config, program, corpus, first, seconds), flush=True)
    directory.describe(config, report.facts(config, program), first)
    return Run(config, directory, corpus, program, sampler, checkpoints, state, first, found, stop)
