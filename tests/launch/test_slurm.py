"""The launch files for SLURM, run by a real SLURM on this machine."""

import json
import sys
import time

import pytest

from gpt2_jax.track.metrics import read_rows
from tests import tools
from tests.ablation.study import small
from tests.launch.slurm import Slurm, missing
from tests.train.distributed.test_several_processes import FLAGS

LAUNCH = tools.ROOT / "docs" / "launch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    shim = folder / "bin" / "gpt2-jax"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpt2_jax "$@"\n')
    shim.chmod(0o755)
    with Slurm(folder) as cluster:
        cluster.env |= tools.environment(folder)
        cluster.env["PATH"] = f"{shim.parent}:{cluster.env['PATH']}:/usr/sbin:/sbin"
        (folder / "text.txt").write_text(tools.make_text(20_000))
        yield cluster


def submit(slurm, name, options, flags):
    """Submits a launch file, without the GPUs that this machine need not have."""
    lines = (LAUNCH / name).read_text().splitlines()
    script = slurm.folder / name
    script.write_text("\n".join(line for line in lines if "#SBATCH --gpus" not in line) + "\n")
    return slurm.submit(*options, str(script), *flags)


def wait(slurm, job, is_done, seconds=240):
    deadline = time.monotonic() + seconds
    while not is_done():
        found = slurm.job(job)
        logs = {path.name: path.read_text() for path in slurm.folder.glob("*.log")}
        assert time.monotonic() < deadline, (found, logs, slurm.logs())
        assert found["JobState"] not in ENDED[1:], (found, logs)
        time.sleep(0.2)


def test_preempted_run_of_two_processes_is_queued_again_and_finishes(slurm):
    workdir, log = slurm.folder / "run", slurm.folder / "run.log"
    options = ["--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=1"]
    flags = [*FLAGS, f"--config.data.source={slurm.folder}/text.txt", f"--workdir={workdir}"]
    flags += ["--config.train.steps=1000", "--config.train.checkpoint_every=800"]
    flags += ["--config.train.eval_every=500", "--config.train.log_every=10"]
    job = submit(slurm, "slurm.sbatch", [*options, f"--output={log}"], flags)
    metrics = workdir / "metrics.jsonl"
    wait(slurm, job, lambda: any(row["step"] > 5 for row in read_rows(metrics)))
    slurm.submit("--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 2")
    wait(slurm, job, lambda: slurm.job(job)["JobState"] == "PENDING")
    wait(slurm, job, lambda: slurm.start_now(job) or slurm.job(job)["JobState"] == "COMPLETED")
    assert int(slurm.job(job)["Restarts"]) >= 1
    starts = [
        start["from_step"] for start in json.loads((workdir / "run.json").read_text())["starts"]
    ]
    assert len(starts) == 2 and starts[0] == 0
    assert 5 < starts[1] < 800  # the step that both processes saved when they were preempted
    assert [row["step"] for row in read_rows(metrics)] == list(range(0, 1001, 10))
    assert f"stopped by SIGTERM after step {starts[1]}, saved" in log.read_text()


STUDY = """
from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Study, grid

def get_config():
    config = configs.default()
    config.update_from_flattened_dict(%r)
    return config

def get_study():
    return Study(grid({%r: ("pre_ln", "post_ln")}), {%r: "pre_ln"}, seeds=tuple(range(6)))
"""


def test_study_is_finished_by_an_array(slurm):
    """Its elements must not take each other for processes of one run."""
    fields = {f"{name}.{key}": v for name, part in small.BASE.items() for key, v in part.items()}
    fields |= {"data.source": str(slurm.folder / "text.txt"), "track.wandb.mode": "disabled"}
    (slurm.folder / "study.py").write_text(STUDY % (fields, small.P, small.P))
    workdir = slurm.folder / "study"
    options = ["--array=1-2", "--cpus-per-task=1", f"--output={slurm.folder}/study_%a.log"]
    flags = [f"--config={slurm.folder}/study.py", f"--workdir={workdir}"]
    job = submit(slurm, "slurm_study.sbatch", options, flags)
    wait(slurm, job, lambda: not slurm.run("squeue", "--noheader"))
    assert len(small.results(workdir)["trials"]) == 12
    for element in (1, 2):
        assert "error" not in (slurm.folder / f"study_{element}.log").read_text()
