"""Runs of several real processes, connected over loopback, against one process."""

import contextlib
import hashlib
import json
import re
import resource
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from gpt2_jax.errors import EXIT_PEER_LOST, EXIT_STOPPED
from gpt2_jax.track.metrics import read_rows
from tests import tools
from tests.train.distributed.test_processes import record

HEARTBEAT = 20  # seconds; on a busy machine, processes may be silent for some
FLAGS = [
    f"--config={tools.ROOT}/configs/quickstart.py",
    "--config.model.n_layer=2",
    "--config.model.n_head=2",
    "--config.model.n_embd=32",
    "--config.model.unroll=False",
    "--config.model.n_positions=32",
    "--config.data.seq_len=32",
    "--config.train.batch_size=8",
    "--config.train.accumulation=1",
    "--config.optimizer.warmup_steps=3",
    "--config.optimizer.schedule=constant",
    "--config.train.steps=30",
    "--config.train.log_every=1",
    "--config.train.eval_every=10",
    "--config.train.checkpoint_every=10",
    "--config.train.sample_tokens=8",
]


PAIR_FLAGS = ("--config.mesh.data=2", "--config.track.diagnostics_every=10")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group:
    """The processes of one run.

    Args:
      second: more flags of process 1. env: more of its environment variables. cwd: its directory.
      code: the folder of its code.
      fresh: whether Python starts anew, instead of forking one that has imported jax: then jax logs
        as it does for users.
    """

    def __init__(
        self,
        place,
        workdir,
        n,
        *flags,
        second=(),
        env=None,
        cwd=None,
        code=None,
        port=None,
        fresh=False,
    ):
        port = port or free_port()
        self.processes = []
        for k in range(n):
            root = code if k == 1 and code else tools.ROOT
            words = [
                f"{root}/train.py",
                *FLAGS,
                "--config.data.source=text.txt",
                f"--workdir={workdir}",
            ]
            if n > 1:
                words += [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={n}"]
                words += [f"--process_id={k}", f"--heartbeat_timeout_seconds={HEARTBEAT}"]
                words += ["--initialization_timeout=60"]
            words += [*flags, *(second if k == 1 else ())]
            extra = {"PYTHONHASHSEED": "0"} if fresh else {}
            extra |= (env or {}) if k == 1 else {}
            where = cwd if k == 1 and cwd else place
            given = {"env": tools.environment(place, **extra), "cwd": where}
            self.processes.append(tools.start(*words, tmp=place, **given))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self.processes:
            process.communicate()

    def finish(self, timeout=120):
        """Returns the exit codes and the outputs."""
        outputs = [process.communicate(timeout=timeout)[0] for process in self.processes]
        return [process.returncode for process in self.processes], outputs

    def refusals(self):
        """Asserts that every process ends with one line, and returns the lines."""
        codes, outputs = self.finish()
        assert codes == [2] * len(codes), outputs
        found = errors(outputs)
        assert [len(lines) for lines in found] == [1] * len(codes), outputs
        return [lines[0] for lines in found]

    def wait_for_step(self, workdir, step):
        deadline = time.monotonic() + 120
        while not any(row["step"] >= step for row in read_rows(workdir / "metrics.jsonl")):
            assert all(p.poll() is None for p in self.processes), self.finish()
            assert time.monotonic() < deadline
            time.sleep(0.02)


def run(place, workdir, n, *flags, **options):
    with Group(place, workdir, n, *flags, **options) as group:
        codes, outputs = group.finish()
    assert codes == [0] * n, outputs
    return outputs


def errors(outputs):
    """Returns the lines of each output that report an error."""
    found = [re.findall("^error: .*", output, re.M) for output in outputs]
    assert all("Traceback" not in output for output in outputs), outputs
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("several")
    (tmp / "text.txt").write_text(tools.make_text(20_000))
    return tmp


@pytest.fixture(scope="module")
def alone(place):
    """The run of one process with two devices."""
    run(place, place / "alone", 1, "--config.mesh.data=2")
    return place / "alone"


@pytest.fixture(scope="module")
def pair(place):
    """The run of two processes with a device each, and their outputs."""
    workdir = place / "pair"
    return workdir, run(place, workdir, 2, *PAIR_FLAGS)


def losses(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    return np.array([row[k] for row in rows for k in ("train/loss", "val/loss") if k in row])


def test_two_processes_are_like_one(alone, pair):
    workdir, _ = pair
    assert len(losses(workdir)) == 34
    np.testing.assert_allclose(losses(workdir), losses(alone), atol=1e-5, rtol=0)
    assert (workdir / "sample.txt").read_bytes() == (alone / "sample.txt").read_bytes()
    info = json.loads((workdir / "run.json").read_text())
    assert info["mesh"]["data"] == 2 and len(info["devices"]) == 2


def test_process_0_alone_prints_and_writes(pair):
    workdir, (first, second) = pair
    assert "validation loss" in first and "step" not in second
    assert "2 x cpu (cpu), peak unknown, so no MFU, in 2 processes" in first
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(31))
    assert "depth/entropy/block_02" in rows[-1]
    assert len(json.loads((workdir / "run.json").read_text())["starts"]) == 1


def test_every_process_hashes_what_it_saves(pair):
    folder = pair[0] / "checkpoints" / "00000030"
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    assert {1, 0} == {int(m[1]) for line in sums if (m := re.search(r"process_(\d)/d/", line))}
    for line in sums:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_signal_before_training_ends_all_processes_at_once(tmp_path):
    """While they compile a deep model, which nothing can interrupt."""
    (tmp_path / "text.txt").write_text(tools.make_text(20_000))
    deep = ("--config.model.n_layer=32", "--config.model.unroll=True")
    with Group(tmp_path, tmp_path / "run", 2, *PAIR_FLAGS, *deep) as group:
        deadline = time.monotonic() + 120
        while not [*(tmp_path / "cache").rglob("*.bin")]:  # the processes are connected
            assert time.monotonic() < deadline
            time.sleep(0.1)
        group.processes[1].send_signal(signal.SIGTERM)
        codes, outputs = group.finish()
    assert codes == [EXIT_STOPPED] * 2, outputs
    assert errors(outputs) == [["error: stopped by SIGTERM before training began"]] * 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("k", "number"),
    [(1, signal.SIGTERM), pytest.param(0, signal.SIGINT, marks=pytest.mark.slow)],
)
def test_signal_to_one_process_stops_all_at_the_same_step(place, k, number):
    workdir = place / f"stopped_{k}"
    with Group(place, workdir, 2, "--config.mesh.data=2", "--config.train.steps=20000") as group:
        group.wait_for_step(workdir, 5)
        group.processes[k].send_signal(number)
        codes, outputs = group.finish()
    assert codes == [EXIT_STOPPED] * 2, outputs
    assert errors(outputs) == [[], []]
    stopped = read_rows(workdir / "metrics.jsonl")[-1]["step"]
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert stopped == saved and f"after step {saved}, saved" in outputs[0]


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (1, signal.SIGKILL),
        (0, signal.SIGSTOP),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_loss_of_a_process_ends_the_other(place, victim, number):
    workdir = place / f"lost_{victim}_{number}"
    flags = ["--config.mesh.data=2", "--config.train.steps=20000"]
    flags += ["--heartbeat_timeout_seconds=5"]
    with Group(place, workdir, 2, *flags, fresh=True) as group:
        group.wait_for_step(workdir, 5)
        lost, other = group.processes[victim], group.processes[1 - victim]
        lost.send_signal(number)
        output = other.communicate(timeout=60)[0]
    assert other.returncode == EXIT_PEER_LOST, output
    (found,) = errors([output])
    assert len(found) == 1 and "start all processes again" in found[0]
    assert output.endswith(f"{found[0]}\n")
    assert not re.search("^[IWEF][0-9]{4} ", output, re.M)  # lines of jaxlib's log


