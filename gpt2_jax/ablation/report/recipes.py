"""Describes a study's variants: equation, source, differences, and the command of one run."""

from __future__ import annotations

from gpt2_jax.ablation.report.markup import escaped
from gpt2_jax.ablation.report.variant import Analysis, Variant
from gpt2_jax.ablation.study.definition import Definition
from gpt2_jax.ablation.study.design import LEARNING_RATE
from gpt2_jax.ablation.study.results import corpora
from gpt2_jax.ablation.study.trials import command, variant_config
from gpt2_jax.config import flatten, from_json
from gpt2_jax.config.sections import PlacementConfig
from gpt2_jax.placements import PRESETS
from gpt2_jax.placements.resolve import differences
from gpt2_jax.train.storage.rundir import RunDirectory


def recipes(analysis: Analysis, definition: Definition) -> list[str]:
    """Describes each variant in a section."""
    lines = []
    for variant in analysis.variants:
        lines += [f"### {escaped(variant.name)}", ""]
        lines += [*_equation(variant_config(definition.base, variant.values).placement), ""]
        lines += [*_config_difference(variant, analysis, definition), ""]
        if variant.runs:
            lines += _command(variant, definition)
    return lines


def texts(analysis: Analysis) -> list[str]:
    """Lists the texts that the runs were trained on, with the hashes of their tokens."""
    runs = [run for v in analysis.variants for run in v.all_runs]
    return [
        f"- Text: `{data['source']}`"
        + (f", validated on `{data['val_source']}`" if data["val_source"] else "")
        + f", tokenizer `{data['tokenizer']}`; sha256 of its tokens `{data['sha256']}`."
        for data in corpora(run.path for run in runs)
    ]


def _config_difference(variant: Variant, analysis: Analysis, definition: Definition) -> list[str]:
    other = analysis.variant(variant.baseline)
    if other is variant:
        return ["The baseline."]
    mine, theirs = dict(variant.values), dict(other.values)
    if variant.learning_rate is not None and other.learning_rate is not None:
        mine[LEARNING_RATE], theirs[LEARNING_RATE] = variant.learning_rate, other.learning_rate
    flat = flatten(definition.base)
    lines = [
        f"- `{name}` = `{mine.get(name, flat[name])}` (baseline: `{theirs.get(name, flat[name])}`)"
        for name in {**mine, **theirs}
        if mine.get(name, flat[name]) != theirs.get(name, flat[name])
    ]
    one, two = (
        variant_config(definition.base, v.values).placement.resolve() for v in (variant, other)
    )
    shown = [
        f"`{axis}` = `{value}` (`{getattr(two, axis)}`)"
        for axis, value in differences(one, two).items()
        if f"placement.{axis}" not in mine
    ]
    return [*lines, *([f"- set by its placement: {'; '.join(shown)}"] if shown else [])]


def _equation(placement: PlacementConfig) -> list[str]:
    """Describes a placement by its preset's equation and source, and its changes to the preset."""
    preset = PRESETS[placement.preset]
    lines = [
        *(f"    {line}" for line in preset.equation.splitlines()),
        "",
        escaped(preset.citation),
    ]
    if preset.note:
        lines += ["", escaped(preset.note)]
    if changed := differences(placement.resolve(), preset):
        axes = ", ".join(f"`{name}` = `{value}`" for name, value in changed.items())
        lines += ["", f"This describes `{placement.preset}`; here it is changed to {axes}."]
    return lines


def _command(variant: Variant, definition: Definition) -> list[str]:
    run = variant.runs[0]
    config = from_json(RunDirectory(str(run.path)).config_path)
    line = command(definition.file, definition.file_config, config, f"runs/{run.trial.name}")
    return [
        f"To train only seed {run.trial.seed}, with the study file unchanged (on a CPU the first "
        "steps are bitwise identical; docs/concepts/reproducibility.md explains the later ones):",
        "",
        f"    {line}",
        "",
    ]
