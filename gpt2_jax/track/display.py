"""One display for many runs: a bar over all their steps, a line for each that ends."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from gpt2_jax.track.bar import BAR_SECONDS, LOG_SECONDS
from gpt2_jax.track.screen import say


class Display:
    """Shows the steps done out of the known total: a bar on a terminal, lines otherwise."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=1,
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% {bar} {elapsed}<{remaining}{postfix}",
            mininterval=0.0,
        )
        self._total, self._done = 1, 0
        self._first: int | None = None
        self._started = self._shown = time.monotonic()
        self._running, self._losses = "", ""

    def expect(self, steps: int) -> None:
        """Sets the total number of steps, as far as it is known."""
        self._total = steps

    def done(self, steps: int) -> None:
        """Sets how many of the steps belong to cells that have ended."""
        if self._first is None:
            self._first = self._bar.initial = steps
        self._done = steps
        self._show()

    def start(self, names: list[str], step: int) -> None:
        """Sets the runs being trained now, and the step that they start from."""
        self._running, self._losses = _common(names), ""
        self._done += step * len(names)
        self._show(now=True)

    def advance(self, steps: int, losses: str) -> None:
        """Adds steps done, and sets the last losses."""
        self._done += steps
        self._losses = losses
        self._show()

    def note(self, line: str) -> None:
        """Prints a line above the bar."""
        say(line)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._terminal:
            self._show(now=True)
        self._bar.close()

    def _show(self, now: bool = False) -> None:
        moment = time.monotonic()
        every = BAR_SECONDS if self._terminal else LOG_SECONDS
        if not now and moment - self._shown < every:
            return
        self._shown = moment
        if self._terminal:
            self._bar.total = self._total
            self._bar.set_postfix_str(f"{self._running} {self._losses}", refresh=False)
            self._bar.update(self._done - self._bar.n)
            self._bar.refresh()
        elif self._losses:
            share = 100 * self._done / max(self._total, 1)
            print(f"{share:.1f} %  {self._running}  loss {self._losses}", file=sys.stderr)


def _common(names: list[str]) -> str:
    """Returns `a=1,b=2|3` of `a=1,b=2` and `a=1,b=3`."""
    parts = [name.split(",") for name in names]
    if len({len(part) for part in parts}) > 1:
        return "|".join(names)
    out = []
    for column in zip(*parts, strict=True):
        different = list(dict.fromkeys(column))
        values = "|".join(word.partition("=")[2] for word in different[1:])
        out.append(different[0] + (f"|{values}" if values else ""))
    return ",".join(out)