def test_error_of_one_process_ends_the_other(place):
    """A disk that is full for one of them."""
    workdir = place / "full"
    flags = ["--config.mesh.data=2", "--config.train.steps=20000"]
    flags += ["--heartbeat_timeout_seconds=5"]
    with Group(place, workdir, 2, *flags) as group:
        group.wait_for_step(workdir, 5)
        resource.prlimit(group.processes[1].pid, resource.RLIMIT_FSIZE, (4096, 4096))
        codes, outputs = group.finish()
    assert codes == [EXIT_PEER_LOST, 2], outputs
    first, second = errors(outputs)
    assert len(first) == 1 and "start all processes again" in first[0]
    assert len(second) == 1 and "cannot write" in second[0]


def kill_after_saving(place, workdir, *flags):
    """Starts a run of two processes, and kills both once they have saved a checkpoint."""
    with Group(place, workdir, 2, *flags) as group:
        group.wait_for_step(workdir, 10)
        while not (workdir / "checkpoints" / "00000010").exists():
            time.sleep(0.01)
        for process in group.processes:
            process.kill()
        group.finish()
    assert not (workdir / "sample.txt").exists()


def test_killed_run_continues_to_the_bit(place, pair):
    workdir, flags = place / "killed", PAIR_FLAGS
    kill_after_saving(place, workdir, *flags)
    outputs = run(place, workdir, 2, *flags)
    assert re.search("continuing .* after step [12]0", outputs[0])
    assert record(workdir) == record(pair[0])
    assert "is finished" in run(place, workdir, 2, *flags)[0]


