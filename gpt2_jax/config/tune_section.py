"""The section `tune` of a config."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.fields import setting


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Parameter-efficient tuning of existing weights: what is added to them and trained."""

    method: str = setting(
        "none",
        "how existing weights are tuned: `lora` and `dora` add low-rank updates to matrices, "
        "`bitfit` trains biases, `adapter` adds small layers after sublayers, `prefix` keys and "
        "values, `prompt` vectors before the tokens; `none` trains all but `optimizer.frozen`",
        choices=("none", "lora", "dora", "bitfit", "adapter", "prefix", "prompt"),
    )
    targets: tuple[str, ...] = setting(
        (),
        "matrices that `lora` and `dora` update, by name pattern, such as `*.q`, `blocks.0.mlp`; "
        "unset: all matrices of the blocks",
    )
    rank: int = setting(
        8,
        "rank of the updates of `lora` and `dora`, hidden width of `adapter`",
        minimum=1,
        maximum=2**16,
    )
    alpha: float = setting(
        16.0,
        "the updates of `lora` and `dora` are multiplied by alpha / rank",
        above=0,
        maximum=1e6,
    )
    length: int = setting(
        16, "number of vectors of `prefix` and `prompt`", minimum=1, maximum=2**16
    )
    trained: tuple[str, ...] = setting(
        (), "name patterns of parameters that are trained as well, such as `ln_f`"
    )
