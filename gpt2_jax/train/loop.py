"""Starts or resumes a training run: checks, compilation, restoring."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.config.capacity import check_memory
from gpt2_jax.config.check import check
from gpt2_jax.config.task_rules import with_best_by
from gpt2_jax.data.layout.shape import Layout
from gpt2_jax.data.run_data import Batches, RunData
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.data.trained_tokenizer import is_trained
from gpt2_jax.errors import EXIT_FINISHED, EXIT_STOPPED, UserError
from gpt2_jax.fields import INT_MAX
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.tasks.task import TASKS, head_of
from gpt2_jax.track.console import forgiving_output, no_output, say, status
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import report
from gpt2_jax.train.batch_shapes import BatchShapes, window_shapes
from gpt2_jax.train.compiled_step import (
    INIT_ROWS,
    CompiledStep,
    compile_step,
    memory_errors,
)
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
from gpt2_jax.train.pretrained import (
    PretrainedSource,
    adopt_model,
    check_source,
    find_source,
    initial_state,
)
from gpt2_jax.train.run import Run, TextFns, how_to_continue
from gpt2_jax.train.run_logger import is_stale
from gpt2_jax.train.storage.checkpoint import Checkpoints
from gpt2_jax.train.storage.followed_directory import FollowedDirectory
from gpt2_jax.train.storage.open_run import (
    named_sources,
    open_data,
    open_examples,
    resolve_on,
)
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.train.storage.verify import ResumePoint, find_resume_point, open_checkpoints
from gpt2_jax.train.teacher import check_teacher, define_teacher, find_teacher, with_teacher
from gpt2_jax.tuning.definition import define_tuned


def train(
    config: Config,
    workdir: str,
    texts: TextFns | None = None,
    stop: StopSignal | None = None,
    processes: Processes = ALONE,
) -> int:
    """Starts or resumes the run in `workdir`, and returns the process's exit code.

    To resume: 1. check that config, text and tokenizer are those of the directory, and that its
    files are consistent; 2. compile the step; 3. restore the newest undamaged checkpoint; 4. remove
    later rows of metrics.jsonl; 5. start batches at the checkpoint's step. Nothing is created
    before all checks have passed.

    Args:
      texts: generate text; None for none.
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
            return _train(config, workdir, texts, stop, processes)
        except Stopped as signal:
            print(f"stopped by {signal} before training began; {how_to_continue()}")
            return EXIT_STOPPED


def _train(
    config: Config,
    workdir: str,
    texts: TextFns | None,
    stop: StopSignal,
    processes: Processes,
) -> int:
    directory = (RunDirectory if processes.is_main else FollowedDirectory)(workdir)
    check_same_program(processes, configs.flatten(config), config.placement.module)
    with processes.together("checks"):
        directory.check_usable()
        config, source, taught_by = _complete(config, directory)
    configure_devices(config.train, config.mesh, processes)
    own = directory.with_own_tokenizer(config)
    keep_freed_memory(own.model, own.data, own.train, own.mesh)
    with processes.together("data"):
        config, corpus, tokenizer, sampler = _open_data(config, directory, stop)
        if taught_by is not None:
            check_teacher(config.model, config.data, taught_by)
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
                batches = batch_shapes(config, corpus, sampler)
                may_choose = not directory.is_config_fixed()
                config, compiled = _compile(config, may_choose, processes, batches, taught_by)
            with processes.together("claim"):
                for line in directory.claim(config, corpus, tokenizer):
                    print(f"changed: {line}")
            if corpus.streams:
                known = directory.read_info().get("streams") or {}
                corpus.keep_counts(known, lambda counts: directory.change_info(streams=counts))
            compiled = with_teacher(compiled, taught_by)
            run = _open_run(
                config, directory, resume, source, corpus, compiled, sampler, stop, processes
            )
            return run.train(tokenizer, texts)
    finally:
        directory.unlock()


def _open_data(
    config: Config, directory: RunDirectory, stop: StopSignal
) -> tuple[Config, RunData, Tokenizer, Batches]:
    """Opens the data, and completes the config with what depends on it."""
    if _is_model_known(config):
        _check_patterns(config)
    examples = config.task.name != "lm"
    say("preparing the examples" if examples else "preparing the text")
    opened = directory.with_own_tokenizer(config)
    corpus: RunData
    with stop.immediate():
        if examples:
            corpus = open_examples(opened, directory.labels())
            tokenizer = corpus.tokenizer
        else:
            corpus, tokenizer = open_data(opened.data)
    corpus.check_validation()
    resolved, sampler = resolve_on(config, corpus, tokenizer)
    if isinstance(corpus, ExampleData):
        resolved = with_best_by(resolved, corpus.labels)
    if not _is_model_known(config):
        _check_patterns(resolved)
    resolved = directory.with_chosen_accumulation(resolved)
    directory.check_config(resolved)
    return resolved, corpus, tokenizer, sampler


def _is_model_known(config: Config) -> bool:
    """Returns whether the config has the sizes of all parameters."""
    has_labels = TASKS[config.task.name].has_labels
    labels_known = not has_labels or config.head.n_labels is not None
    return config.model.vocab_size is not None and labels_known


