"""Training processes that log to a loopback server, to an unreachable one, or to disk."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from gpt2_jax.track import wandb_log
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.track.wandb_log import WandbLog, WandbOptions, history, offline_runs
from tests import tools
from tests.tools import environment, make_text, run
from tests.track.wandb_server import WandbServer
from tests.train.distributed.test_processes import command, wait_for_step

KEY = "5ec4e7" * 7  # 42 characters; must not be found anywhere afterwards
SHORT = ("--config.train.steps=60", "--config.train.sample_tokens=20")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("wandb")
    (tmp / "text.txt").write_text(make_text(20_000))
    return tmp


def wandb_environment(url, mode="online"):
    return {"WANDB_MODE": mode, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}


def train(place, workdir, *more, **extra):
    done = run(*command(place / "text.txt", workdir, *SHORT, *more), tmp=place, **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def start_tracked(place, workdir, *more, **extra):
    words = command(place / "text.txt", workdir, *more)
    return tools.start(*words, tmp=place, env=environment(place, **extra))


def assert_every_row_arrived_once(rows, workdir):
    """Compares wandb's rows with metrics.jsonl."""
    recorded = read_rows(workdir / "metrics.jsonl")
    assert [int(row["_step"]) for row in rows] == [row["step"] for row in recorded]
    for sent, kept in zip(rows, recorded, strict=True):
        for name in ("tokens", "train/loss", "val/loss", "train/lr"):
            assert sent.get(name) == kept.get(name), (kept["step"], name)


def test_online_run_has_every_row_config_summary_and_pictures(place):
    workdir = place / "online"
    with WandbServer() as server:
        flags = ("--config.track.wandb.group=g", "--config.track.wandb.project=flagged")
        done = train(place, workdir, *flags, **wandb_environment(server.url),
                     WANDB_PROJECT="from_env")  # fmt: skip
    (stored,) = server.runs.values()
    assert stored.name == json.loads((workdir / "run.json").read_text())["wandb_id"]
    assert stored.project == "flagged"  # flags override WANDB_*
    assert "/runs/" in done.stderr
    assert_every_row_arrived_once(stored.history(), workdir)
    assert set(stored.arrivals.values()) == {1}
    info = json.loads((workdir / "run.json").read_text())
    config = {name: entry["value"] for name, entry in stored.config.items() if name != "_wandb"}
    assert config["model"]["n_layer"] == 2
    assert config["placement"].items() >= info["placement"].items()  # all axes are resolved
    assert config["run"]["parameters"] == info["parameters"]
    assert config["run"]["devices"] == info["devices"]
    assert config["run"]["versions"] == info["starts"][0]["versions"]
    assert stored.job_type == "train"
    rows = stored.history()
    best = min((row for row in rows if "val/loss" in row), key=lambda row: row["val/loss"])
    assert stored.summary["final/val/loss"] == rows[-1]["val/loss"]
    assert stored.summary["best/val_loss"] == best["val/loss"]
    assert stored.summary["best/step"] == best["_step"]
    assert [row["perf/flops"] for row in rows] == [
        info["flops_per_token"] * row["tokens"] for row in rows
    ]
    assert any(name.startswith("media/images/loss_curve") for name in stored.files)
    assert any(name.startswith("media/html/sample") for name in stored.files)
    assert stored.exit_code == 0


