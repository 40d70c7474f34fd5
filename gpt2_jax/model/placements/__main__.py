"""The catalogue of placements.

python -m gpt2_jax.model.placements                  every preset, one a line
python -m gpt2_jax.model.placements --show=deepnorm  one of them in full
python -m gpt2_jax.model.placements --page           docs/placements.md
"""

from __future__ import annotations

import os

from absl import app, flags

from gpt2_jax import cli
from gpt2_jax import config as configs
from gpt2_jax.config_check import check_sense
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.model.placements.axes import AXES, CONNECTIONS, IN_BRANCH_SITES, Placement
from gpt2_jax.model.placements.presets import PRESETS
from gpt2_jax.model.placements.resolve import differences, has_final_norm

_SHOW = flags.DEFINE_string("show", None, "one preset in full")
_PAGE = flags.DEFINE_bool("page", False, "the documentation's page")

SEQ_LEN = 1024
BASE = "pre_ln"


def main(argv: list[str]) -> None:
    """Prints the list, one preset, or the page."""
    del argv
    if _SHOW.value is not None:
        if _SHOW.value not in PRESETS:
            raise UserError(f"--show={_SHOW.value} is no preset{suggestion(_SHOW.value, PRESETS)}")
        print(show(_SHOW.value))
    elif _PAGE.value:
        print(page(), end="")
    else:
        width = max(map(len, PRESETS))
        for name, placement in PRESETS.items():
            print(f"{name:<{width}}  {one_line(placement)}")


def one_line(placement: Placement) -> str:
    """Returns the equation in one line: attention's, then the MLP's where they differ."""
    return placement.equation.replace("\n", "; ")


def show(name: str) -> str:
    """Returns everything about a preset."""
    placement = PRESETS[name]
    lines = [name, ""]
    lines += [f"    {line}" for line in placement.equation.splitlines()]
    lines += ["", f"citation    {placement.citation}"]
    if placement.note:
        lines.append(f"note        {placement.note}")
    changed = _changed(placement)
    lines.append(f"axes        {changed[0] if changed else 'those of GPT-2'}")
    lines += [f"            {line}" for line in changed[1:]]
    lines.append(f"final norm  {'yes' if has_final_norm(placement, 12) else 'no'}")
    (params, flops), (base_params, base_flops) = counts(name), counts(BASE)
    more, share = params - base_params, f"{flops / base_flops - 1:+.1%}".replace("-0.0", "+0.0")
    lines.append(f"parameters  {params:,} at 124M ({more:+,} beside {BASE})")
    lines.append(f"FLOPs       {flops / 1e6:,.1f} M a token at 124M ({share} beside {BASE})")
    return "\n".join(lines)


def _changed(placement: Placement) -> list[str]:
    names = differences(placement, PRESETS[BASE])
    return [f"{name}={getattr(placement, name)}" for name in names]


def counts(name: str) -> tuple[int, int]:
    """Returns the parameters, and the training FLOPs a token, of a preset at GPT-2's 124M."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes need no accelerator
    from gpt2_jax.model.structure import structure

    config = configs.default()
    config.model.placement, config.model.vocab_size = name, 50257
    check_sense(config)
    model = structure(configs.resolve(config, 50257).model)
    return model.n_params(), model.flops_per_token(SEQ_LEN)


def page() -> str:
    """Returns docs/placements.md: how placements are written, and every preset."""
    rows = [*INTRODUCTION, "", "## Axes", "", "| field | GPT-2 | meaning |", "|---|---|---|"]
    for name, axis in AXES.items():
        choices = axis.metadata["choices"]
        listed = f" ({', '.join(choices)})" if choices else ""
        meaning = axis.metadata["meaning"].replace("|", "\\|")
        default = str(axis.default).replace("|", "\\|")
        rows.append(f"| `model.{name}` | `{default}` | {meaning}{listed} |")
    rows += [
        "",
        "## Connections",
        "",
        "| `model.connection` | norm sites | scales |",
        "|---|---|---|",
    ]
    for name, honours in CONNECTIONS.items():
        here = ", ".join(honours.sites) + "".join(f", {s}" for s in IN_BRANCH_SITES[2:])
        rows.append(f"| `{name}` | {here} | {', '.join(honours.scales)} |")
    rows += ["", "## Presets", ""]
    rows += [f"- [`{name}`](#{name}) {one_line(p)}" for name, p in PRESETS.items()]
    for name in PRESETS:
        title, _, *rest = show(name).splitlines()
        rows += ["", f"### {title}", "", "```", *rest, "```"]
    return "\n".join(rows) + "\n"


INTRODUCTION = """# Residual connections and norm placements

Written by `python -m gpt2_jax.model.placements --page > docs/placements.md`.

`--config.model.placement=deepnorm` picks a published variant. Every axis of it is a config field of
its own that overrides the preset's value, as in
`--config.model.placement=deepnorm --config.model.norm=rmsnorm`.

One sublayer F (attention, then the MLP) is

    x' = N_post(a N_skip(x̂) + b N_out(F(c N_pre(x̂)))),   x̂ = N_stream(x)

where each norm stands only if `model.norms` names its site, and a, b, c are `model.skip_scale`,
`model.branch_scale` and `model.input_scale`. Other connections keep the branch
`b N_out(F(c N_pre(u)))` and meet the stream in their own way; what a connection does not honour is
refused.

**A value with a bar** means attention's | the MLP's: `--config.model.norms='pre+qk | pre'`.

**Rules** are arithmetic in `l` (the block's number, from 1), `L` (blocks), `s` (the sublayer's
number), `S` (sublayers, 2 L), `d` (width), `t` (updates done) and `std` (`model.init_std`), with
`minimum maximum sqrt log exp floor where`: `(2*L)**0.25`, `minimum(t/(1000*l), 1)`. A scale is a
rule, or `learned_scalar(RULE)`, `learned_block(RULE)` (one for both sublayers of a block) or
`learned_vector(RULE)`, which start from it.

**Exceptions** are blocks that differ:
`--config.model.exceptions='l == 1: norms=pre | pre, skip_scale=1; l > 6: norms=post'`.
An override on the command line reaches a preset's exceptions too; exceptions given there are kept
as they are.

Where a preset differs from its paper, or takes less than the whole model of that name, its note
says so. Throughout, `xavier` draws from a normal distribution (several sources from a uniform one
of the same std), nothing is truncated, and the head is tied unless `model.tie_head=False`.
Parameters and FLOPs are those of GPT-2 124M (12 layers, width 768) at sequence 1024, by
6 N + 12 L D T.""".splitlines()


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
