"""Logging to wandb from a separate thread, so that its errors and outages never delay the run.

metrics.jsonl is the source, and wandb has a copy. Logging starts after the last row that wandb
already has, on the server or in an offline run's file; rows lost in a kill are read from
metrics.jsonl. So every row arrives once, in order, under one run id. At the end, the rows on the
server are counted.
"""

from __future__ import annotations

import html
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_jax.errors import shortened
from gpt2_jax.track.metrics import Row

INIT_SECONDS = 10
FINISH_SECONDS = 15
CONFIRM_SECONDS = 10
OFFLINE = "offline-run"  # prefix of the folders of offline runs
SEND_SECONDS = 2  # upload interval; with wandb's default, a kill would lose 15 s of rows

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # columns, rows


@dataclass(frozen=True)
class Sample:
    """What a run shows of its model at the end.

    Attributes:
      text: for sample.txt.
      table: an example per row; None if the model continues no example.
    """

    text: str
    table: Table | None = None


@dataclass(frozen=True)
class WandbOptions:
    """Settings of a run on wandb; None means the WANDB_* variable, or else wandb's default."""

    run_id: str
    workdir: Path
    mode: str | None
    project: str | None
    entity: str | None
    name: str | None
    group: str | None
    tags: tuple[str, ...]
    job_type: str


class WandbLog:
    """A run on wandb.

    Args:
      rows: rows of metrics.jsonl so far; those that wandb lacks are logged.
      say: called with a line that gives the run's address or reports a problem.

    Attributes:
      problem: the last line that reported a problem, None if there was none.
    """

    def __init__(
        self,
        options: WandbOptions,
        config: dict[str, Any],
        rows: list[Row],
        say: Callable[[str], None],
    ) -> None:
        self._options, self._config, self._rows, self._say = options, config, rows, say
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._next_step = 0
        self._n_rows = len(rows)
        self._path: str | None = None  # of an online run
        self._exit_code = 0
        self.problem: str | None = None
        self._thread: threading.Thread | None = None
        if (options.mode or os.environ.get("WANDB_MODE")) != "disabled":
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def log(self, row: Row) -> None:
        """Logs a row of metrics.jsonl."""
        self._n_rows += 1
        self._enqueue(lambda run: self._send(run, row))

    def summarize(self, values: dict[str, Any]) -> None:
        """Sets fields of the run's summary."""
        self._enqueue(lambda run: run.summary.update(values))

    def show(self, step: int, image: Path | None, sample: Sample | None) -> None:
        """Logs the loss curve and a sample as part of the last row, examples as a table."""

        def send(run: Any) -> None:
            import wandb

            media: dict[str, Any] = {}
            if image is not None and image.exists():
                media["loss_curve"] = wandb.Image(str(image))
            if sample is not None and sample.table is not None:
                media["examples"] = _wandb_table(sample.table)
            elif sample is not None:
                text = html.escape(sample.text)
                media["sample"] = wandb.Html(f"<pre>{text}</pre>", inject=False)
            run.log(media, step=step)

        self._enqueue(send)

    def report(self, tables: dict[str, Table], images: dict[str, Path]) -> None:
        """Logs tables and images, each under its name, as one row."""
        self._n_rows += 1

        def send(run: Any) -> None:
            import wandb

            media: dict[str, Any] = {name: _wandb_table(table) for name, table in tables.items()}
            run.log(media | {name: wandb.Image(str(path)) for name, path in images.items()})

        self._enqueue(send)

    def close(self, exit_code: int) -> None:
        """Waits for wandb to finish, for a limited time."""
        if self._thread is None:
            return
        self._exit_code = exit_code
        self._queue.put(None)
        self._thread.join(INIT_SECONDS + FINISH_SECONDS + CONFIRM_SECONDS + 5)
        if self._thread.is_alive():
            self._fail(f"wandb does not respond; to upload later: {self._sync_command('*run')}")

    def _enqueue(self, task: Callable[[Any], None]) -> None:
        if self._thread is not None:
            self._queue.put(task)

    def _work(self) -> None:
        # wandb replaces both hooks when it starts.
        excepthook, sys_exit = sys.excepthook, sys.exit
        run = None
        try:
            run = self._start()
            for row in self._rows:
                self._send(run, row)
        except Exception as error:
            self._fail(f"wandb: not logging ({_line(error)})")
        finally:
            sys.excepthook, sys.exit = excepthook, sys_exit
        while (task := self._queue.get()) is not None:
            if run is not None:
                run = self._attempt(task, run)
        if run is not None:
            self._attempt(lambda run: run.finish(exit_code=self._exit_code), run)
        if self._path is not None:
            self._confirm(self._path)

    def _attempt(self, task: Callable[[Any], None], run: Any) -> Any:
        try:
            task(run)
            return run
        except Exception as error:
            self._fail(f"wandb: stopped logging ({_line(error)})")
            if isinstance(error, ConnectionError):  # wandb's service process has died
                _end_service()
            return None

    def _confirm(self, path: str) -> None:
        """Reports missing rows: a server may accept a run and reject all of its rows."""
        try:
            arrived = _rows_on_server(path, self._n_rows)
        except Exception as error:
            self._fail(
                f"wandb: cannot check that all rows arrived ({_line(error)}); to upload them: "
                f"{self._sync_command('run')}"
            )
            return
        if arrived < self._n_rows:
            self._fail(
                f"wandb: the server has {arrived} of {self._n_rows} rows; to upload all again: "
                f"{self._sync_command('run')}"
            )

    def _fail(self, line: str) -> None:
        self.problem = line
        self._say(line)

    def _sync_command(self, kind: str) -> str:
        folder = shlex.quote(str(self._options.workdir))
        parts = f"{folder}/wandb/{kind}-*-{self._options.run_id}"
        return sync_command(parts, online=kind != OFFLINE)

    def _send(self, run: Any, row: Row) -> None:
        if row["step"] >= self._next_step:
            values = {k: v for k, v in row.items() if k != "step" and v is not None}
            run.log(values, step=row["step"])  # wandb keeps it open until a row of a later step
            self._next_step = row["step"] + 1

    def _start(self) -> Any:
        # Without a network, error reports would delay the end of a run by 10 s.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        mode = self._options.mode or os.environ.get("WANDB_MODE")
        if mode is None:
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        if mode == "online":
            try:
                run = self._init("online")
                self._next_step, self._path = run.starting_step, run.path
                self._say(f"wandb: {run.url}")
                return run
            except Exception as error:
                self._say(f"wandb: not reachable ({_line(error)}); continuing offline")
                _end_service()
        earlier = offline_runs(self._options.workdir, self._options.run_id)
        run = self._init("offline")
        self._next_step = 1 + max(map(last_step, earlier), default=-1)
        self._say(f"wandb: offline; to upload: {self._sync_command(OFFLINE)}")
        return run

    def _init(self, mode: Any) -> Any:
        import wandb

        options, env = self._options, os.environ
        return wandb.init(
            id=options.run_id,
            resume="allow",
            reinit="create_new",  # several concurrent runs in one process
            mode=mode,
            dir=str(options.workdir),
            project=options.project or env.get("WANDB_PROJECT") or "gpt2_jax",
            entity=options.entity,
            name=options.name or env.get("WANDB_NAME") or options.workdir.absolute().name,
            group=options.group,
            tags=options.tags or None,
            job_type=options.job_type,
            config=self._config,
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                x_file_stream_transmit_interval=SEND_SECONDS,
                x_transaction_log_flush_interval=SEND_SECONDS,
            ),
        )