@pytest.mark.parametrize("streams", [True, False])
def test_rows_that_the_server_lacks_are_counted_and_can_be_synced(tmp_path, monkeypatch, streams):
    """With a server that accepts the run but refuses its rows."""
    import wandb

    monkeypatch.setattr(wandb_log, "CONFIRM_SECONDS", 3)
    tmp_path = tmp_path / "a folder"  # the printed command must quote it
    tmp_path.mkdir()
    messages, rows = [], [{"step": n, "train/loss": float(n)} for n in range(5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with WandbServer(streams) as server:
        env = wandb_environment(server.url)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # another test may have set it up in this process
        unset = dict.fromkeys(("project", "entity", "name", "group"))
        options = WandbOptions(run_id="abcd1234", workdir=tmp_path, mode="online", tags=(),
                               job_type="train", **unset)  # fmt: skip
        log = WandbLog(options, {}, rows[:2], messages.append)
        for row in rows[2:]:
            log.log(row)
        log.close(0)
        wandb.teardown()
        (stored,) = server.runs.values()
        if streams:
            assert log.problem is None and len(messages) == 1
        else:
            assert "0 of 5 rows" in log.problem and messages[-1] == log.problem
            server.streams = True
            *_, sync = log.problem.partition("for p in ")
            command = f"for p in {sync}".replace("wandb sync", f"{sys.executable} -m wandb sync")
            subprocess.run(["sh", "-c", command], env=environment(tmp_path, **env), check=True,
                           capture_output=True)  # fmt: skip
        assert_every_row_arrived_once(stored.history(), tmp_path)


@pytest.mark.parametrize("dies", ["at once", "later"])
def test_wandb_service_process_is_restarted_after_it_dies(tmp_path, monkeypatch, dies):
    """The dead process is torn down; otherwise wandb would raise when this process ends."""
    import wandb

    ended, modes = [], []

    class Run:
        starting_step, path, url = 0, "e/p/r", "http://x"

        def log(self, values, step):
            raise ConnectionResetError("Connection lost")

        def finish(self, exit_code):
            pass

    def init(mode, **_):
        modes.append(mode)
        if dies == "at once" and mode == "online":
            raise RuntimeError("no answer")
        return Run()

    def teardown():
        ended.append(True)
        raise SystemExit(2)  # the exit code of its process

    for name, fake in (("setup", lambda _: None), ("init", init), ("teardown", teardown)):
        monkeypatch.setattr(wandb, name, fake)
    monkeypatch.setattr(wandb_log, "_rows_on_server", lambda *_: 1)
    unset = dict.fromkeys(("project", "entity", "name", "group"))
    options = WandbOptions(run_id="abcd1234", workdir=tmp_path, mode="online", tags=(),
                           job_type="train", **unset)  # fmt: skip
    log = WandbLog(options, {}, [], lambda line: None)
    log.log({"step": 0, "train/loss": 1.0})
    log.close(0)
    assert "Connection lost" in log.problem
    assert len(ended) == len(modes) == (2 if dies == "at once" else 1)


def test_killed_and_resumed_run_has_every_row_once(place):
    workdir, flags = place / "killed", ("--config.train.steps=200",)
    with WandbServer() as server:
        env = wandb_environment(server.url)
        for step in (50, 110):
            process = start_tracked(place, workdir, *flags, **env)
            wait_for_step(process, workdir, step)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        train(place, workdir, *flags, **env)
    (stored,) = server.runs.values()
    assert_every_row_arrived_once(stored.history(), workdir)
    assert [row["step"] for row in read_rows(workdir / "metrics.jsonl")] == list(range(201))


@pytest.mark.slow
def test_offline_starts_of_a_killed_run_have_every_row_once(place):
    workdir, flags = place / "offline", ("--config.train.steps=200",)
    for step in (50, 110):
        process = start_tracked(place, workdir, *flags, WANDB_MODE="offline")
        wait_for_step(process, workdir, step)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    train(place, workdir, *flags, WANDB_MODE="offline")
    run_id = json.loads((workdir / "run.json").read_text())["wandb_id"]
    parts = offline_runs(workdir, run_id)
    assert len(parts) == 3
    assert_every_row_arrived_once([row for part in parts for row in history(part)], workdir)
    with WandbServer() as server:  # one by one, as in the hint: an incomplete one stops the others
        for part in parts:
            done = run("-m", "wandb", "sync", str(part), tmp=place, **wandb_environment(server.url))
            assert done.returncode == 0, done.stderr
    (stored,) = server.runs.values()
    assert_every_row_arrived_once(stored.history(), workdir)


def test_offline_is_the_default_without_a_login(place):
    workdir = place / "default"
    env = environment(place)
    del env["WANDB_MODE"]
    process = tools.start(*command(place / "text.txt", workdir, *SHORT), tmp=place, env=env)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "wandb sync" in out
    assert len(list((workdir / "wandb").glob("offline-run-*"))) == 1


def test_disabled_mode_writes_nothing(place):
    train(place, place / "disabled", "--config.track.wandb.mode=disabled", WANDB_MODE="online")
    assert not (place / "disabled" / "wandb").exists()


@pytest.mark.parametrize("answering", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_unreachable_server_does_not_stop_a_run(place, answering):
    """A port without a listener, and one that accepts connections but does not respond."""
    workdir = place / f"away_{answering}"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answering:
            listener.listen(50)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = train(place, workdir, **wandb_environment(url))
    assert "continuing offline" in done.stderr
    run_id = json.loads((workdir / "run.json").read_text())["wandb_id"]
    (part,) = offline_runs(workdir, run_id)
    assert_every_row_arrived_once(history(part), workdir)


@pytest.mark.slow
def test_dying_server_does_not_stop_a_run(place):
    workdir = place / "dies"
    with WandbServer() as server:
        flags = ("--config.train.steps=100",)
        process = start_tracked(place, workdir, *flags, **wandb_environment(server.url))
        wait_for_step(process, workdir, 30)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out
    assert len(read_rows(workdir / "metrics.jsonl")) == 101


def test_no_secret_is_written(place):
    """All of these runs had the key in their environment."""
    workdirs = [place / name for name in ("online", "killed", "away_False")]
    found = []
    for workdir in workdirs:
        files = [p for p in workdir.rglob("*") if p.is_file()]
        assert len(files) > 10
        found += [p for p in files if KEY.encode() in p.read_bytes()]
    assert found == []
