"""Exports the low-rank updates of a tuned run as a folder of Hugging Face's peft."""

from __future__ import annotations

from pathlib import Path

from gpt2_jax.config import words
from gpt2_jax.errors import UserError
from gpt2_jax.files import atomic_folder, check_empty
from gpt2_jax.interop import checkpoint_files
from gpt2_jax.interop.families import family_of, gpt2
from gpt2_jax.interop.peft_format import to_peft
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.tuning.definition import LOW_RANK, LowRankModel


def export_adapter(
    workdir: str, out: str, base: str | None = None, step: int | str | None = None
) -> str:
    """Writes the LoRA or DoRA of a run as a folder that peft can load; returns a summary.

    Args:
      out: a folder that is empty or does not exist.
      base: where peft finds the base model, recorded in adapter_config.json.
      step: as in `CheckpointRef`.

    Raises:
      UserError: if the run has no such updates, or also trained other parameters.
    """
    target = Path(out).absolute()
    check_empty(target, f"--out={out}")
    config = RunDirectory(workdir).read_config()
    if config.tune.method not in LOW_RANK:
        raise UserError(
            f"--adapter: {workdir} was trained with tune.method={config.tune.method}, which is not "
            f"one of {', '.join(LOW_RANK)}; leave --adapter out to export the model"
        )
    if words(config.tune.trained):
        raise UserError(
            f"--adapter: {workdir} also trained {', '.join(config.tune.trained)}, which an adapter "
            "does not contain; leave --adapter out to export the merged model"
        )
    if (family := family_of(config)) is not gpt2.FAMILY:
        raise UserError(
            f"--adapter: {workdir} is {family.label}, but an adapter must be one of GPT-2; leave "
            "--adapter out to export the merged model"
        )
    run = open_run(workdir, step, merge=False)
    if not isinstance(run.model_def, LowRankModel):
        raise UserError(f"--adapter: {workdir} has no update of a matrix at step {run.step}")
    tensors, fields = to_peft(run.model_def, run.params, base)
    with atomic_folder(target) as partial:
        checkpoint_files.write_adapter(partial, tensors, fields)
    n = sum(value.size for value in tensors.values())
    return f"{config.tune.method} of {workdir} after step {run.step} in {out}, {n:,} numbers"