def _wandb_table(table: Table) -> Any:
    import wandb

    columns, rows = table
    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def _end_service() -> None:
    """Stops wandb's service process; wandb starts a new one when needed.

    If it was killed or has crashed, wandb would otherwise fail when this process ends.
    """
    import wandb

    with suppress(Exception, SystemExit):  # it exits with the exit code of that process
        wandb.teardown()


def sync_command(parts: str, online: bool = False) -> str:
    """Returns the command that uploads the folders matching the globs `parts`, one by one.

    wandb would upload them in parallel, and an incomplete one would stop the others.

    Args:
      online: whether to include online runs, which wandb skips by default.
    """
    flag = " --include-online" if online else ""
    return f'for p in {parts}; do wandb sync{flag} "$p"; done'


def _rows_on_server(path: str, wanted: int) -> int:
    """Returns the number of a run's rows on the server, after waiting a while for `wanted`."""
    import wandb

    deadline = time.monotonic() + CONFIRM_SECONDS / 2
    while True:
        arrived = int(wandb.Api(timeout=max(1, CONFIRM_SECONDS // 3)).run(path).historyLineCount)
        if arrived >= wanted or time.monotonic() > deadline:
            return arrived
        time.sleep(1.0)


def offline_runs(workdir: Path, run_id: str) -> list[Path]:
    """Returns the folders of this run's offline starts, oldest first."""
    return sorted((workdir / "wandb").glob(f"{OFFLINE}-*-{run_id}"))


def history(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows in an offline folder, as read by wandb itself."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def last_step(folder: Path) -> int:
    """Returns the last step in an offline folder, -1 if it has no rows."""
    return max((int(row["_step"]) for row in history(folder)), default=-1)


def _line(error: Exception) -> str:
    return shortened(error) or type(error).__name__