@pytest.mark.slow
def test_killed_run_continues_in_one_process(place, alone):
    workdir = place / "continued_alone"
    kill_after_saving(place, workdir, "--config.mesh.data=2")
    (output,) = run(place, workdir, 1, "--config.mesh.data=2")
    assert "the mesh is now" not in output
    np.testing.assert_allclose(losses(workdir), losses(alone), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_sharded_run_continues_on_fewer_processes_and_devices(place):
    """2 processes x 4 devices with fsdp=4, killed, and resumed on 1 process x 2 devices."""
    workdir, whole = place / "sharded", place / "sharded_whole"
    eight, two = [("--config.mesh.data=2", f"--config.mesh.fsdp={n}") for n in (4, 1)]
    kill_after_saving(place, workdir, *eight)
    (output,) = run(place, workdir, 1, *two)
    assert "the mesh is now data=2 x fsdp=1 x tensor=1 instead of data=2 x fsdp=4" in output
    run(place, whole, 1, *two)
    # The first rows are those of the other mesh, and differ in the last digits.
    assert record(workdir)[:10] != record(whole)[:10]
    np.testing.assert_allclose(losses(workdir), losses(whole), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_tensor_parallelism_over_processes(place, alone):
    """Both processes read the same rows, and each has half of the heads."""
    workdir = place / "tensor"
    run(place, workdir, 2, "--config.mesh.data=1", "--config.mesh.tensor=2")
    np.testing.assert_allclose(losses(workdir), losses(alone), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_initial_weights_frozen_parameters_and_early_stop(place, pair):
    """What else reads or decides something at the start or the end of a run."""
    flags = ["--config.train.patience=1", "--config.optimizer.frozen=wte", "--config.mesh.data=1"]
    flags += [f"--config.train.init_from={pair[0]}@30", "--config.optimizer.peak_lr=10.0"]
    for n, name in ((1, "tuned_alone"), (2, "tuned")):
        outputs = run(place, place / name, n, *flags, "--config.mesh.fsdp=2")
        assert "stopped early" in outputs[0]
    a, b = losses(place / "tuned"), losses(place / "tuned_alone")
    np.testing.assert_allclose(a[:5], b[:5], atol=1e-4, rtol=0)
    assert len(a) == len(b)


@pytest.mark.slow
def test_initial_values_that_depend_on_the_first_batch(place):
    flags = ["--config.placement.preset=admin", "--config.mesh.data=2", "--config.train.steps=10"]
    flags += ["--config.optimizer.name=adamw"]
    for n, name in ((1, "admin_alone"), (2, "admin")):
        run(place, place / name, n, *flags)
    np.testing.assert_allclose(
        losses(place / "admin"), losses(place / "admin_alone"), atol=1e-5, rtol=0
    )


def test_processes_with_different_configs_are_refused(place):
    workdir = place / "configs"
    with Group(place, workdir, 2, second=["--config.train.batch_size=16"]) as group:
        lines = group.refusals()
    assert lines[0] == lines[1]
    assert "process 1 differs from process 0: train.batch_size is 16 instead of 8" in lines[0]
    assert not workdir.exists()


def test_processes_with_different_code_and_versions_are_refused(place):
    path = place / "changed"
    shutil.copytree(tools.ROOT / "gpt2_jax", path / "gpt2_jax")
    with open(path / "gpt2_jax" / "errors.py", "a") as file:
        file.write("# changed\n")
    other = path / "optax-9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 9.9\n")
    shutil.copy(tools.ROOT / "train.py", path)
    env = {"PYTHONPATH": str(path)}
    with Group(place, place / "code", 2, code=path, env=env) as group:
        lines = group.refusals()
    assert lines[0] == lines[1]
    assert "the version of optax is '9.9' instead of" in lines[0]
    assert "the code of gpt2_jax is not the same" in lines[0]


def test_processes_with_different_text_are_refused(place):
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "text.txt").write_text(tools.make_text(20_000, seed=1))
    with Group(place, place / "texts", 2, cwd=place / "elsewhere") as group:
        lines = group.refusals()
    assert lines[0] == lines[1]
    assert "process 1 differs from process 0: the content of data.source" in lines[0]


def test_input_error_of_one_process_ends_all(place):
    (place / "empty").mkdir()
    with Group(place, place / "errors", 2, cwd=place / "empty") as group:
        lines = group.refusals()
    assert "process 1: " in lines[0] and "text.txt" in lines[0] and "text.txt" in lines[1]
    assert not (place / "errors").exists()


def test_folder_that_is_not_shared_is_refused(place):
    workdir, other = place / "folder", place / "unshared"
    with Group(place, workdir, 2, second=[f"--workdir={other}"]) as group:
        lines = group.refusals()
    assert (
        f"--workdir={workdir} of process 1" in lines[0] and "that all processes share" in lines[0]
    )
    assert f"--workdir={other} of process 1" in lines[1]
    assert not workdir.exists() and not other.exists()


def test_batch_that_the_processes_cannot_divide_is_refused(place):
    with Group(place, place / "batch", 2, "--config.train.batch_size=7") as group:
        lines = group.refusals()
    assert lines[0] == lines[1]
    assert "the 2 processes cannot divide the 7 sequences of a micro-batch" in lines[0]


def test_port_that_is_taken_is_refused(place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ["--initialization_timeout=4"]
        with Group(place, place / "port", 2, *flags, port=port) as group:
            lines = group.refusals()
    assert f"port {port} of the coordinator 127.0.0.1:{port} cannot be used" in lines[0]
    assert f"process 1 of 2 could not join the others at 127.0.0.1:{port}" in lines[1]
