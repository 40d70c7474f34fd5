"""Leases on trials, between workers that are alive or dead."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from gpt2_jax.ablation.study.leases import Leases


@pytest.fixture
def two(tmp_path):
    with Leases(tmp_path) as a, Leases(tmp_path) as b:
        yield a, b


def foreign(path, age):
    """Writes a lease of another machine, last renewed `age` seconds ago."""
    path.write_text(json.dumps({"owner": "x", "host": "elsewhere", "pid": 1, "process_start": "1"}))
    os.utime(path, (time.time() - age,) * 2)


def test_trial_has_one_owner(two):
    a, b = two
    assert a.take("trial,seed=1") and not b.take("trial,seed=1") and not a.take("trial,seed=1")
    assert b.take("trial,seed=11")  # "trial,seed=1" is a prefix of it
    assert a.is_held("trial,seed=1") and not b.is_held("trial,seed=1")
    a.release("trial,seed=1")
    assert not a.is_held("trial,seed=1")
    assert b.take("trial,seed=1") and b.is_held("trial,seed=1")


def test_only_one_of_many_workers_takes_a_lease(tmp_path):
    for attempt in range(5):
        foreign(tmp_path / f"trial{attempt}.0", age=1000)
        got, ready = [], threading.Barrier(8)

        def work(attempt=attempt, got=got, ready=ready):
            leases = Leases(tmp_path)
            ready.wait()
            if leases.take(f"trial{attempt}"):
                got.append(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs waitid, and /proc to recognize zombies")
def test_dead_process_on_this_machine_is_detected_immediately(tmp_path):
    code = "import sys, pathlib\nfrom gpt2_jax.ablation.study.leases import Leases\n"
    code += "assert Leases(pathlib.Path(sys.argv[1])).take('trial')\nprint('taken', flush=True)\n"
    code += "sys.stdin.read()\n"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "taken\n"
    with Leases(tmp_path) as mine:
        assert not mine.take("trial")
        owner.kill()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
        assert mine.take("trial")
        owner.communicate()


def test_process_on_another_machine_is_dead_if_it_stops_renewing(two, tmp_path):
    a, _ = two
    foreign(tmp_path / "young.0", age=5)
    foreign(tmp_path / "old.0", age=100)
    foreign(tmp_path / "copied.0", age=-3600)  # from a machine whose clock is ahead
    assert not a.take("young") and a.take("old") and a.take("copied")


def test_clock_files_of_dead_workers_are_removed_and_others_recreated(two, tmp_path):
    a, b = two
    a.now()
    foreign(tmp_path / ".clock-gone", age=100)
    (tmp_path / f".clock-{'c' * 16}").write_text("")  # incomplete, but too young to be removed
    with Leases(tmp_path) as third:
        assert a.now() == pytest.approx(third.now(), abs=60)
        clocks = {path.name for path in tmp_path.glob(".clock-*")}
        assert ".clock-gone" not in clocks and len(clocks) == 3
    for path in tmp_path.glob(".clock-*"):
        path.unlink()
    assert b.now() > 0 and a.take("trial") and b.others() == ["trial"] and a.others() == []


def test_owners_renew_their_leases(tmp_path, monkeypatch):
    """Even after a disk error."""
    real, failures = os.utime, [OSError(5, "Input/output error")]

    def utime(*arguments):
        if failures and threading.current_thread().name == "leases":
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(os, "utime", utime)
    with Leases(tmp_path, renew_seconds=0.05) as leases:
        leases.take("trial")
        path = tmp_path / "trial.0"
        os.utime(path, (1, 1))
        for _ in range(100):
            if path.stat().st_mtime > 1:
                assert not failures
                return
            time.sleep(0.05)
    raise AssertionError("no beat in five seconds")


def test_owner_notices_that_its_lease_was_replaced(two, tmp_path):
    a, b = two
    a.take("trial")
    path = tmp_path / "trial.0"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    os.utime(path, (1, 1))
    assert b.take("trial")
    assert b.is_held("trial") and not a.is_held("trial")


def test_leases_are_released_on_exit(tmp_path):
    with Leases(tmp_path) as first:
        first.take("trial")
    with Leases(tmp_path) as second:
        assert second.take("trial")
    assert not list(tmp_path.glob(".clock*"))
