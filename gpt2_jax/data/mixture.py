"""Weighted mixtures: their notation in `data.source`, and which source each row comes from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.sampler import PHI, Windows, mix
from gpt2_jax.errors import UserError, quoted

PREFIX = "mixture:"
_WEIGHT = re.compile(r"(?=.*[1-9])(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", re.ASCII)  # positive
_GLOB = re.compile(r"[*?\[]")


def is_mixture(spec: str) -> bool:
    """Returns whether a value of `data.source` is a mixture."""
    return spec.startswith(PREFIX)


def parse_mixture(spec: str) -> dict[str, Fraction]:
    """Parses `mixture:SOURCE=WEIGHT,SOURCE=WEIGHT`.

    Returns the share of each source in the rows: its weight over the sum of the weights.

    Raises:
      UserError: if there are fewer than two sources, a source occurs twice, or a weight is missing
        or not a positive decimal number.
    """
    weights: dict[str, Fraction] = {}
    for entry in spec.removeprefix(PREFIX).split(","):
        source, _, weight = (part.strip() for part in entry.rpartition("="))
        if not source:
            raise UserError(
                f"data.source: {quoted(entry)} in the mixture has no weight; write it as "
                "SOURCE=WEIGHT, as in mixture:prepared/web=0.7,prepared/code=0.3"
            )
        if not _WEIGHT.fullmatch(weight):
            raise UserError(
                f"data.source: the weight {quoted(weight)} of {source} must be a positive decimal "
                "number, such as 0.7"
            )
        if is_mixture(source):
            raise UserError(f"data.source: the mixture contains {source}; list all sources once")
        if source in weights:
            raise UserError(f"data.source: the mixture lists {source} twice; add the weights")
        weights[source] = Fraction(weight)
    if len(weights) < 2:
        raise UserError(
            f"data.source={spec} mixes only one source; set data.source={next(iter(weights))}"
        )
    total = sum(weights.values())
    return {source: weight / total for source, weight in weights.items()}


def source_names(sources: Sequence[str]) -> list[str]:
    """Returns short, distinct names of sources for metrics and messages.

    A name is made of as many of the last parts of a path as are needed to tell all sources apart.
    """
    parts = [_name_parts(source) for source in sources]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["_".join(of_one[-n:]) for of_one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}_{i}" for i, name in enumerate(names, 1)]


def _name_parts(source: str) -> list[str]:
    """Returns the parts of a path that may be in a name, without its pattern and suffixes."""
    path = PurePosixPath(re.sub(r"^hf:|://|@", "/", source))
    plain = [part for part in path.parts if not _GLOB.search(part)]
    clean = [re.sub(r"[^\w-]+", "_", part.split(".")[0]).strip("_") for part in plain]
    return [part for part in clean if part] or ["source"]


def short_source(spec: str) -> str:
    """Returns a value of `data.source` without the folders of local paths, for titles."""
    if is_mixture(spec):
        sources = [entry.rpartition("=") for entry in spec.removeprefix(PREFIX).split(",")]
        return PREFIX + ",".join(f"{short_source(name)}={weight}" for name, _, weight in sources)
    rest = spec.removeprefix("hf:")
    is_hub_name = rest != spec and not rest.startswith(("/", ".", "~"))
    return spec if is_hub_name else spec[: len(spec) - len(rest)] + PurePosixPath(rest).name


class MixtureSampler:
    """Batches whose rows come from several sources, each with a fixed share of the rows.

    The first source, with share a / b, has floor(p a / b + c) of the first p rows, with an offset c
    in [0, 1) chosen by the seed; the other rows are divided in the same way among the other
    sources. So every batch has nearly the exact shares, and the source of any row, and the number
    of rows that this source had before, take constant time to compute. Row k of a source is row k
    of a run on it alone.

    Args:
      samplers: one per source. shares: their shares of the rows, which sum to 1.
      batch_size: rows per batch.
      seed: determines the order.
    """

    def __init__(
        self,
        samplers: Sequence[Windows],
        shares: Sequence[Fraction],
        batch_size: int,
        seed: int,
    ) -> None:
        self._samplers, self._batch_size = samplers, batch_size
        self._splits: list[tuple[int, int, int]] = []  # (a, b, b c) of each source
        left = Fraction(1)
        for i, share in enumerate(shares):
            a, b = (share / left).as_integer_ratio()
            salts = np.array([seed, i + 1], np.uint64) * PHI  # an array overflows without a warning
            self._splits.append((a, b, int(mix(mix(salts[:1] + PHI) + salts[1:])[0]) % b))
            left -= share

    def source_of(self, position: int) -> tuple[int, int]:
        """Returns the source of a row, and how many rows that source had before.

        Args:
          position: the number of rows before it in the run.
        """
        for i, (a, b, offset) in enumerate(self._splits):
            before = (position * a + offset) // b
            if ((position + 1) * a + offset) // b > before:
                return i, before
            position -= before
        raise AssertionError("the last source takes every row that is left")

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> Batch:
        """Returns batch `step`; the arguments are those of `Batches.batch`."""
        first = step * self._batch_size
        positions = np.arange(first, first + self._batch_size)[rows]
        found = [self.source_of(position) for position in positions.tolist()]
        windows: list[np.ndarray] = [np.empty(0)] * len(found)
        for i, sampler in enumerate(self._samplers):
            mine = [row for row, (source, _) in enumerate(found) if source == i]
            index = np.array([found[row][1] for row in mine], np.uint64)
            for row, window in zip(mine, sampler.windows(index), strict=True):
                windows[row] = window
        return Batch(np.stack(windows))