def _check_patterns(config: Config) -> None:
    """Reports a wrong pattern of parameters early."""
    patterns = config.optimizer.frozen or config.optimizer.lr_multipliers
    if patterns or config.tune.method != "none":
        head = head_of(config.task, config.head)
        model = define_tuned(config.model, config.placement, config.tune, head=head)
        lr_factors(config.optimizer, model)


def batch_shapes(config: Config, corpus: RunData, sampler: Batches) -> BatchShapes:
    """Returns the shapes of the batches of training and evaluation."""
    if not isinstance(corpus, ExampleData):
        return window_shapes(config.train.batch_size, config.data.seq_len)
    assert isinstance(sampler, Layout)
    rows = config.train.batch_size // config.train.accumulation
    evaluation = corpus.shapes(corpus.evaluation("val", rows))
    return BatchShapes(corpus.shapes(sampler), corpus.tokens_per_step(sampler), evaluation)


def _find_resume_point(
    config: Config,
    directory: RunDirectory,
    source: PretrainedSource | None,
    corpus: RunData,
    tokenizer: Tokenizer,
    processes: Processes,
) -> tuple[ResumePoint, bool]:
    """Returns where process 0 finds that the run continues, and whether it is finished."""
    found: list[Any] = []
    with processes.together("resume"):
        if processes.is_main:
            directory.check_config(config)  # again: nobody else can write now
            directory.check_data(corpus, tokenizer, named_sources(config.data))
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
    if config.train.epochs is not None:  # unknown until the data is open
        if config.train.steps != Config().train.steps:
            raise UserError(
                f"train.steps={config.train.steps} has no effect with train.epochs="
                f"{config.train.epochs:g}; change train.epochs instead, or unset it with "
                "--config.train.epochs=None"
            )
        config = configs.replace(config, {"train.steps": INT_MAX})
    check(config)
    if (teacher := find_teacher(config.train, directory)) is not None:
        config = configs.replace(config, {"train.teacher": teacher.name})
    tokenizer_name = directory.tokenizer_for(config)
    if config.task.name != "lm" or is_trained(tokenizer_name):
        config = directory.with_chosen_accumulation(configs.with_n_inner(config))
        directory.check_config(config)  # again, when the data is open
        return config, source, teacher
    tokenizer = load_tokenizer(tokenizer_name)
    config = configs.resolve(config, tokenizer.size, tokenizer.end_of_text)
    check_memory(config, training=True)  # again, now that the vocabulary's size is known
    if teacher is not None:
        check_teacher(config.model, config.data, teacher)
    config = directory.with_chosen_accumulation(config)
    directory.check_config(config)
    return config, source, teacher


def _compile(
    config: Config,
    may_choose: bool,
    processes: Processes,
    batches: BatchShapes,
    taught_by: PretrainedSource | None,
) -> tuple[Config, CompiledStep]:
    """Returns the compiled train step, and the config with its `train.accumulation`."""
    teacher = define_teacher(config.train, taught_by)
    if config.train.micro_batch is None or not may_choose:
        with status("compiling the train step and the evaluation"):
            return config, compile_step(config, batches=batches, others=True, teacher=teacher)

    def compiled_with(n: int) -> CompiledStep:
        with status(f"compiling the train step with train.accumulation={n}"):
            made = configs.replace(config, {"train.accumulation": n})
            return compile_step(made, batches=batches, teacher=teacher)

    mesh = make_mesh(config.train, config.mesh)
    n, compiled = largest_micro_batch(config.train, mesh, compiled_with)
    if (most := max(processes.gather("train.accumulation", n))) != n:
        n, compiled = most, compiled_with(most)  # another process has less memory
    return configs.replace(config, {"train.accumulation": n}), compiled


def _check_streams(corpus: RunData, processes: Processes) -> None:
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
    length = "train.steps" if config.train.epochs is None else "train.epochs"
    field = "train.patience" if early else length
    print(f"{directory.path} is finished: raise {field} to continue it")
    report.print_end(directory, TASKS[config.task.name])


def _is_finished(config: Config, directory: RunDirectory, resume: ResumePoint) -> bool:
    """Returns whether the run is complete and nothing needs to be compiled."""
    wanted = [directory.config_path, directory.metrics_path, directory.plot_path]
    if config.train.sample_tokens and TASKS[config.task.name].has_sample:
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
    corpus: RunData,
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
        if source is None:
            state = compiled.start(sampler.batch(0, slice(INIT_ROWS)))
        else:
            state = initial_state(config, compiled, corpus.labels, source)
    else:
        state = checkpoints.restore(resume.step, compiled.shapes)
        print(f"continuing {directory.path} after step {first}")
        if change := report.mesh_change(directory.read_info(), compiled):
            print(change)
    real = sampler.real_share if isinstance(sampler, Layout) else None
    print(report.start_report(config, compiled, corpus, first, seconds, real), flush=True)
    directory.describe(config, report.facts(config, compiled), first)
    where = (state, first, resume.step)
    return Run(config, directory, corpus, compiled, sampler, checkpoints, *where, stop, processes)
