"""What a campaign's variants are: equation and source, what is changed, the command."""

from __future__ import annotations

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign.cells import command
from gpt2_jax.ablate.campaign.definition import Definition
from gpt2_jax.ablate.campaign.design import RATE
from gpt2_jax.ablate.campaign.results import corpora
from gpt2_jax.ablate.report.markup import escaped
from gpt2_jax.ablate.report.variant import Analysis, Variant
from gpt2_jax.model.placements import PRESETS
from gpt2_jax.model.placements.resolve import differences, resolve
from gpt2_jax.train.rundir import RunDirectory


def recipes(found: Analysis, definition: Definition) -> list[str]:
    """Returns what each variant is: equation, source, difference from its baseline, command."""
    lines = []
    for variant in found.variants:
        lines += [f"### {escaped(variant.name)}", ""]
        lines += [*_equation(config_of(variant, definition).model), ""]
        lines += [*_config_difference(variant, found, definition), ""]
        if variant.runs:
            lines += _command(variant, definition)
    return lines


def texts(found: Analysis) -> list[str]:
    """Returns what the runs were trained on, each text with the hash of its tokens."""
    runs = [run for v in found.variants for run in v.all_runs]
    return [
        f"- Text: `{data['source']}`"
        + (f", validated on `{data['val_source']}`" if data["val_source"] else "")
        + f", tokenizer `{data['tokenizer']}`; sha256 of its tokens `{data['sha256']}`."
        for data in corpora(run.path for run in runs)
    ]


def _config_difference(variant: Variant, found: Analysis, definition: Definition) -> list[str]:
    other = found.variant(variant.baseline)
    if other is variant:
        return ["The baseline."]
    mine, theirs = dict(variant.values), dict(other.values)
    if variant.rate is not None and other.rate is not None:
        mine[RATE], theirs[RATE] = variant.rate, other.rate
    flat = configs.flatten(definition.base)
    lines = [
        f"- `{name}` = `{mine.get(name, flat[name])}` (baseline: `{theirs.get(name, flat[name])}`)"
        for name in {**mine, **theirs}
        if mine.get(name, flat[name]) != theirs.get(name, flat[name])
    ]
    one, two = (resolve(config_of(v, definition).model) for v in (variant, other))
    axes = [name for name in differences(one, two) if f"model.{name}" not in mine]
    shown = [f"`{n}` = `{getattr(one, n)}` (`{getattr(two, n)}`)" for n in axes]
    return [*lines, *([f"- by its placement: {'; '.join(shown)}"] if shown else [])]


def config_of(variant: Variant, definition: Definition) -> ConfigDict:
    """Returns the base with a variant's fields set."""
    config = definition.base.copy_and_resolve_references()
    for name, value in variant.values.items():
        configs.set_value(config, name, value)
    return config


def _equation(model: ConfigDict) -> list[str]:
    """Returns a placement's equation and source, and in what it is not that of its name."""
    preset, now = PRESETS[model.placement], resolve(model)
    lines = [
        *(f"    {line}" for line in preset.equation.splitlines()),
        "",
        escaped(preset.citation),
    ]
    if preset.note:
        lines += ["", escaped(preset.note)]
    if changed := differences(now, preset):
        axes = ", ".join(f"`{name}` = `{getattr(now, name)}`" for name in changed)
        lines += ["", f"That is `{model.placement}`; here it has {axes}."]
    return lines


def _command(variant: Variant, definition: Definition) -> list[str]:
    run = variant.runs[0]
    config = configs.from_json(RunDirectory(str(run.path)).config_path)  # as it was given
    line = command(definition.file, definition.given, config, f"runs/{run.cell.name}")
    return [
        f"Seed {run.cell.seed} alone, with the file as it was (on a CPU the first updates are the "
        "same to the bit; what rounding makes of the later ones, README.md says):",
        "",
        f"    {line}",
        "",
    ]
