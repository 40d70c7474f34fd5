"""Times whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path


def timed(command: list[str], cwd: Path, environment: Mapping[str, str]) -> tuple[float, str]:
    """Runs a command to its end, and returns its wall time in seconds and its output.

    Args:
      environment: variables to add to this process's.

    Raises:
      SystemExit: with the end of its output, if it fails.
    """
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.monotonic() - started, done.stdout + done.stderr
