"""Real training processes, stopped by real signals, compared with an uninterrupted one."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.storage.open_run import open_run
from tests import tools
from tests.tools import ROOT, environment, make_text, one_line_error

STEPS = 180
AS_USERS = {"XLA_FLAGS": ""}  # programs compiled as they are outside of tests
FLAGS = [
    "train.py",
    "--config=configs/quickstart.py",
    "--config.model.n_layer=2",
    "--config.model.n_head=2",
    "--config.model.n_embd=32",
    "--config.model.dropout=0.1",
    "--config.model.unroll=False",
    "--config.model.n_positions=32",
    "--config.data.seq_len=32",
    "--config.train.batch_size=8",
    "--config.train.accumulation=2",
    "--config.optimizer.warmup_steps=10",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=1",
    "--config.train.eval_every=30",
    "--config.train.checkpoint_every=20",
    "--config.train.sample_tokens=0",
]


def command(text, workdir, *more):
    return [*FLAGS, f"--config.data.source={text}", f"--workdir={workdir}", *more]


def start(text, workdir, tmp, *more):
    env = environment(tmp, **AS_USERS)
    return tools.start(*command(text, workdir, *more), tmp=tmp, env=env)


def run(text, workdir, tmp, *more):
    return tools.run(*command(text, workdir, *more), tmp=tmp, **AS_USERS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("processes")
    (tmp / "text.txt").write_text(make_text(20_000))
    return tmp


@pytest.fixture(scope="module")
def alone(place):
    """The uninterrupted run."""
    done = run(place / "text.txt", place / "alone", place)
    assert done.returncode == 0, done.stderr
    return place / "alone"


RECORDED = ("step", "tokens", "train/loss", "train/grad_norm", "train/lr", "val/loss")


def record(workdir):
    return [{k: row.get(k) for k in RECORDED} for row in read_rows(workdir / "metrics.jsonl")]


def assert_same_run(workdir, alone):
    """Asserts that all rows, and all bits of the parameters, are equal."""
    assert record(workdir) == record(alone)
    ours, theirs = open_run(str(workdir)), open_run(str(alone))
    assert ours.step == theirs.step == STEPS
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        ours.params,
        theirs.params,
    )


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 180
    while not any(row["step"] >= step for row in read_rows(workdir / "metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)


def test_uninterrupted_run_is_complete(alone):
    rows = read_rows(alone / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "val/loss" in row] == list(range(0, STEPS + 1, 30))
    assert rows[-1]["train/loss"] < rows[1]["train/loss"] - 0.5
    assert rows[5]["tokens"] == 5 * 8 * 32
    checkpoints = sorted(p.name for p in (alone / "checkpoints").iterdir())
    assert checkpoints == [f"{STEPS - 20:08}", f"{STEPS:08}"]
    assert (alone / "loss.png").read_bytes()[:4] == b"\x89PNG"
    info = json.loads((alone / "run.json").read_text())
    assert info["parameters"] > 0 and info["starts"][0]["from_step"] == 0
    assert info["devices"] == ["cpu"] * min(2, os.cpu_count() or 1)


def finish(place, alone, workdir):
    """Runs the same command to its end, and compares."""
    done = run(place / "text.txt", workdir, place)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout  # a kill does not damage checkpoints
    assert_same_run(workdir, alone)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_run_has_the_same_result(place, alone):
    workdir = place / "killed_once"
    process = start(place / "text.txt", workdir, place)
    wait_for_step(process, workdir, 50)
    kill(process)
    finish(place, alone, workdir)
    info = json.loads((workdir / "run.json").read_text())
    assert [s["from_step"] for s in info["starts"]] in ([0, 20], [0, 40])


def sleep_until_random_moment(process, workdir, random_):
    """Sleeps until a moment during startup or some rows later: in a step, save or evaluation."""
    if random_.random() < 0.4:
        time.sleep(random_.uniform(0.1, 1.5))
        return
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]" * 8)]
    target = max(saved, default=0) + random_.randint(1, 24)
    while process.poll() is None and len(read_rows(workdir / "metrics.jsonl")) <= target:
        time.sleep(0.002)
    time.sleep(random_.uniform(0.0, 0.05))


@pytest.mark.slow
def test_run_killed_ten_times_has_the_same_result(place, alone):
    seed = time.time_ns()
    random_, workdir, kills = random.Random(seed), place / "killed", 0
    for _ in range(10):
        process = start(place / "text.txt", workdir, place)
        sleep_until_random_moment(process, workdir, random_)
        if process.poll() is not None:  # finished: the machine was fast
            process.communicate()
            break
        kill(process)
        kills += 1
    assert kills >= 5, f"seed {seed}"
    print(f"seed {seed}: killed {kills} times")
    finish(place, alone, workdir)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signal_saves_and_prints_how_to_continue(place, alone, number):
    workdir = place / f"stopped_{number.name}"
    process = start(place / "text.txt", workdir, place)
    wait_for_step(process, workdir, 70)
    process.send_signal(number)
    out = process.communicate(timeout=180)[0]
    assert process.returncode == 75, out
    last = out.strip().splitlines()[-1]
    assert f"stopped by {number.name} after step " in last and "train.py" in last
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert saved >= 70 and f"after step {saved}, saved" in last
    done = run(place / "text.txt", workdir, place)
    assert done.returncode == 0 and f"after step {saved}" in done.stdout
    assert_same_run(workdir, alone)


def test_finished_run_is_unchanged_when_started_again(place, alone):
    before = record(alone)
    done = run(place / "text.txt", alone, place)
    assert done.returncode == 0 and "is finished: raise train.steps" in done.stdout
    assert "validation loss" in done.stdout and "compiled" not in done.stdout
    assert record(alone) == before


def test_run_extended_by_steps_reports_the_changed_schedule(place, alone, tmp_path):
    workdir = tmp_path / "longer"
    subprocess.run(["cp", "-r", alone, workdir], check=True)
    more = f"--config.train.steps={STEPS + 10}"
    done = tools.run(*command(place / "text.txt", workdir, more), tmp=place)
    assert done.returncode == 0, done.stderr
    assert f"train.steps was {STEPS}, is now {STEPS + 10}" in done.stdout
    assert "learning-rate schedule now spans" in done.stdout
    rows = record(workdir)
    assert [row["step"] for row in rows] == list(range(STEPS + 11))
    assert rows[: STEPS + 1] == record(alone)


def test_changed_config_is_refused_by_name(place, alone):
    more = ("--config.optimizer.peak_lr=0.5", "--config.seed=3")
    line = one_line_error(run(place / "text.txt", alone, place, *more))
    assert "seed (was 0, now 3)" in line and "optimizer.peak_lr (was" in line


def test_changed_text_is_refused(place, alone, tmp_path):
    """The path is the same, but not the content."""
    text = tmp_path / "text.txt"
    text.write_text(make_text(20_000))
    workdir = tmp_path / "run"
    short = command(text, workdir, "--config.train.steps=11", "--config.train.eval_tokens=100")
    assert tools.run(*short, tmp=place).returncode == 0
    text.write_text(make_text(20_000, seed=1))
    line = one_line_error(tools.run(*short, tmp=place))
    assert "was trained on another text" in line


def test_two_processes_cannot_train_in_one_directory(place, alone):
    workdir = place / "shared"
    process = start(place / "text.txt", workdir, place)
    try:
        wait_for_step(process, workdir, 1)
        line = one_line_error(run(place / "text.txt", workdir, place))
        assert "another process is training in" in line
    finally:
        process.kill()
        process.communicate()


def test_full_disk_is_a_one_line_error(place, tmp_path):
    """The system refuses files above a size limit, as on a full disk."""
    limit = 50_000  # above every file written at the start, below a checkpoint's fixed-size file
    done = subprocess.run(
        [sys.executable, *command(place / "text.txt", tmp_path / "run")],
        cwd=ROOT,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot write a checkpoint: File too large; free disk space")
    # tensorstore's threads may print their own errors; our exception is not shown
    assert not [ln for ln in done.stderr.splitlines() if "File" in ln and "gpt2_jax/" in ln]
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]" * 8))
