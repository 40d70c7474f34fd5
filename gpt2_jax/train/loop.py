"""Starts or resumes a training run: checks, compilation, restoring."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.config.capacity import check_memory
from gpt2_jax.config.check import check
from gpt2_jax.data.dataset import Dataset
from gpt2_jax.data.mixture import Batches
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED, UserError
from gpt2_jax.track.console import forgiving_output, no_output, say, status
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import report
from gpt2_jax.train.compiled_step import INIT_ROWS, CompiledStep, compile_step, memory_errors
from gpt2_jax.train.distillation import Teacher
from gpt2_jax.train.distributed.agreement import (
    check_same_data,
    check_same_program,
    check_shared_folder,
)
from gpt2_jax.train.distributed.mesh import configure_devices, make_mesh
from gpt2_jax.train.distributed.processes import ALONE, Processes
from gpt2_jax.train.distributed.signals import Stopped, StopSignal
from gpt2_jax.train.malloc import keep_freed_memory
from gpt2_jax.train.micro_batch import largest_micro_batch
from gpt2_jax.train.optim.param_patterns import lr_factors
from gpt2_jax.train.optim.pruning import pruned
from gpt2_jax.train.pretrained import (
    PretrainedSource,
    adopt_model,
    check_source,
    check_teacher,
    define_merged,
    find_source,
    find_teacher,
    load_pretrained,
)
from gpt2_jax.train.run import Run, SampleFn, how_to_continue
from gpt2_jax.train.run_logger import is_stale
from gpt2_jax.train.state import State
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.open_run import open_data
from gpt2_jax.train.storage.rundir import FollowedDirectory, RunDirectory
from gpt2_jax.train.storage.verify import ResumePoint, find_resume_point, open_checkpoints
from gpt2_jax.tuning.definition import define_tuned


def train(
    config: Config,
    workdir: str,
    sample: SampleFn | None = None,
    stop: StopSignal | None = None,
    processes: Processes = ALONE,
) -> int:
    """Starts or resumes the run in `workdir`, and returns the process's exit code.

    To resume: 1. check that config, text and tokenizer are those of the directory, and that its
    files are consistent; 2. compile the step; 3. restore the newest undamaged checkpoint; 4. remove
    later rows of metrics.jsonl; 5. start batches at the checkpoint's step. Nothing is created
    before all checks have passed.

    Args:
      sample: returns the text to show at the end.
      stop: an entered stop signal; None to create one.
      processes: those that train together. Each calls this function; process 0 prints, and writes
        all files except the state in checkpoints.

    Raises:
      UserError: for wrong input, before anything expensive.
      Diverged: if too many consecutive steps had to be skipped.
    """
    output = nullcontext() if processes.is_main else no_output()
    with forgiving_output(), output, StopSignal() if stop is None else nullcontext(stop) as stop:
        try:
            return _train(config, workdir, sample, stop, processes)
        except Stopped as signal:
            print(f"stopped by {signal} before training began; {how_to_continue()}")
            return EXIT_STOPPED


def _train(
    config: Config,
    workdir: str,
    sample: SampleFn | None,
    stop: StopSignal,
    processes: Processes,
) -> int:
    directory = (RunDirectory if processes.is_main else FollowedDirectory)(workdir)
    check_same_program(processes, configs.flatten(config), config.placement.module)
    with processes.together("checks"):
        directory.check_usable()
        config, source, taught_by = _complete(config, directory)
        directory.check_config(config)
    keep_freed_memory(config.model)
    configure_devices(config.train, config.mesh, processes)
    with processes.together("data"):
        corpus, tokenizer, sampler = _open_data(config, directory, stop)
        _check_streams(corpus, processes)
    check_same_data(processes, corpus.content_hash(), tokenizer.fingerprint)
    try:
        with processes.together("lock"):
            directory.lock()
        check_shared_folder(processes, directory.path)
        resume, is_finished = _find_resume_point(
            config, directory, source, corpus, tokenizer, processes
        )
        if is_finished:
            _print_finished(config, directory)
            return EXIT_FINISHED
        with memory_errors():
            with stop.immediate():
                may_choose = not directory.is_config_fixed()
                config, compiled = _compile(config, may_choose, processes, taught_by)
            with processes.together("claim"):
                for line in directory.claim(config, corpus, tokenizer):
                    print(f"changed: {line}")
            if corpus.streams:
                known = directory.read_info().get("streams") or {}
                corpus.keep_counts(known, lambda counts: directory.change_info(streams=counts))
            if taught_by is not None:
                compiled = compiled.taught(load_pretrained(taught_by, compiled.mesh))
            run = _open_run(
                config, directory, resume, source, corpus, compiled, sampler, stop, processes
            )
            return run.train(tokenizer, sample)
    finally:
        directory.unlock()


def _open_data(
    config: Config, directory: RunDirectory, stop: StopSignal
) -> tuple[Dataset, Tokenizer, Batches]:
    patterns = config.optimizer.frozen or config.optimizer.lr_multipliers
    if patterns or config.tune.method != "none":
        model = define_tuned(config.model, config.placement, config.tune)
        lr_factors(config.optimizer, model)  # reports a wrong pattern early
    say("preparing the text")
    data = dataclasses.replace(config.data, tokenizer=directory.tokenizer_for(config))
    with stop.immediate():
        corpus, tokenizer = open_data(data)
    sampler = corpus.sampler(data.seq_len, config.train.batch_size, config.seed)
    corpus.check_validation()
    return corpus, tokenizer, sampler


def _find_resume_point(
    config: Config,
    directory: RunDirectory,
    source: PretrainedSource | None,
    corpus: Dataset,
    tokenizer: Tokenizer,
    processes: Processes,
) -> tuple[ResumePoint, bool]:
    """Returns where process 0 finds that the run continues, and whether it is finished."""
    found: list[Any] = []
    with processes.together("resume"):
        if processes.is_main:
            directory.check_config(config)  # again: nobody else can write now
            directory.check_data(corpus, tokenizer, f"data.source={config.data.source}")
            resume = find_resume_point(directory)
            if resume.step is None and source is not None:
                check_source(source)
            found = [resume.step, resume.damaged, _is_finished(config, directory, resume)]
    step, damaged, is_finished = processes.broadcast("resume point", found)
    return ResumePoint(step, tuple(damaged)), is_finished


def _complete(
    config: Config, directory: RunDirectory
) -> tuple[Config, PretrainedSource | None, PretrainedSource | None]:
    """Returns the checked config, the initial weights and the teacher.

    The config includes the fields set by the weights and the tokenizer.
    """
    source = find_source(config, directory)
    if source is not None:
        config = adopt_model(config, source, lambda line: print(line))
    elif config.tune.method != "none" or config.optimizer.sparsity:
        tuned = config.tune.method != "none"
        name = f"tune.method={config.tune.method}" if tuned else "optimizer.sparsity"
        raise UserError(
            f"{name} needs the weights of another run: set train.init_from to its directory"
        )
    check(config)
    if (teacher := find_teacher(config, directory)) is not None:
        config = configs.replace(config, {"train.teacher": teacher.name})
    tokenizer = load_tokenizer(directory.tokenizer_for(config))
    config = configs.resolve(config, tokenizer.size, tokenizer.end_of_text)
    check_memory(config, training=True)  # again, now that the vocabulary's size is known
    if teacher is not None:
        check_teacher(config, teacher)
    return directory.with_chosen_accumulation(config), source, teacher


def _compile(
    config: Config, may_choose: bool, processes: Processes, taught_by: PretrainedSource | None
) -> tuple[Config, CompiledStep]:
    """Returns the compiled train step, and the config with its `train.accumulation`."""
    options: dict[str, Any] = {}
    if taught_by is not None:
        train, model = config.train, define_merged(taught_by.config)
        teacher = Teacher(model, taught_by.step, train.teacher_weight, train.temperature)
        options["teacher"] = teacher
    if config.train.micro_batch is None or not may_choose:
        with status("compiling the train step and the evaluation"):
            return config, compile_step(config, others=True, **options)

    def compiled_with(n: int) -> CompiledStep:
        with status(f"compiling the train step with train.accumulation={n}"):
            return compile_step(configs.replace(config, {"train.accumulation": n}), **options)

    mesh = make_mesh(config.train, config.mesh)
    n, compiled = largest_micro_batch(config.train, mesh, compiled_with)
    if (most := max(processes.gather("train.accumulation", n))) != n:
        n, compiled = most, compiled_with(most)  # another process has less memory
    return configs.replace(config, {"train.accumulation": n}), compiled


def _check_streams(corpus: Dataset, processes: Processes) -> None:
    """Refuses text that several processes would fetch while training.

    A download that fails in one of them would not stop the others at the same step.
    """
    if processes.count > 1 and corpus.streams:
        name = ", ".join(corpus.streams)
        raise UserError(
            f"{name}: several processes cannot fetch their text while training; download it, or "
            "prepare it with `gpt2-jax prepare`, and set data.source to the folder"
        )


def _print_finished(config: Config, directory: RunDirectory) -> None:
    early = not Checkpoints(directory.checkpoints_path).path(config.train.steps).exists()
    field = "train.patience" if early else "train.steps"
    print(f"{directory.path} is finished: raise {field} to continue it")
    report.print_end(directory)


def _is_finished(config: Config, directory: RunDirectory, resume: ResumePoint) -> bool:
    """Returns whether the run is complete and nothing needs to be compiled."""
    wanted = [directory.config_path, directory.metrics_path, directory.plot_path]
    if config.train.sample_tokens:
        wanted.append(directory.sample_path)
    if resume.step is None or resume.damaged or not all(path.is_file() for path in wanted):
        return False
    rows = read_rows(directory.metrics_path)
    if not rows or "val/loss" not in rows[-1]:
        return False  # stopped during the last evaluation
    last = rows[-1]["step"]
    wanted_step = last if is_stale(config, rows) else config.train.steps
    return resume.step == wanted_step and last <= resume.step


def _open_run(
    config: Config,
    directory: RunDirectory,
    resume: ResumePoint,
    source: PretrainedSource | None,
    corpus: Dataset,
    compiled: CompiledStep,
    sampler: Batches,
    stop: StopSignal,
    processes: Processes,
) -> Run:
    for step, fault in resume.damaged:
        print(f"warning: checkpoint {directory.folder_of(step)} is damaged ({fault}): skipped")
    checkpoints = open_checkpoints(directory, config.train.keep_checkpoints, resume, processes)
    first = resume.step or 0
    if corpus.streams:
        with stop.immediate(), status("fetching the first remote files"):
            sampler.batch(first)
    seconds = None
    if config.train.steps - first >= 10:
        with stop.immediate(), status("timing a few steps"):
            seconds = compiled.trial_seconds(sampler.batch(first, compiled.rows), processes)
    if resume.step is None:
        state = _initial_state(compiled, sampler, source, config.optimizer.sparsity)
    else:
        state = checkpoints.restore(resume.step, compiled.shapes)
        print(f"continuing {directory.path} after step {first}")
        if change := report.mesh_change(directory.read_info(), compiled):
            print(change)
    print(report.start_report(config, compiled, corpus, first, seconds), flush=True)
    directory.describe(config, report.facts(config, compiled), first)
    where = (state, first, resume.step)
    return Run(config, directory, corpus, compiled, sampler, checkpoints, *where, stop, processes)


def _initial_state(
    compiled: CompiledStep, sampler: Batches, source: PretrainedSource | None, sparsity: float
) -> State:
    if source is None:
        return compiled.start(sampler.batch(0, slice(INIT_ROWS)))
    state, model = compiled.init(), compiled.model_def
    weights = load_pretrained(source, compiled.mesh)
    print(f"weights from {source.name}")
    params = model.with_weights(state.all_params, weights)
    if sparsity:
        prune = partial(pruned, model, sparsity=sparsity)
        params = jax.jit(prune, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params)
        print(f"pruned {sparsity:.0%} of the weights of each matrix of the blocks")
    return compiled.replace_params(state, params)
