"""Real runs on a mixture of remote and local text: killed while waiting for a file, and resumed."""

import json
import random
import signal
import string
import time

import pytest

from gpt2_jax.track.metrics import read_rows
from tests import tools
from tests.data.object_store import ObjectStore
from tests.tools import make_text, one_line_error

pytest.importorskip("aiohttp", reason="the https file system of fsspec needs aiohttp")

TRAIN_FILES, GROUP = 8, 2
FLAGS = [
    "train.py",
    "--config=configs/quickstart.py",
    "--config.model.n_layer=1",
    "--config.model.n_head=2",
    "--config.model.n_embd=16",
    "--config.model.n_positions=32",
    "--config.model.document_mask=True",
    "--config.data.seq_len=32",
    f"--config.data.stream_files={GROUP}",
    "--config.train.batch_size=8",
    "--config.optimizer.warmup_steps=10",
    "--config.train.steps=60",
    "--config.train.log_every=1",
    "--config.train.eval_every=20",
    "--config.train.checkpoint_every=20",
    "--config.train.sample_tokens=0",
]


def jsonl(i):
    letters = random.Random(i).choices(string.ascii_lowercase, k=1000)
    text = "".join(letters)
    return "".join(json.dumps({"text": t}) + "\n" for t in (text, text.upper())).encode()


@pytest.fixture(scope="module")
def store():
    with ObjectStore() as store:
        for i in range(TRAIN_FILES + 1):
            store.objects[f"web/part-{i}.jsonl"] = jsonl(i)
        yield store


class Runs:
    """The directories of two runs, and the files that were downloaded for each start."""

    def __init__(self, tmp, store):
        self.tmp, self.store = tmp, store
        (tmp / "code.txt").write_text(make_text(8000))
        self.source = f"mixture:{store.url}/web/*.jsonl=3,{tmp}/code.txt=1"

    def command(self, name):
        return [*FLAGS, f"--config.data.source={self.source}", f"--workdir={self.tmp / name}"]

    def run(self, name, machine):
        """Runs to the end, with a cache per machine; returns the process and its downloads."""
        before = len(self.store.downloads)
        done = tools.run(*self.command(name), tmp=self.tmp / machine)
        return done, self.store.downloads[before:]

    def stop(self, name, machine, number):
        """Sends a signal to a run that has saved step 40 and waits for the third group's files."""
        self.store.allow(len(self.store.downloads) + 1 + 2 * GROUP)  # validation, two groups
        with tools.start(*self.command(name), tmp=self.tmp / machine) as process:
            deadline = time.monotonic() + 240
            while not (self.tmp / name / "checkpoints/00000040").exists():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(1)
            assert process.poll() is None  # without the files it cannot finish
            process.send_signal(number)
            code = process.wait(timeout=60)
        self.store.allow(None)
        return code

    def rows(self, name):
        rows = read_rows(self.tmp / name / "metrics.jsonl")
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, store):
    """One uninterrupted run, and one that was killed and resumed on a machine without a cache."""
    runs = Runs(tmp_path_factory.mktemp("stream"), store)
    done, _ = runs.run("whole", "a")
    assert done.returncode == 0, done.stdout + done.stderr
    runs.output = done.stdout
    assert runs.stop("killed", "b", signal.SIGKILL) == -signal.SIGKILL
    runs.rows_before = runs.rows("killed")
    done, runs.downloads = runs.run("killed", "c")
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(runs):
    whole, killed = runs.rows("whole"), runs.rows("killed")
    assert 40 <= runs.rows_before[-1]["step"] < 60
    assert [row["step"] for row in whole] == list(range(61))
    assert len({row["train/loss"] for row in whole[1:]}) == 60
    assert killed == whole


def test_a_signal_stops_a_run_that_waits_for_a_file(runs):
    assert runs.stop("stopped", "a2", signal.SIGTERM) == 75
    last = runs.rows("stopped")[-1]["step"]
    assert 40 < last < 60
    assert (runs.tmp / f"stopped/checkpoints/{last:08d}").is_dir()
    done, _ = runs.run("stopped", "a2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs.rows("stopped") == runs.rows("whole")


def test_only_the_files_that_are_needed_are_downloaded_again(runs):
    counts = json.loads((runs.tmp / "killed/run.json").read_text())["streams"]["web"]
    assert len(counts) == TRAIN_FILES
    first_two_groups = 2 * GROUP
    # The group being read when the run was killed, the last ones, and the validation text.
    assert len({*runs.downloads}) <= TRAIN_FILES + 1 - first_two_groups + GROUP
    assert f"web/part-{TRAIN_FILES}.jsonl" in runs.downloads


def test_report_and_losses_name_the_sources(runs):
    output = " ".join(runs.output.split())  # lines end where the length of a path makes them end
    assert f"{TRAIN_FILES} remote files of" in output
    assert "web 75.0% of rows; code 25.0% of rows, 7,200 tokens" in output
    row = runs.rows("whole")[-1]
    expected = 0.75 * row["val/web/loss"] + 0.25 * row["val/code/loss"]
    assert row["val/loss"] == pytest.approx(expected, rel=1e-6)


def test_a_changed_remote_file_is_refused_on_resume(runs, store):
    kept = store.objects["web/part-0.jsonl"]
    try:
        store.objects["web/part-0.jsonl"] = kept.replace(b"a", b"b")
        done, _ = runs.run("whole", "a")
    finally:
        store.objects["web/part-0.jsonl"] = kept
    assert "contains now (in web: " in one_line_error(done)


def test_a_server_that_is_down_is_a_one_line_error(runs):
    source = f"mixture:http://127.0.0.1:9/*.jsonl=3,{runs.tmp}/code.txt=1"
    command = [*FLAGS, f"--config.data.source={source}", f"--workdir={runs.tmp / 'none'}"]
    done = tools.run(*command, tmp=runs.tmp / "a")
    assert "source http://127.0.0.1:9/*.jsonl cannot be read: " in one_line_error(done)
    assert not (runs.tmp / "none").exists()
