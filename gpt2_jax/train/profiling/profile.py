"""`track.profile`: a trace of a few steps, and a table of where their time goes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax

from gpt2_jax.files import write_atomic
from gpt2_jax.train.profiling.op_kinds import program_ops
from gpt2_jax.train.profiling.step_times import render, step_events, step_times

TABLE = "time_per_step.txt"


class Profile:
    """Traces steps into `profile/START-STOP` of the run directory, once.

    A trace that ends early, because the run is stopped, has the step in its name; the resumed run
    traces the rest. If the process is killed, nothing is written. Faults of the profiler are
    reported and do not end the run.

    Args:
      window: `TrackConfig.profiled_steps`. first: number of steps done when the run starts.
      folder: `profile/`.
      hlo: returns the text of the compiled step.
      say: called with each line to show.
    """

    def __init__(
        self,
        window: tuple[int, int] | None,
        first: int,
        folder: Path,
        hlo: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._hlo, self._say = folder, hlo, say
        self._start, self._stop = window or (-1, -1)
        self._began: float | None = None  # of the traced steps, without pauses
        self._start = max(self._start, first)
        if window is None or list(folder.glob(f"*-{self._stop}")):
            self._start = -1
        elif first >= self._stop:
            say(f"track.profile={window[0]}:{window[1]}: the run continues after step {first}")

    @property
    def is_active(self) -> bool:
        """Whether steps are being traced."""
        return self._began is not None

    def is_due(self, step: int) -> bool:
        """Returns whether the trace starts or ends after `step` steps."""
        return step == self._stop if self.is_active else self._start == step < self._stop

    def pause(self, seconds: float) -> None:
        """Excludes time spent outside training, such as an evaluation, from that of the steps."""
        if self._began is not None:
            self._began += seconds

    def begin(self) -> None:
        """Starts the trace; no step may be running."""
        shutil.rmtree(self._partial, ignore_errors=True)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python functions would fill the trace
        try:
            jax.profiler.start_trace(self._partial, profiler_options=options)
        except (OSError, RuntimeError) as error:
            self._start = -1
            self._say(f"track.profile: tracing cannot start: {_one_line(error)}")
        else:
            self._began = time.monotonic()

    def end(self, step: int) -> None:
        """Writes the trace and its table after `step` steps; none of them may be running."""
        assert self._began is not None
        seconds, self._began = time.monotonic() - self._began, None
        start, self._start = self._start, -1
        try:
            jax.profiler.stop_trace()
            if step > start:
                self._write(start, step, seconds)
        except (OSError, RuntimeError) as error:
            self._say(f"track.profile: the trace cannot be written: {_one_line(error)}")
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            with suppress(OSError):
                self._folder.rmdir()  # if it is empty

    def close(self) -> None:
        """Ends a trace that is not to be written, because training failed."""
        if self.is_active:
            self._began = None
            with suppress(OSError, RuntimeError):
                jax.profiler.stop_trace()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _write(self, start: int, stop: int, seconds: float) -> None:
        target = self._folder / f"{start}-{stop}"
        (trace,) = self._partial.glob("plugins/profile/*/*.xplane.pb")
        program = program_ops(self._hlo())
        planes = jax.profiler.ProfileData.from_file(str(trace)).planes
        times = step_times(step_events(planes, program.module), program, stop - start, seconds)
        if times is None:
            table = "the trace contains no operations of the train step\n"
        else:
            table = render(times, start + 1, stop)
        write_atomic(self._partial / TABLE, table)
        if target.exists():
            self._say(f"track.profile: {target} exists, and is kept")
            return
        os.replace(self._partial, target)
        self._say(f"{table.rstrip()}\n\ntrace and table: {target}")

    @property
    def _partial(self) -> Path:
        return self._folder / "trace.partial"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
