"""Imports a Hugging Face GPT-2 checkpoint as a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from gpt2_jax.config import replace, to_dict, to_json
from gpt2_jax.config.check import check_stored
from gpt2_jax.data.saved_tokenizer import save_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import atomic_folder, check_empty, read_fields, write_atomic, write_json
from gpt2_jax.interop import checkpoint_files, hf_config
from gpt2_jax.interop.peft_format import apply_peft
from gpt2_jax.interop.tokenizer_files import find_tokenizer
from gpt2_jax.interop.weights import Tensors, from_huggingface
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.identity import FORMAT_VERSION, Identity, new_run_id
from gpt2_jax.train.storage.rundir import RunDirectory


def import_model(
    model: str,
    workdir: str,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    base: str | None = None,
) -> list[str]:
    """Writes a run directory from a checkpoint; returns lines that summarize it.

    Args:
      model: a folder, or a name on the Hugging Face hub; of a model, or of a LoRA adapter of peft,
        which is then merged into its base model.
      workdir: a run directory that is empty or does not exist.
      tokenizer: a value of `data.tokenizer`; None for the checkpoint's tokenizer.
      allow_pickle: whether pytorch_model.bin may be read, with `weights_only=True`.
      base: an adapter's base model, as `model`; None for the one that adapter_config.json names.

    Raises:
      UserError: naming the field or tensor that is not supported; `workdir` is not created.
    """
    target = RunDirectory(workdir).path.absolute()
    check_empty(target, f"--workdir={workdir}")
    folder = checkpoint_files.find_checkpoint(model, allow_pickle)
    adapter = _find_adapter(folder, base)
    if adapter is not None:
        folder = checkpoint_files.find_checkpoint(_base_of(adapter[1], base), allow_pickle)
    fields = read_fields(folder / "config.json")
    config = hf_config.from_huggingface(fields)
    check_stored(config, folder / "config.json")
    model_def = define_model(config.model, config.placement)
    with atomic_folder(target) as partial:
        imported = _import_tokenizer(folder, config.model.vocab_size, partial, target, tokenizer)
        name, fingerprint, line = imported
        config = replace(config, {"data.tokenizer": name})
        tensors = checkpoint_files.read_tensors(folder, allow_pickle)
        if adapter is not None:
            tensors = apply_peft(tensors, adapter[0], adapter[1])
        params = from_huggingface(model_def, tensors)
        write_atomic(partial / "config.json", to_json(config))
        identity = Identity(new_run_id(), to_dict(config), None, fingerprint)
        info = {"format_version": FORMAT_VERSION, "run_id": identity.run_id}
        n_params = model_def.n_params()
        info |= {"imported_from": model, "parameters": n_params, "tokenizer": fingerprint}
        write_json(partial / "run.json", info)
        save_params(partial / "weights", jax.tree.map(jax.numpy.asarray, params), identity)
    lines = [f"{n_params:,} parameters from {folder}", line, hf_config.dropout_note(fields)]
    return [line for line in lines if line]


def _find_adapter(folder: Path, base: str | None) -> tuple[Tensors, dict[str, Any]] | None:
    """Returns the adapter in a folder, None if it holds a model."""
    if (folder / checkpoint_files.ADAPTER_CONFIG).exists():
        return checkpoint_files.read_adapter(folder)
    if base is not None:
        raise UserError(f"--base={base} is of an adapter, but {folder} is not a folder of peft")
    return None


def _base_of(fields: dict[str, Any], base: str | None) -> str:
    found = base or fields.get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise UserError(
            "adapter_config.json does not name a base model; pass --base, a folder or a name on "
            "the Hugging Face hub"
        )
    return found


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
