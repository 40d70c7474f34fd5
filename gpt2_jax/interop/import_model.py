"""Imports a Hugging Face checkpoint as a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gpt2_jax.config import Config, replace, to_dict, to_json
from gpt2_jax.config.check import check_stored
from gpt2_jax.data.saved_tokenizer import save_tokenizer
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import atomic_folder, check_empty, read_fields, write_atomic, write_json
from gpt2_jax.interop import checkpoint_files
from gpt2_jax.interop.convert import from_huggingface, normalize
from gpt2_jax.interop.families import find_family, gpt2
from gpt2_jax.interop.families.family import Family, Fields, dropout_note
from gpt2_jax.interop.families.labels import read_labels
from gpt2_jax.interop.layouts import Tensors
from gpt2_jax.interop.peft_format import apply_peft
from gpt2_jax.interop.special_tokens import read_special_ids
from gpt2_jax.interop.tokenizer_files import find_tokenizer
from gpt2_jax.model.definition import ModelDef, define_model
from gpt2_jax.model.heads import HeadSpec
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.identity import FORMAT_VERSION, Identity, new_run_id
from gpt2_jax.train.storage.rundir import RunDirectory

# The task whose models have a kind of head. Classification without labels has a pooled one.
ENCODER_TASKS = {"mlm": "mlm", "tokens": "tag", "sequence": "classify", "span": "answer"}
ENCODER_TASKS["pooled"] = "classify"
PREDICTED = {
    "mlm": "masked tokens",
    "tokens": "labels of tokens",
    "sequence": "labels of sequences",
    "span": "answers",
}
DEFAULT_TASKS = {"decoder": "lm", "encoder_decoder": "translate"}


@dataclass(frozen=True)
class Imported:
    """A checkpoint as our model.

    Attributes:
      config: with the task and head of its class.
      labels: names of its head's labels, empty if it has none.
      unused: tensors in its files that its class does not use.
    """

    config: Config
    model_def: ModelDef
    params: Any
    labels: list[str]
    unused: list[str]


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
    files = _find_files(model, base, allow_pickle)
    fields, family = files.fields, files.family
    config = _with_head(read_config(fields), family.head(fields, ()))
    check_stored(config, files.folder / "config.json")
    with atomic_folder(target) as partial:
        vocab_size = config.model.vocab_size
        found = _import_tokenizer(files.folder, vocab_size, partial, target, tokenizer)
        name, fingerprint, line = found
        config = replace(config, {"data.tokenizer": name})
        imported = _convert(family, fields, config, files.read_tensors(allow_pickle))
        info = {"imported_from": model, **_facts(files.folder, fields, imported)}
        _write_run(partial, imported, fingerprint, info)
    lines = (
        _summary(imported, files.folder),
        line,
        dropout_note(family, fields),
        _unused_note(imported),
    )
    return [line for line in lines if line]


@dataclass(frozen=True)
class _Files:
    """The files of a model.

    Attributes:
      fields: of config.json. adapter: tensors and fields of an adapter to merge into it.
    """

    folder: Path
    fields: Fields
    family: Family
    adapter: tuple[Tensors, dict[str, Any]] | None

    def read_tensors(self, allow_pickle: bool) -> Tensors:
        """Returns the model's tensors by name, after the update of the adapter."""
        tensors = checkpoint_files.read_tensors(self.folder, allow_pickle)
        if self.adapter is not None:
            tensors = apply_peft(tensors, *self.adapter)
        return normalize(self.family, tensors)


def _find_files(model: str, base: str | None, allow_pickle: bool) -> _Files:
    """Finds the files of a model, or of an adapter and its base model."""
    folder = checkpoint_files.find_checkpoint(model, allow_pickle)
    adapter = _find_adapter(folder, base)
    if adapter is not None:
        folder = checkpoint_files.find_checkpoint(_base_of(adapter[1], base), allow_pickle)
    fields = read_fields(folder / "config.json")
    if isinstance(fields.get("placement"), dict):
        raise UserError(
            f"--model={model} is a run of gpt2_jax, not a Hugging Face checkpoint; use it as "
            "--workdir, or as train.init_from"
        )
    family = find_family(fields)
    if adapter is not None and family is not gpt2.FAMILY:
        raise UserError(f"an adapter of peft must be one of GPT-2; {folder} is {family.label}")
    return _Files(folder, fields, family, adapter)


def _write_run(partial: Path, imported: Imported, fingerprint: str, info: dict[str, Any]) -> None:
    """Writes config.json, run.json and the weights.

    Args:
      fingerprint: of the tokenizer. info: more fields of run.json.
    """
    config = imported.config
    write_atomic(partial / "config.json", to_json(config))
    identity = Identity(new_run_id(), to_dict(config), None, fingerprint)
    fixed = {"format_version": FORMAT_VERSION, "run_id": identity.run_id, "tokenizer": fingerprint}
    info = fixed | {"parameters": imported.model_def.n_params()} | info
    write_json(partial / "run.json", info)
    params = jax.tree.map(jax.numpy.asarray, imported.params)
    save_params(partial / "weights", params, identity)


def read_config(fields: Fields) -> Config:
    """Returns our config of the model described by the fields of a config.json.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    return replace(Config(), find_family(fields).read(fields))


def _with_head(config: Config, head: HeadSpec) -> Config:
    """Returns the config with the task whose models have this head."""
    task = ENCODER_TASKS.get(head.kind) or DEFAULT_TASKS[config.model.architecture]
    changes: dict[str, Any] = {"task.name": task, "head.n_labels": head.n_labels or None}
    return replace(config, changes | {"head.transform": head.transform})


def _convert(family: Family, fields: Fields, config: Config, tensors: Tensors) -> Imported:
    """Returns the model, and its parameters from the tensors of `normalize`."""
    config = _with_head(config, family.head(fields, tensors))
    head = head_of(config.task, config.head)
    labels = read_labels(fields) if head.n_labels else []
    model_def = define_model(config.model, config.placement, head=head)
    table = family.table(config, head)
    params, unused = from_huggingface(family, table, model_def, tensors)
    return Imported(config, model_def, params, labels, unused)


def _facts(folder: Path, fields: Fields, imported: Imported) -> dict[str, Any]:
    """Returns what run.json says about a model other than GPT-2.

    Special tokens have no fields in our config: they are the tokenizer's, except that imported
    ones may not be named in its files.
    """
    if imported.config.model.architecture == "decoder":
        return {}
    ids = read_special_ids(folder, fields)
    return {"special_ids": ids, **({"labels": imported.labels} if imported.labels else {})}


def _summary(imported: Imported, folder: Path) -> str:
    head = imported.model_def.head
    line = f"{imported.model_def.n_params():,} parameters from {folder}"
    if head.kind == "lm":
        return line
    if head.kind == "pooled":
        return f"{line}: an encoder with no head{', but a pooler' * head.has_transform}"
    n_labels = f"{head.n_labels} " if head.n_labels else ""
    return f"{line}: an encoder with a head for {n_labels}{PREDICTED[head.kind]}"


def _unused_note(imported: Imported) -> str | None:
    if not imported.unused:
        return None
    return f"not imported, because its class does not use them: {', '.join(imported.unused)}"


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
