"""The teacher of a run: where its weights are, and whether it fits the run."""

from __future__ import annotations

from gpt2_jax.config.sections import DataConfig, ModelConfig, TrainConfig
from gpt2_jax.data.saved_tokenizer import same_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.model.heads import LM
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.distillation import Teacher
from gpt2_jax.train.pretrained import (
    PretrainedSource,
    define_merged,
    load_pretrained,
    open_source,
)
from gpt2_jax.train.storage.checkpoint_ref import CheckpointRef
from gpt2_jax.train.storage.checksums import find_damage
from gpt2_jax.train.storage.rundir import RunDirectory


def find_teacher(train: TrainConfig, directory: RunDirectory) -> PretrainedSource | None:
    """Returns the weights named by `train.teacher`; a run that continues keeps their step.

    Raises:
      UserError: if they are missing or damaged.
    """
    given = train.teacher
    if given is None:
        return None
    if directory.config_path.exists():
        before = CheckpointRef.parse(directory.read_config().train.teacher or "")
        if isinstance(before.step, int) and before.is_named_by(given):
            given = str(before)
    source = open_source(given, "train.teacher")
    if fault := find_damage(source.folder):
        raise UserError(f"train.teacher={given}: {source.folder} is damaged: {fault}")
    return source


def check_teacher(model: ModelConfig, data: DataConfig, source: PretrainedSource) -> None:
    """Refuses a teacher that does not fit the sections of a resolved config.

    Raises:
      UserError: if it predicts something else, has another tokenizer, or sees fewer tokens.
    """
    theirs = source.config
    if theirs.model.architecture != model.architecture:
        raise UserError(
            f"train.teacher={source.name} has model.architecture={theirs.model.architecture}, but "
            f"the run has model.architecture={model.architecture}; choose a teacher with the same"
        )
    same = same_tokenizer(data.tokenizer, theirs.data.tokenizer)
    if not same or model.vocab_size != theirs.model.vocab_size:
        raise UserError(
            f"train.teacher={source.name} has data.tokenizer={theirs.data.tokenizer} with "
            f"{theirs.model.vocab_size} ids, but the run has {data.tokenizer} with "
            f"{model.vocab_size}; choose a teacher with the same tokenizer"
        )
    if data.seq_len > theirs.model.n_positions:
        raise UserError(
            f"data.seq_len={data.seq_len} is longer than the {theirs.model.n_positions} "
            f"positions of train.teacher={source.name}; shorten it"
        )


def define_teacher(train: TrainConfig, source: PretrainedSource | None) -> Teacher | None:
    """Returns the teacher without its parameters; None if there is none."""
    if source is None:
        return None
    model = define_merged(source.config)
    return Teacher(model, source.step, train.teacher_weight, train.temperature)


def with_teacher(compiled: CompiledStep, source: PretrainedSource | None) -> CompiledStep:
    """Returns a step compiled for a teacher with the teacher's parameters."""
    if source is None:
        return compiled
    return compiled.taught(load_pretrained(source, compiled.mesh, LM))
