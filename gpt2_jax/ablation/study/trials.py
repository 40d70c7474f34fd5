"""A trial: one run of a study, its name, its config, and the command that trains only it."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gpt2_jax import config as configs
from gpt2_jax.ablation.study.data import open_trial_data
from gpt2_jax.ablation.study.design import SEED, Study, describe
from gpt2_jax.ablation.study.variants import Values
from gpt2_jax.config import Config
from gpt2_jax.config.check import check
from gpt2_jax.config.sections import WandbConfig
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.fields import INT_MAX
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.task import head_of
from gpt2_jax.train.pretrained import adopt_model, open_source
from gpt2_jax.train.storage.open_run import resolve_on

# Fields that may differ between runs of one trial without affecting its result.
RESULT_NEUTRAL = ("track.", "train.sample_tokens", "mesh.")
# Paths of the text, which may differ between machines; a hash identifies the text.
MOVABLE = ("data.source", "data.val_source", "data.tokenizer")

Purpose = Literal["search", "verdict"]


@dataclass(frozen=True)
class Trial:
    """A run of a study.

    Attributes:
      variant: index into the study's variants.
      values: all fields that it sets, except the budget.
      k: index of its learning rate in the search, None without a search.
    """

    name: str
    variant: int
    values: Mapping[str, Any]
    purpose: Purpose
    k: int | None

    @property
    def seed(self) -> int:
        """The seed of its initial weights and data order."""
        return self.values[SEED]


def trial_name(values: Values) -> str:
    """Returns a name that is valid as a folder; if shortened or altered, it ends in a hash."""
    described = describe(values)
    name = re.sub(r"[^\w=.,+-]", "_", described, flags=re.ASCII)[:120]
    if name == described:
        return name
    return f"{name}-{hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]}"


def variant_config(base: Config, values: Mapping[str, Any]) -> Config:
    """Returns the base with a variant's fields set.

    Raises:
      UserError: if a value is not valid.
    """
    changes = {name: configs.validated(name, value) for name, value in values.items()}
    return configs.replace(base, changes)


def trial_config(base: Config, study: Study, values: Mapping[str, Any]) -> Config:
    """Returns the resolved config of a trial: the base with its values and the budget.

    Raises:
      UserError: if it is not a valid config.
    """
    try:
        config = configs.replace(variant_config(base, values), {"train.sample_tokens": 0})
        if config.train.micro_batch is not None:
            raise UserError(
                "train.micro_batch=auto may choose differently on each machine of a study; set "
                "train.accumulation instead"
            )
        if config.train.init_from is not None:
            config = _pinned(config)
        if config.task.name != "lm":
            return _with_examples(config, study)
        vocabulary = vocabulary_size(config.data.tokenizer)
        config = with_budget(config, study, vocabulary)
        check(config)
        return configs.resolve(config, vocabulary, end_of_text(config.data.tokenizer))
    except UserError as error:
        raise UserError(f"{describe(dict(values))}: {error}") from None


def _with_examples(config: Config, study: Study) -> Config:
    """Returns the resolved config of a trial of a task, some of which its data determines."""
    check(config)
    opened = (config.task, config.data, config.model.token_types > 0, config.seed)
    data, tokenizer, _ = open_trial_data(*opened)
    config, layout = resolve_on(config, data, tokenizer)
    config = configs.replace(config, {"train.epochs": None})
    config = with_budget(config, study, tokenizer.size, data.tokens_per_step(layout))
    check(config)
    return config


@cache
def vocabulary_size(tokenizer: str) -> int:
    """Returns the vocabulary size of a tokenizer, by its name in `data.tokenizer`."""
    return load_tokenizer(tokenizer).size


@cache
def end_of_text(tokenizer: str) -> int:
    """Returns the id between documents of a tokenizer, by its name in `data.tokenizer`."""
    return load_tokenizer(tokenizer).end_of_text


def _pinned(config: Config) -> Config:
    """Returns the config with the sizes of its pretrained weights.

    Raises:
      UserError: if `train.init_from` does not name a step.
    """
    source = config.train.init_from
    assert source is not None
    origin = open_source(source)
    if origin.name != source:
        raise UserError(
            f"train.init_from={source} changes whenever that run continues; for a study, name the "
            f"step: {origin.name}"
        )
    return adopt_model(config, origin, lambda line: None)


def with_budget(
    config: Config, study: Study, vocabulary: int, tokens_per_step: int | None = None
) -> Config:
    """Returns the config with the fewest `train.steps` that use up the tokens or FLOPs budget.

    Args:
      tokens_per_step: mean number, without padding; None for full sequences.

    Raises:
      UserError: if the config is not valid with any number of steps.
    """
    tokens = study.tokens
    per_step = tokens_per_step or config.train.batch_size * config.data.seq_len
    if study.flops is not None:
        config = configs.replace(config, {"train.steps": INT_MAX})  # not known yet
        check(config)
        resolved = configs.resolve(config, vocabulary)
        head = head_of(resolved.task, resolved.head)
        model = define_model(resolved.model, resolved.placement, head=head)
        tokens = math.ceil(study.flops / model.flops_per_token(config.data.seq_len))
    if tokens is None:
        return config
    steps = configs.validated("train.steps", max(1, math.ceil(tokens / per_step)))
    return configs.replace(config, {"train.steps": steps})


def command(file: str, file_config: Config, config: Config, workdir: str) -> str:
    """Returns the command line that trains only one trial.

    Args:
      file_config: what the file's `get_config()` returns.
      config: the trial's config.
    """
    resolved = ("model.n_inner", "model.vocab_size")
    changed = {
        name: new
        for name, (old, new) in configs.difference(file_config, config, ("track.",)).items()
        if not (name in resolved and old is None)
    }
    flags = [f"--config.{name}={_flag(value)}" for name, value in changed.items()]
    words = ["python", "train.py", f"--config={file}", f"--workdir={workdir}", *flags]
    return " ".join(shlex.quote(word) for word in words)


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def wandb_group(wandb: WandbConfig, workdir: Path) -> str:
    """Returns the wandb group of a study's trials and of its report."""
    return wandb.group or workdir.absolute().name
