"""Exports a run as a Hugging Face model folder."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.data.mixture import short_source
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import atomic_folder, check_empty, write_atomic, write_json
from gpt2_jax.interop import checkpoint_files
from gpt2_jax.interop.convert import to_huggingface
from gpt2_jax.interop.families import family_of, write_config
from gpt2_jax.interop.families.family import Family, Table
from gpt2_jax.interop.families.labels import default_labels
from gpt2_jax.interop.special_tokens import GENERATION, special_ids, special_tokens
from gpt2_jax.interop.tokenizer_files import vocabulary, write_tokenizer
from gpt2_jax.model.heads import TOKEN_KINDS
from gpt2_jax.track.metrics import Row
from gpt2_jax.train.storage.open_run import OpenedRun, open_run
from gpt2_jax.train.storage.rundir import RunDirectory
from gpt2_jax.train.storage.verify import check_rows
from gpt2_jax.tuning.definition import INSERTS

DTYPES = ("float32", "bfloat16", "float16")


def export_model(
    workdir: str, out: str, dtype: str = "float32", step: int | str | None = None
) -> str:
    """Writes a checkpoint of a run as a folder that `transformers` can load; returns a summary.

    Args:
      out: a folder that is empty or does not exist.
      dtype: one of `DTYPES`.
      step: as in `CheckpointRef`.

    Raises:
      UserError: if no family of Hugging Face models has this placement, or `out` is not empty.
    """
    target = Path(out).absolute()
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} is not one of {', '.join(DTYPES)}")
    check_empty(target, f"--out={out}")
    config = RunDirectory(workdir).read_config()
    family = family_of(config)  # checks the config before reading weights
    if config.tune.method in INSERTS:
        raise UserError(
            f"a model tuned with tune.method={config.tune.method} cannot be exported: Hugging "
            f"Face's {family.label} cannot represent what it adds; use lora, dora or bitfit"
        )
    run = open_run(workdir, step)
    head = run.model_def.head
    table = family.table(config, head)
    tensors = to_huggingface(table, run.model_def, run.params)
    tensors = {name: _cast(name, value, dtype) for name, value in tensors.items()}
    info = RunDirectory(workdir).read_info()
    with atomic_folder(target) as partial:
        ids = _write_tokenizer(family, config.model, config.data.tokenizer, info, partial)
        labels = info.get("labels") or default_labels(head.n_labels)
        fields = write_config(family, config, head, ids, labels, dtype)
        write_json(partial / "config.json", fields)
        if config.model.architecture != "encoder":  # it generates text
            write_json(partial / GENERATION, _generation(ids, config.model))
        checkpoint_files.write_tensors(partial, tensors)
        write_atomic(partial / "README.md", model_card(run, workdir, family, table))
    return f"{run.model_def.n_params():,} parameters after step {run.step} in {out}, {dtype}"


def _write_tokenizer(
    family: Family, model: ModelConfig, tokenizer: str, info: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Writes the tokenizer's files; returns the ids of special tokens, by field of config.json."""
    if model.architecture == "decoder":
        end = write_tokenizer(tokenizer, model.n_positions, out)
        return dict.fromkeys(family.special_ids, end)
    pairs, special = model.architecture == "encoder_decoder", special_tokens(vocabulary(tokenizer))
    write_tokenizer(tokenizer, model.n_positions, out, special, pairs)
    return special_ids(family, load_tokenizer(tokenizer), info.get("special_ids") or {})


def _generation(ids: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Returns generation_config.json; as with us, an encoder-decoder never writes padding."""
    known = {name: value for name, value in ids.items() if value is not None}
    pad = known.get("pad_token_id")
    if model.architecture == "encoder_decoder" and pad not in (None, known.get("eos_token_id")):
        known |= {"bad_words_ids": [[pad]], "renormalize_logits": True}
    return {"_from_model_config": True, **known}


def _cast(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(jnp.dtype(dtype))
    if np.isfinite(value).all() and not np.isfinite(cast.astype(np.float32)).all():
        raise UserError(
            f"--dtype={dtype}: tensor {name} has values out of its range; use bfloat16 or float32"
        )
    return cast


def model_card(run: OpenedRun, workdir: str, family: Family, table: Table) -> str:
    """Returns README.md: a description of the model, its training, and how to load it."""
    directory, cfg = RunDirectory(workdir), run.config
    info, rows = directory.read_info(), _rows(directory, run.step)
    layers = " + ".join(str(tower.n_layer) for tower in cfg.model.towers)
    facts: dict[str, Any] = {
        "parameters": f"{run.model_def.n_params():,}",
        "layers, heads, width": f"{layers}, {cfg.model.n_head}, {cfg.model.n_embd}",
        "positions": f"{cfg.model.n_positions:,}",
        "residuals and norms": cfg.placement.preset,
        "tokenizer": Path(cfg.data.tokenizer).name,
    }
    if "imported_from" in info:
        facts["imported from"] = Path(info["imported_from"]).name
    if run.step:
        facts |= _training_facts(run, rows, info)
    listed = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: {table.task}
tags: [{family.model_type}, gpt2_jax]
---

# {directory.path.absolute().name}

A {family.label} trained with gpt2_jax.

| | |
|---|---|
{listed}

```python
from transformers import {table.auto}, AutoTokenizer

model = {table.auto}.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```
"""


def _rows(directory: RunDirectory, step: int) -> list[Row]:
    """Returns the rows up to the exported step; none, with a warning, if they are incomplete."""
    try:
        return check_rows(directory, step) if step else []
    except UserError as error:
        print(f"warning: the model card has no validation loss: {error}", file=sys.stderr)
        return []


def _training_facts(run: OpenedRun, rows: list[Any], info: dict[str, Any]) -> dict[str, Any]:
    cfg = run.config
    tokens = run.step * cfg.train.batch_size * cfg.data.seq_len
    trained_on = f", {tokens:,} tokens" if cfg.task.name == "lm" else ""  # others have padding
    facts: dict[str, Any] = {
        "task": cfg.task.name,
        "text": f"{short_source(cfg.data.source)} (sha256 {info.get('corpus', 'unknown')[:12]})",
        "training": f"{run.step:,} steps{trained_on}",
        "optimizer": f"{cfg.optimizer.name}, {cfg.optimizer.schedule}, {cfg.optimizer.peak_lr:g}",
    }
    evaluated = [row for row in rows if row["step"] == run.step and row.get("val/loss") is not None]
    if evaluated:
        loss = evaluated[-1]["val/loss"]
        per_token = f" per token (perplexity {math.exp(loss):.2f})"
        is_text = run.model_def.head.kind in TOKEN_KINDS
        facts["validation loss"] = f"{loss:.4f} nats{per_token * is_text}"
    if cfg.train.init_from:
        facts["initialized from"] = Path(cfg.train.init_from).name
    if starts := info.get("starts"):
        facts["commit"] = starts[-1].get("commit") or "unknown"
    return facts
