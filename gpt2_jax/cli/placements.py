"""The catalogue of placements.

gpt2-jax placements                         list all presets
gpt2-jax placements --show=deepnorm         show one in full
gpt2-jax placements --module=my_placements  include those of your own module
"""

from __future__ import annotations

import os

from absl import flags

from gpt2_jax import cli
from gpt2_jax.config.sections import ModelConfig, PlacementConfig
from gpt2_jax.config.table import usual_n_inner
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue import PRESETS
from gpt2_jax.placements.registry import supports_cross
from gpt2_jax.placements.resolve import differences, has_final_norm
from gpt2_jax.placements.towers import ARCHITECTURES
from gpt2_jax.placements.validate import find_fault

_SHOW = flags.DEFINE_string("show", None, "preset to show in full")
flags.DEFINE_string("module", None, cli.MODULE)

SEQ_LEN, VOCABULARY = 1024, 50257  # of GPT-2
BASE = "pre_ln"


def main(argv: list[str]) -> None:
    """Prints the list, or one preset."""
    del argv
    if _SHOW.value is not None:
        if _SHOW.value not in PRESETS:
            raise UserError(
                f"--show={_SHOW.value} is not a known preset"
                f"{suggestion(_SHOW.value, PRESETS, ', or add the --module that registers it')}"
            )
        print(show(_SHOW.value))
    else:
        width = max(map(len, PRESETS))
        for name, placement in PRESETS.items():
            print(f"{name:<{width}}  {one_line(placement)}")


def one_line(placement: Placement) -> str:
    """Returns the equation on one line: attention's, then the MLP's if it differs."""
    return placement.equation.replace("\n", "; ")


def show(name: str) -> str:
    """Returns a full description of a preset."""
    placement = PRESETS[name]
    lines = [name, ""]
    lines += [f"    {line}" for line in placement.equation.splitlines()]
    lines += ["", f"citation    {placement.citation}"]
    if placement.note:
        lines.append(f"note        {placement.note}")
    changed = [f"{axis}={value}" for axis, value in differences(placement, PRESETS[BASE]).items()]
    lines.append(f"axes        {changed[0] if changed else 'those of GPT-2'}")
    lines += [f"            {line}" for line in changed[1:]]
    lines.append(f"final norm  {'yes' if has_final_norm(placement, 12) else 'no'}")
    lines.append(f"models      {', '.join(architectures(placement))}")
    (params, flops), (base_params, base_flops) = counts(name), counts(BASE)
    more, share = params - base_params, f"{flops / base_flops - 1:+.1%}".replace("-0.0", "+0.0")
    lines.append(f"parameters  {params:,} at 124M ({more:+,} compared with {BASE})")
    lines.append(
        f"FLOPs       {flops / 1e6:,.1f} M per token at 124M ({share} compared with {BASE})"
    )
    return "\n".join(lines)


def architectures(placement: Placement) -> list[str]:
    """Returns the values of `model.architecture` that support a placement."""
    crossing = {name for name, kinds in ARCHITECTURES.items() if any(k.reads for k in kinds)}
    return [name for name in ARCHITECTURES if name not in crossing or supports_cross(placement)]


def counts(name: str) -> tuple[int, int]:
    """Returns the parameter count and training FLOPs per token of a preset at GPT-2's 124M."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes need no accelerator
    from gpt2_jax.model.definition import define_model

    placement = PlacementConfig(preset=name)
    n_inner = usual_n_inner(ModelConfig().n_embd, placement.resolve())
    sizes = ModelConfig(vocab_size=VOCABULARY, n_inner=n_inner)
    if fault := find_fault(sizes, name, {}):
        raise UserError(f"the preset {name}: {fault}")
    model = define_model(sizes, placement)
    return model.n_params(), model.flops_per_token(SEQ_LEN)
