"""A Hugging Face GPT-2 checkpoint as a run directory."""

from __future__ import annotations

from pathlib import Path

import jax

from gpt2_jax import config as configs
from gpt2_jax.config_check import check_stored
from gpt2_jax.data.kept_tokenizer import keep_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import read_fields, whole_folder, write_atomic, write_json
from gpt2_jax.interop import files, hf_config
from gpt2_jax.interop.tokenizer_files import find_tokenizer
from gpt2_jax.interop.weights import from_huggingface
from gpt2_jax.model.structure import structure
from gpt2_jax.train.checkpoint import save_params
from gpt2_jax.train.identity import FORMAT_VERSION, Identity, new_run_id
from gpt2_jax.train.rundir import RunDirectory


def import_model(
    model: str, workdir: str, tokenizer: str | None = None, allow_pickle: bool = False
) -> list[str]:
    """Makes a run directory of a checkpoint, and returns lines that say what was found.

    Args:
      model: a folder, or a name on the Hugging Face hub.
      workdir: must be empty or not there.
      tokenizer: as `data.tokenizer`; None for the checkpoint's own.
      allow_pickle: whether pytorch_model.bin may be read, as weights alone.

    Raises:
      UserError: naming the field or tensor that does not fit; nothing is left in `workdir` then.
    """
    target = RunDirectory(workdir).path.absolute()
    files.refuse_full(target, f"--workdir={workdir}")
    folder = files.locate(model, allow_pickle)
    theirs = read_fields(folder / "config.json")
    config = hf_config.from_huggingface(theirs)
    check_stored(config, folder / "config.json")
    built = structure(config.model)
    with whole_folder(target) as partial:
        said = _describe(folder, config.model.vocab_size, partial, target, tokenizer)
        config.data.tokenizer, fingerprint, line = said
        params = from_huggingface(built, files.read_tensors(folder, allow_pickle))
        write_atomic(partial / "config.json", configs.to_json(config))
        identity = Identity(new_run_id(), config.to_dict(), None, fingerprint)
        info = {"format_version": FORMAT_VERSION, "run_id": identity.run_id}
        info |= {"imported_from": model, "parameters": built.n_params(), "tokenizer": fingerprint}
        write_json(partial / "run.json", info)
        save_params(partial / "weights", jax.tree.map(jax.numpy.asarray, params), identity)
    lines = [f"{built.n_params():,} parameters from {folder}", line, hf_config.dropout_note(theirs)]
    return [line for line in lines if line]


def _describe(
    folder: Path, vocab_size: int, partial: Path, target: Path, tokenizer: str | None
) -> tuple[str, str, str]:
    """Returns `data.tokenizer`, its fingerprint, and a line about it; a file of its own is kept."""
    if tokenizer is None:
        name, line = find_tokenizer(folder, vocab_size, partial)
    else:
        name, line = tokenizer, f"its tokenizer is taken to be {tokenizer}"
    loaded = load_tokenizer(name)
    if loaded.size > vocab_size:
        raise UserError(
            f"the tokenizer {name} has ids up to {loaded.size - 1}, and the model's vocabulary is "
            f"{vocab_size}; give --tokenizer"
        )
    keep_tokenizer(partial, loaded)
    name = name.replace(str(partial), str(target))
    return name, loaded.fingerprint, line.replace(str(partial), str(target))
