"""Path patterns that freeze parameters or scale their learning rate.

Paths are module paths with the block's number: `wte`, `ln_f.gain`,
`blocks.0.attn.sublayer.qkv.kernel`. A pattern is a path or the beginning of one, and `*` matches
anything: `blocks.0`, `blocks.*.mlp`, `*.bias`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from gpt2_jax.config import words
from gpt2_jax.config.sections import OptimizerConfig
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import ModelDef, param_name
from gpt2_jax.nn.param import ParamInfo


def lr_factors(config: OptimizerConfig, model_def: ModelDef) -> Any | None:
    """Returns a tree of learning-rate factors that broadcast against the parameters.

    If several multipliers match a parameter, the last one applies. Frozen parameters have the
    factor 0. None if there are no patterns.

    Raises:
      UserError: if a pattern matches nothing, or a factor is not a number.
    """
    rules = [(text, *_rule(text)) for text in words(config.lr_multipliers)]
    rules += [(text, text, 0.0) for text in words(config.frozen)]
    trained = model_def.trained
    if not rules and trained is None:
        return None
    used: set[str] = set()
    seen: list[str] = []

    def factor(path: Any, shape: jax.ShapeDtypeStruct, info: ParamInfo) -> np.ndarray:
        names = list(model_def.row_names(param_name(path)))
        seen.extend((names[0][1], names[-1][1]))
        factors = np.ones(names[-1][0] + 1, np.float32)
        for text, pattern, value in rules:
            for row, name in names:
                if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*"):
                    factors[row] = value
                    used.add(text)
        if trained is not None:
            rows = [row for row, name in names if trained(name, info)]
            factors[np.setdiff1d(np.arange(len(factors)), rows)] = 0
        return factors.reshape(-1, *[1] * (len(shape.shape) - 1)) if shape.shape else factors[0]

    tree = jax.tree_util.tree_map_with_path(factor, model_def.shapes, model_def.infos)
    seen.sort()
    if unused := [text for text, *_ in rules if text not in used]:
        field = "frozen" if unused[0] in words(config.frozen) else "lr_multipliers"
        raise UserError(
            f"optimizer.{field}: the pattern {unused[0]!r} matches no parameter; paths look like "
            f"{', '.join(dict.fromkeys([seen[-1], seen[0], seen[len(seen) // 2], seen[-3]]))}"
        )
    if not any((leaf != 0).any() for leaf in jax.tree.leaves(tree)):
        raise UserError("optimizer.frozen leaves nothing to train; remove a pattern")
    return tree


def _rule(text: str) -> tuple[str, float]:
    pattern, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not pattern or not 0 <= value < float("inf"):
        raise UserError(
            f"optimizer.lr_multipliers has {text!r}, which is not a pattern=factor, such as wte=0.1"
        )
    return pattern, value
