"""Progress of a run or a study: a bar on a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from gpt2_jax.track.console import say

LOG_SECONDS = 10.0
BAR_SECONDS = 0.2  # drawing the bar more often would slow down training on a CPU


class Progress:
    """Shows the steps done, the remaining time, the speed, and values such as the last loss.

    Args:
      total: total number of steps.
      step: number of steps already done, if the run is resumed.
      tokens_per_step: for the speed in tokens/s; None if steps differ in size.
    """

    def __init__(self, total: int, step: int = 0, tokens_per_step: int | None = None) -> None:
        self.total, self.step, self._tokens = total, step, tokens_per_step
        self._values: dict[str, str] = {}
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._first = step
        self._bar: tqdm | None = None

    def begin(self) -> None:
        """Starts the clock and, on a terminal, the bar."""
        self._started = self._shown = time.monotonic()
        self._first = self.step
        if self._terminal:
            self._bar = tqdm(
                total=self.total,
                initial=self.step,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {bar} {n}/{total} [{elapsed}{postfix}]",
                mininterval=0.0,
            )

    def advance_to(self, step: int) -> None:
        """Shows that `step` steps are done."""
        self.step = step
        if self._is_time():
            self._show(self._status())

    def validating(self, step: int, done: int, total: int) -> None:
        """Shows how much of the evaluation after `step` is done."""
        self.step = step
        if self._is_time():
            self._show(f"validating {100 * done / total:.0f}%")

    def show(self, **values: str) -> None:
        """Sets values to show from now on, by name."""
        self._values |= values

    def note(self, line: str) -> None:
        """Prints a line above the bar."""
        say(line)

    def pause(self, seconds: float) -> None:
        """Excludes time spent outside training, such as an evaluation, from the speed."""
        self._started += seconds

    def close(self) -> None:
        """Leaves the bar on the screen as it is."""
        if self._bar is not None:
            self._show(self._status())
            self._bar.close()
            self._bar = None

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._shown < (LOG_SECONDS if self._bar is None else BAR_SECONDS):
            return False
        self._shown = now
        return True

    def _show(self, text: str) -> None:
        if self._bar is None:
            say(f"step {self.step}/{self.total}  {text}")
            return
        self._bar.total = self.total
        self._bar.set_postfix_str(text, refresh=False)
        if not self._bar.update(self.step - self._bar.n):
            self._bar.refresh()

    def _status(self) -> str:
        parts = [f"{name} {value}" for name, value in self._values.items() if value]
        speed = (self.step - self._first) / max(time.monotonic() - self._started, 1e-9)
        if speed > 0:  # tqdm's own estimate would count the evaluations
            left = tqdm.format_interval((self.total - self.step) / speed)
            parts.insert(0, f"{left} left")
            if self._tokens is not None:
                parts.append(f"{speed * self._tokens:,.0f} tok/s")
        return ", ".join(parts)


class StudyProgress(Progress):
    """Progress over the steps of all trials of a study; the total may grow."""

    def __init__(self) -> None:
        super().__init__(total=1)
        self._has_begun = False

    def expect(self, steps: int) -> None:
        """Sets the total number of steps known so far."""
        self.total = steps

    def done(self, steps: int) -> None:
        """Sets the number of steps in completed trials."""
        self.step = steps
        if not self._has_begun:
            self._has_begun = True
            self.begin()
        self.advance_to(steps)

    def start(self, names: list[str], step: int) -> None:
        """Sets the trials being trained, and the step that they start from."""
        self.show(training=_merge(names), loss="")
        self.advance_to(self.step + step * len(names))

    def advance(self, steps: int, losses: str) -> None:
        """Adds steps done, and sets the last losses."""
        self.show(loss=losses)
        self.advance_to(self.step + steps)


def _merge(names: list[str]) -> str:
    """Returns `a=1,b=2|3` for `a=1,b=2` and `a=1,b=3`."""
    parts = [name.split(",") for name in names]
    if len({len(part) for part in parts}) > 1:
        return "|".join(names)
    out = []
    for column in zip(*parts, strict=True):
        different = list(dict.fromkeys(column))
        values = "|".join(word.partition("=")[2] for word in different[1:])
        out.append(different[0] + (f"|{values}" if values else ""))
    return ",".join(out)
