"""Studies as real processes: killed, several at a time, submitted, and each trial by itself."""

import json
import math
import random
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from gpt2_jax.ablation.study import submit
from gpt2_jax.cli.ablate import for_elements
from gpt2_jax.errors import EXIT_STOPPED, UserError
from gpt2_jax.track.metrics import read_rows
from tests import tools
from tests.ablation.study import slurm
from tests.ablation.study.small import BASE, starts
from tests.tools import one_line_error, run

FILE = """
from ml_collections import ConfigDict
from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Study, Search, grid

def get_config():
    config = configs.default()
    for section, fields in {base!r}.items():
        config[section].update(fields)
    config.train.steps = 80
    config.train.checkpoint_every = 20
    config.train.eval_every = 40
    config.track.diagnostics_every = 40
    return config

def get_study():
    return Study(
        grid({{"placement.preset": ("pre_ln", "post_ln")}}),
        {{"placement.preset": "pre_ln"}},
        seeds=(1, 2, 3, 4, 5, 6),
        search=Search(2.0**-7, n=3, seeds=(0,), max_contenders=1),
        trials_per_batch=2,
    )
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "two.py"
    path.write_text(FILE.format(base=BASE))
    return path


def command(file, text, workdir, *more):
    return [
        "-m", "gpt2_jax", "ablate", f"--config={file}", f"--config.data.source={text}",
        f"--workdir={workdir}", *more,
    ]  # fmt: skip


def start(file, text, workdir, tmp, *more):
    return tools.start(*command(file, text, workdir, *more), tmp=tmp)


@pytest.fixture(scope="module")
def left_alone(file, text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "w"
    done = run(*command(file, text_file, workdir), tmp=workdir.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done


@pytest.mark.slow
def test_the_command_prints_an_overview_and_writes_a_report(left_alone):
    workdir, done = left_alone
    assert "trials     18, and more where a search extends beyond its grid" in done.stdout
    assert "80 steps = 5,120 tokens each" in done.stdout
    assert "warm-up 4 steps; weight decay 0.1 x learning rate" in done.stdout
    assert "tokens per parameter" in done.stdout and "nats per token by 1.79" in done.stdout
    assert "2 trials at a time" in done.stdout and "on this machine alone" in done.stdout
    assert "placement=post_ln" in done.stderr and "validation loss" in done.stderr
    names = {p.name for p in workdir.iterdir() if not p.name.startswith(".")}
    assert names == {
        "study.json", "trials", "leases", "outcomes", "report", "report.html", "report.md",
        "results.json",
    }  # fmt: skip


def test_a_dry_run_leaves_nothing(file, text_file, tmp_path):
    done = run(*command(file, text_file, tmp_path / "w", "--dry_run"), tmp=tmp_path)
    assert done.returncode == 0 and "expected" in done.stdout
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_killed_anywhere_it_reaches_the_same_results(file, text_file, left_alone, tmp_path):
    draw, workdir, kills = random.Random(0), tmp_path / "w", 0
    while True:
        process = start(file, text_file, workdir, tmp_path)
        wait_for = draw.uniform(0.0, 1.5)
        began = time.monotonic()
        while process.poll() is None:
            trained = list(workdir.glob("trials/*/metrics.jsonl"))
            if trained and kills < 4:
                time.sleep(wait_for)
                process.send_signal((signal.SIGKILL, signal.SIGTERM)[kills % 2])
                kills += 1
                break
            assert time.monotonic() - began < 250
            time.sleep(0.02)
        out, code = process.communicate()[0], process.returncode
        assert code in (0, EXIT_STOPPED, -signal.SIGKILL, -signal.SIGTERM), out
        if code == 0:
            break
    assert kills >= 3
    expected = (left_alone[0] / "results.json").read_bytes()
    assert (workdir / "results.json").read_bytes() == expected
    assert len(expected) > 3000


@pytest.mark.slow
def test_workers_share_a_directory(file, text_file, left_alone, tmp_path):
    """One of three is killed; no trial is trained twice except those of the killed one."""
    workdir = tmp_path / "w"
    shards = [f"--shard={i}/3" for i in (1, 2, 3)]
    processes = [start(file, text_file, workdir, tmp_path, shard) for shard in shards]
    while not list(workdir.glob("outcomes/*")):
        time.sleep(0.05)
        assert all(process.poll() is None for process in processes)
    processes[0].kill()
    for process in processes:
        out = process.communicate(timeout=250)[0]
        assert process.returncode == 0 or process is processes[0], out
    expected = (left_alone[0] / "results.json").read_bytes()
    assert (workdir / "results.json").read_bytes() == expected
    began = {p.name: len(starts(p)) for p in (workdir / "trials").iterdir()}
    assert len(began) >= 12
    assert sum(n > 1 for n in began.values()) <= 2 and max(began.values()) <= 2
    owners = {
        json.loads(p.read_text())["owner"] for p in (workdir / "leases").iterdir() if p.suffix
    }
    assert None in owners or len(owners) > 1


@pytest.mark.slow
def test_submitted_jobs_carry_out_the_study(file, text_file, left_alone, tmp_path):
    """With submitit's local executor, which differs from SLURM's in who starts the jobs."""
    workdir, more = tmp_path / "w", ("--submit=local", "--elements=2", "--resources=timeout_min=4")
    done = run(*command(file, text_file, workdir, *more), tmp=tmp_path)
    assert done.returncode == 0 and "submitted 2 jobs" in done.stdout, done.stderr
    began = time.monotonic()
    while len(ends(workdir)) < 2 and time.monotonic() - began < 250:
        time.sleep(0.2)
    expected = (left_alone[0] / "results.json").read_bytes()
    assert (workdir / "results.json").read_bytes() == expected
    said = [p.read_text() for p in workdir.glob("jobs/*.out")]
    assert len(said) == 2
    assert all("variants   placement=pre_ln; placement=post_ln" in text for text in said)


@pytest.mark.slow
def test_an_array_of_slurms_is_queued_again_when_its_time_is_over(
    file, text_file, left_alone, tmp_path
):
    workdir, place = tmp_path / "w", tmp_path / "slurm"
    path = slurm.install(place)
    more = (
        "--submit=slurm", "--elements=2",
        "--resources=timeout_min=7,slurm_partition=gpu,cpus_per_task=2",
    )  # fmt: skip
    done = run(*command(file, text_file, workdir, *more), tmp=tmp_path, PATH=path)
    assert done.returncode == 0 and "submitted 2 jobs: 77_0, 77_1" in done.stdout, done.stderr
    batch = Path((place / "batch").read_text()).read_text()
    began, warned = time.monotonic(), False
    while not (workdir / "results.json").exists() or len(ends(workdir)) < 2:
        if not warned and len(list(workdir.glob("trials/*/metrics.jsonl"))) > 2:
            slurm.warn(place, 0)
            warned = True
        time.sleep(0.05)
        assert time.monotonic() - began < 250
    assert (place / "requeued").read_text() == "77_0\n"
    expected = (left_alone[0] / "results.json").read_bytes()
    assert (workdir / "results.json").read_bytes() == expected
    log = next(workdir.glob("jobs/77_0_0_log.out")).read_text()
    assert "stopped by SIGTERM, saved" in log
    for flag in ("--partition=gpu", "--time=7", "--cpus-per-task=2", "--array=0-1%2"):
        assert f"#SBATCH {flag}" in batch


def ends(workdir):
    """Files that elements of an array write when they end."""
    return list(workdir.glob("jobs/*_result.pkl"))


def test_elements_get_the_flags_without_those_used_once():
    words = ["--config=a.py", "--submit", "slurm", "-elements=3", "--config.seed=1"]
    more = ["--retry_failed", "--workdir", "w", "--resources", "timeout_min=4", "--shard=1/2"]
    expected = ["--config=a.py", "--config.seed=1", "--workdir", "w"]
    assert for_elements(words + more) == expected


def test_mistakes_on_the_command_line_are_one_line(file, text_file, tmp_path):
    wrong = command(file, text_file, tmp_path / "w", "--config.optimizer.name=adamm")
    assert "optimizer.name='adamm' is unknown" in one_line_error(run(*wrong, tmp=tmp_path))
    unused = command(file, text_file, tmp_path / "w", "--elements=2")
    assert "require --submit=slurm" in one_line_error(run(*unused, tmp=tmp_path))
    axis = command(file, text_file, tmp_path / "w", "--config.placement.preset=rezero")
    assert "--config.placement.preset has no effect" in one_line_error(run(*axis, tmp=tmp_path))
    (tmp_path / "w").mkdir()
    (tmp_path / "w/thesis.tex").write_text("")
    words = command(file, text_file, tmp_path / "w", "--submit=local")
    assert "holds no study" in one_line_error(run(*words, tmp=tmp_path))
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["thesis.tex"]


def test_failed_submissions_are_reported(tmp_path, monkeypatch):
    assert submit.parse_resources(["timeout_min=4", "slurm_partition=a=b"]) == {
        "timeout_min": 4, "slurm_partition": "a=b",
    }  # fmt: skip
    with pytest.raises(UserError, match="'timeout', which is not name=value"):
        submit.parse_resources(["timeout"])
    with pytest.raises(UserError, match=r"--submit=local: .*no_such"):
        submit.submit("local", [], tmp_path, 1, {"no_such": 1})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"--submit=slurm: .*srun"):
        submit.submit("slurm", [], tmp_path, 1, {})
    with pytest.raises(RuntimeError, match="exit code 3"):
        submit.ArrayJob()([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_the_printed_command_trains_a_trial_alone(left_alone, tmp_path):
    workdir, _ = left_alone
    text = (workdir / "report.md").read_text()
    line = next(x for x in text.splitlines() if "python train.py" in x).strip()
    words = [w for w in shlex.split(line)[1:] if not w.startswith("--workdir=")]
    done = run(*words, f"--workdir={tmp_path / 'alone'}", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    name = next(w for w in shlex.split(line) if w.startswith("--workdir=")).rpartition("/")[2]
    trial = read_rows(workdir / "trials" / name / "metrics.jsonl")[-1]
    alone = read_rows(tmp_path / "alone" / "metrics.jsonl")[-1]
    assert alone["val/loss"] == pytest.approx(trial["val/loss"], rel=1e-4)
    assert math.isfinite(alone["val/loss"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/quickstart.py", "--workdir=w"], "has no get_study()"),
        (["--config=configs/none.py", "--workdir=w"], "configs/none.py"),
        (["--config=configs/ablations/placement.py"], "pass --workdir"),
        (["--workdir=w"], "pass --config, for example --config=configs/ablations/placement.py"),
        (["--config=configs/ablations/placement.py", "--workdir=w", "--shard=0/2"], "--shard=0/2"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path):
    done = run("-m", "gpt2_jax", "ablate", *flags, tmp=tmp_path)
    assert message in one_line_error(done)
