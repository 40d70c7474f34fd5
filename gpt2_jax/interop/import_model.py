"""Imports a Hugging Face checkpoint as a run directory."""

from __future__ import annotations

from pathlib import Path

import jax

from gpt2_jax.config import replace, to_dict, to_json
from gpt2_jax.config.check import check_stored
from gpt2_jax.data.saved_tokenizer import save_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import atomic_folder, check_empty, read_fields, write_atomic, write_json
from gpt2_jax.interop import checkpoint_files
from gpt2_jax.interop.convert import from_huggingface
from gpt2_jax.interop.families import find_family
from gpt2_jax.interop.families.family import dropout_note
from gpt2_jax.interop.tokenizer_files import find_tokenizer
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.identity import FORMAT_VERSION, Identity, new_run_id
from gpt2_jax.train.storage.rundir import RunDirectory


def import_model(
    model: str, workdir: str, tokenizer: str | None = None, allow_pickle: bool = False
) -> list[str]:
    """Writes a run directory from a checkpoint; returns lines that summarize it.

    Args:
      model: a folder, or a name on the Hugging Face hub.
      workdir: a run directory that is empty or does not exist.
      tokenizer: a value of `data.tokenizer`; None for the checkpoint's tokenizer.
      allow_pickle: whether pytorch_model.bin may be read, with `weights_only=True`.

    Raises:
      UserError: naming the field or tensor that is not supported; `workdir` is not created.
    """
    target = RunDirectory(workdir).path.absolute()
    check_empty(target, f"--workdir={workdir}")
    folder = checkpoint_files.find_checkpoint(model, allow_pickle)
    fields = read_fields(folder / "config.json")
    family = find_family(fields)
    config = family.read(fields)
    check_stored(config, folder / "config.json")
    model_def = define_model(config.model, config.placement)
    with atomic_folder(target) as partial:
        imported = _import_tokenizer(folder, config.model.vocab_size, partial, target, tokenizer)
        name, fingerprint, line = imported
        config = replace(config, {"data.tokenizer": name})
        tensors = checkpoint_files.read_tensors(folder, allow_pickle)
        params = from_huggingface(family, config, model_def, tensors)
        write_atomic(partial / "config.json", to_json(config))
        identity = Identity(new_run_id(), to_dict(config), None, fingerprint)
        info = {"format_version": FORMAT_VERSION, "run_id": identity.run_id}
        n_params = model_def.n_params()
        info |= {"imported_from": model, "parameters": n_params, "tokenizer": fingerprint}
        write_json(partial / "run.json", info)
        save_params(partial / "weights", jax.tree.map(jax.numpy.asarray, params), identity)
    lines = [f"{n_params:,} parameters from {folder}", line, dropout_note(family, fields)]
    return [line for line in lines if line]


def _import_tokenizer(
    folder: Path, vocab_size: int, partial: Path, target: Path, tokenizer: str | None
) -> tuple[str, str, str]:
    """Saves the tokenizer; returns its name for `data.tokenizer`, its fingerprint and a summary."""
    if tokenizer is None:
        name, line = find_tokenizer(folder, vocab_size, partial)
    else:
        name, line = tokenizer, f"tokenizer: {tokenizer} (--tokenizer)"
    loaded = load_tokenizer(name)
    if loaded.size > vocab_size:
        raise UserError(
            f"the tokenizer {name} has ids up to {loaded.size - 1}, but the model's vocab_size is "
            f"{vocab_size}; pass another --tokenizer"
        )
    save_tokenizer(partial, loaded)
    name = name.replace(str(partial), str(target))
    return name, loaded.fingerprint, line.replace(str(partial), str(target))
