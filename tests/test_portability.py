"""Systems without Linux's calls, such as macOS: each call has a substitute or is left out."""

import ctypes
import json
import math
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2_jax.ablation.study.leases import Leases
from gpt2_jax.ablation.study.submit import ArrayJob
from gpt2_jax.config import capacity
from gpt2_jax.train import malloc
from gpt2_jax.train.distributed import mesh
from tests.tools import tiny


def test_cores_without_sched_getaffinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert mesh.cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert mesh.cores() == 1


def test_freed_memory_is_left_to_an_allocator_without_mallopt(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    calls, config = [], tiny()
    glibc = SimpleNamespace(mallopt=lambda *option: calls.append(option))
    for library, n in ((SimpleNamespace(), 0), (glibc, 3)):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: library)
        malloc.keep_freed_memory(config.model, config.data, config.train, config.mesh)
        assert len(calls) == n


@pytest.mark.parametrize("error", [ValueError("unrecognized configuration name"), OSError()])
def test_an_unknown_size_of_memory_refuses_no_model(monkeypatch, tmp_path, error):
    def sysconf(name):
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(capacity, "CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(os, "sysconf", sysconf)
    assert capacity.machine_bytes() == math.inf
    capacity.check_memory(tiny(model__n_embd=2**20), training=True)
    (tmp_path / "memory.max").write_text("1048576")
    assert capacity.machine_bytes() == 1048576


def test_leases_without_proc_last_until_their_process_is_reaped(monkeypatch, tmp_path):
    read_text = Path.read_text

    def without_proc(path, *args, **kwargs):
        if Path(path).parts[:2] == ("/", "proc"):
            raise FileNotFoundError(path)
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", without_proc)
    monkeypatch.setattr(os, "readlink", without_proc)
    other = subprocess.Popen(["sleep", "60"])
    with Leases(tmp_path) as a, Leases(tmp_path) as b:
        assert a.take("trial") and not b.take("trial")
        lease = tmp_path / "trial.0"
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"pid": other.pid}))
        assert not b.take("trial")
        other.kill()
        other.wait()
        assert b.take("trial")


def test_submitted_jobs_without_waitid(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.delattr(os, "waitid", raising=False)
    assert ArrayJob()(["true"]) == 0
    with pytest.raises(RuntimeError, match="exit code 3: sh"):
        ArrayJob()(["sh", "-c", "exit 3"])


def test_a_submitted_job_stops_its_command_in_a_signal_handler():
    """As submitit does: its handler saves, queues the job again and ends the process."""
    pytest.importorskip("submitit.helpers")
    job, command, queued = ArrayJob(), ["sleep", "60"], []

    def warn():
        while job._pid is None:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR2)

    def handler(number, frame):
        queued.append(job.checkpoint(command))
        raise SystemExit

    before = signal.signal(signal.SIGUSR2, handler)
    threading.Thread(target=warn).start()
    try:
        with pytest.raises(SystemExit):
            job(command)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert queued[0].function is not job and queued[0].args == (command,)
    with pytest.raises(ChildProcessError):
        os.waitpid(job._pid, os.WNOHANG)  # it has ended and was reaped
