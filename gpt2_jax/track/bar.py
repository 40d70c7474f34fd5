"""Progress: a bar on a terminal, a line every so often in a log file."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from tqdm import tqdm

LOG_SECONDS = 10.0
BAR_SECONDS = 0.2


class Progress:
    """Shows the steps done, the last loss, tokens/s and the time left.

    Args:
      first: steps already done, where a run continues.
      tokens_per_step: tokens of one update.
    """

    def __init__(self, steps: int, first: int, tokens_per_step: int) -> None:
        self._steps, self._tokens = steps, tokens_per_step
        self._loss = ""
        self._val = ""
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._first, self._step = first, first
        self._bar = tqdm(
            total=steps,
            initial=first,
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% {bar} {n}/{total} [{elapsed}<{remaining}{postfix}]",
            mininterval=0.0,
        )

    def advance(self, step: int) -> None:
        """Says that `step` updates are done."""
        self._step = step
        now = time.monotonic()
        # Nobody reads faster than this, and on a CPU the training itself waits for it.
        if now - self._shown < (BAR_SECONDS if self._terminal else LOG_SECONDS):
            return
        self._shown = now
        if self._terminal:
            self._update_bar()
        else:
            left = timedelta(seconds=round((self._steps - step) / max(self._speed(), 1e-9)))
            print(f"step {step}/{self._steps}  {self._numbers()}  {left} left", file=sys.stderr)

    def show(self, loss: float) -> None:
        """Takes the training loss to show from now on."""
        self._loss = f"loss {loss:.4f}, "

    def note(self, line: str, val_loss: float | None = None) -> None:
        """Prints a line above the bar."""
        if val_loss is not None:
            self._val = f"val {val_loss:.4f}, "
        with tqdm.external_write_mode(file=sys.stderr):
            print(line, file=sys.stderr)

    def pause(self, seconds: float) -> None:
        """Leaves time spent outside of training (an evaluation) out of the speed."""
        self._started += seconds

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._update_bar()
        self._bar.close()

    def _update_bar(self) -> None:
        self._bar.set_postfix_str(self._numbers(), refresh=False)
        self._bar.update(self._step - self._bar.n)

    def _speed(self) -> float:
        return (self._step - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _numbers(self) -> str:
        return f"{self._loss}{self._val}{self._speed() * self._tokens:,.0f} tok/s"
