"""Which combinations of fields of the section `tune` make sense."""

from __future__ import annotations

from gpt2_jax.config.sections import Config
from gpt2_jax.config.tune_section import TuneConfig

# The methods that use each field.
USED_BY = {
    "targets": ("lora", "dora"),
    "rank": ("lora", "dora", "adapter"),
    "alpha": ("lora", "dora"),
    "length": ("prefix", "prompt"),
    "trained": ("lora", "dora", "bitfit", "adapter", "prefix", "prompt"),
}
# Tasks that put several examples into a row unless `data.layout=padded`.
PACKED = ("mlm", "tag", "sft")


def find_tune_fault(config: Config) -> str | None:
    """Returns what is wrong with the section `tune`, None if nothing is."""
    tune, default = config.tune, TuneConfig()
    for name, methods in USED_BY.items():
        if getattr(tune, name) != getattr(default, name) and tune.method not in methods:
            return (
                f"tune.{name} has no effect with tune.method={tune.method}; leave it unset, or set "
                f"tune.method to one of {', '.join(methods)}"
            )
    if tune.method != "none" and config.optimizer.frozen:
        return (
            f"optimizer.frozen has no effect with tune.method={tune.method}, which trains nothing "
            "else; leave it unset"
        )
    if tune.method != "none" and config.optimizer.sparsity:
        return (
            f"optimizer.sparsity does not support tune.method={tune.method}, which does not train "
            "the matrices; prune them in a run of its own"
        )
    if tune.method == "prefix" and config.model.attention not in ("auto", "xla"):
        return (
            f"tune.method=prefix does not support model.attention={config.model.attention}; set "
            "model.attention=auto"
        )
    return _find_prompt_fault(config) if tune.method == "prompt" else None


def _find_prompt_fault(config: Config) -> str | None:
    """Returns why vectors before the tokens are not supported, None if they are."""
    if config.model.document_mask:
        return (
            "tune.method=prompt does not support model.document_mask, with which tokens attend to "
            "their own document alone; set tune.method=prefix"
        )
    if config.model.architecture == "encoder_decoder":
        return (
            "tune.method=prompt does not support model.architecture=encoder_decoder; set "
            "tune.method=prefix"
        )
    if config.task.name in PACKED and config.data.layout != "padded":
        return (
            f"tune.method=prompt with task.name={config.task.name} needs data.layout=padded, so "
            "that each row has one example; set it, or set tune.method=prefix"
        )
    return None
