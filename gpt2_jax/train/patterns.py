"""Parameters chosen by patterns over their paths: kept as they are, or trained at another rate.

Paths are those of the modules, with the number of the block: `wte`, `ln_f.gain`,
`blocks.0.attn.sublayer.qkv.kernel`. A pattern is a path or the beginning of one, with `*` for
anything: `blocks.0`, `blocks.*.mlp`, `*.bias`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt2_jax.config import words
from gpt2_jax.errors import UserError
from gpt2_jax.model.structure import Structure


def rate_factors(config: ConfigDict, structure: Structure) -> Any | None:
    """Returns a tree of factors on the learning rate, that broadcast against the parameters.

    Of several multipliers that match a parameter the last counts; what is frozen has the factor
    0. None where there are no patterns.

    Raises:
      UserError: naming a pattern that matches nothing, or a factor that is no number.
    """
    rules = [(text, *_rule(text)) for text in words(config.optimizer.lr_multipliers)]
    rules += [(text, text, 0.0) for text in words(config.optimizer.frozen)]
    if not rules:
        return None
    stacks = {segment.name: segment for segment in structure.segments}
    used: set[str] = set()
    seen: list[str] = []

    def factor(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        head, _, rest = name.partition(".")
        names = [(0, name)]
        if head in stacks:  # a row that several blocks share has the names of all of them
            one = stacks[head]
            blocks = range(one.start, one.stop)
            names = [((i - one.start) // one.repeats, f"blocks.{i}.{rest}") for i in blocks]
        seen.extend((names[0][1], names[-1][1]))
        factors = np.ones(names[-1][0] + 1, np.float32)
        for text, pattern, value in rules:
            for row, path_of_one in names:
                if fnmatchcase(path_of_one, pattern) or fnmatchcase(path_of_one, f"{pattern}.*"):
                    factors[row] = value
                    used.add(text)
        return factors.reshape(-1, *[1] * (len(shape.shape) - 1)) if shape.shape else factors[0]

    tree = jax.tree_util.tree_map_with_path(factor, structure.shapes)
    if unused := [text for text, *_ in rules if text not in used]:
        field = "frozen" if unused[0] in words(config.optimizer.frozen) else "lr_multipliers"
        raise UserError(
            f"optimizer.{field}: the pattern {unused[0]!r} matches no parameter; paths look like "
            f"{', '.join(dict.fromkeys([seen[-1], seen[0], seen[len(seen) // 2], seen[-3]]))}"
        )
    if not any((leaf != 0).any() for leaf in jax.tree.leaves(tree)):
        raise UserError("optimizer.frozen leaves nothing to train")
    return tree


def _rule(text: str) -> tuple[str, float]:
    pattern, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not pattern or not 0 <= value < float("inf"):
        raise UserError(
            f"optimizer.lr_multipliers has {text!r}, which is no pattern=factor, as in wte=0.1"
        )
    return pattern, value
