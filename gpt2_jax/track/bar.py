"""Progress of a run: a bar on a terminal, a line every so often in a log file."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from tqdm import tqdm

from gpt2_jax.track.screen import say

LOG_SECONDS = 10.0
BAR_SECONDS = 0.2


class Progress:
    """Shows the steps done, the last losses, tokens/s and the time left.

    Args:
      steps: of the whole run.
      first: steps already done, if the run continues.
      tokens_per_step: tokens per step.
    """

    def __init__(self, steps: int, first: int, tokens_per_step: int) -> None:
        self._steps, self._tokens = steps, tokens_per_step
        self._loss = ""
        self._val = ""
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._first, self._step = first, first
        self._bar: tqdm | None = None

    def start(self) -> None:
        """Starts the clock, and the bar on a terminal: training begins now."""
        self._started = self._shown = time.monotonic()
        if self._terminal:
            self._bar = tqdm(
                total=self._steps,
                initial=self._first,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {bar} {n}/{total} [{elapsed}<{remaining}{postfix}]",
                mininterval=0.0,
            )

    def advance(self, step: int) -> None:
        """Shows that `step` steps are done."""
        self._step = step
        if not self._is_time():
            return
        if self._bar is not None:
            self._update_bar(self._numbers())
        else:
            left = timedelta(seconds=round((self._steps - step) / max(self._speed(), 1e-9)))
            say(f"step {step}/{self._steps}  {self._numbers()}  {left} left")

    def validating(self, done: int, total: int) -> None:
        """Shows how much of an evaluation is done."""
        if not self._is_time():
            return
        share = f"validating {100 * done / total:.0f}%"
        if self._bar is not None:
            self._update_bar(share)
        else:
            say(f"step {self._step}/{self._steps}  {share}")

    def show(self, loss: float) -> None:
        """Takes the training loss to show from now on."""
        self._loss = f"loss {loss:.4f}, "

    def note(self, line: str, val_loss: float | None = None) -> None:
        """Prints a line above the bar."""
        if val_loss is not None:
            self._val = f"val {val_loss:.4f}, "
        say(line)

    def pause(self, seconds: float) -> None:
        """Leaves time spent outside of training (an evaluation) out of the speed."""
        self._started += seconds

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._update_bar(self._numbers())
            self._bar.close()
            self._bar = None

    def _is_time(self) -> bool:
        """Returns whether to show something now."""
        now = time.monotonic()
        # Nobody reads faster than this, and on a CPU the training itself waits for it.
        if now - self._shown < (LOG_SECONDS if self._bar is None else BAR_SECONDS):
            return False
        self._shown = now
        return True

    def _update_bar(self, shown: str) -> None:
        assert self._bar is not None
        self._bar.set_postfix_str(shown, refresh=False)
        if not self._bar.update(self._step - self._bar.n):
            self._bar.refresh()

    def _speed(self) -> float:
        return (self._step - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _numbers(self) -> str:
        return f"{self._loss}{self._val}{self._speed() * self._tokens:,.0f} tok/s"
