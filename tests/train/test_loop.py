"""The training loop, in this process: its reads from the devices, its files and its stops."""

import json
import signal
import threading
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from gpt2_jax.config import replace
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.errors import Diverged, Unavailable, UserError
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.track.wandb_log import Sample
from gpt2_jax.train import loop, prefetch, run
from gpt2_jax.train.compiled_step import kernel_of
from gpt2_jax.train.storage.open_run import open_run
from tests.runs import config

TEXTS = run.TextFns(lambda model: Sample("a sample"), lambda model: None)


class Reads:
    """Counts what the host reads from the devices, explicitly or implicitly."""

    def __init__(self, patch):
        self.explicit, self.implicit, self.saves = [], 0, 0
        self.allowed = threading.local()
        value, get, save = ArrayImpl._value.fget, jax.device_get, loop.Checkpoints.save

        def read(array):
            if threading.current_thread() is threading.main_thread():
                self.implicit += not getattr(self.allowed, "now", False)
            return value(array)

        def device_get(x):
            self.explicit.append("metrics" if isinstance(x, dict) else "sums")
            return self.allow(get, x)

        def save_checkpoint(*args):
            self.saves += 1
            return self.allow(save, *args)

        patch.setattr(ArrayImpl, "_value", property(read))
        patch.setattr(jax, "device_get", device_get)
        patch.setattr(loop.Checkpoints, "save", save_checkpoint)

    def allow(self, f, *args):
        self.allowed.now = True
        try:
            return f(*args)
        finally:
            self.allowed.now = False


@pytest.fixture(scope="module")
def trained(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "run"
    made = config(text_file, train__steps=40)
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch)
        code = loop.train(made, str(workdir), TEXTS)
        after = reads.implicit
        float(jax.numpy.ones(()) + 1)  # to verify that reads are counted
        assert reads.implicit == after + 1
        reads.implicit = after
    assert code == 0
    return workdir, reads


def test_rows_are_at_the_configured_steps(trained):
    rows = read_rows(trained[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 10, 20, 30, 40]
    assert [row["tokens"] for row in rows] == [step * 8 * 12 for step in range(0, 41, 5)]
    assert set(rows[0]) == {
        "step", "tokens", "val/loss", "val/accuracy", "val/bits_per_byte",
        "perf/seconds", "perf/flops",
    }  # fmt: skip
    assert set(rows[1]) == {
        "step", "tokens", "train/loss", "train/grad_norm", "train/lr", "train/skipped",
        "perf/tokens_per_sec", "perf/step_ms", "perf/seconds", "perf/flops",
    }  # fmt: skip
    assert rows[-1]["val/loss"] < rows[0]["val/loss"] - 0.5
    assert rows[0]["val/bits_per_byte"] == pytest.approx(rows[0]["val/loss"] / np.log(2))


def test_host_reads_the_devices_once_per_row(trained):
    """40 steps with a row every 5: eight reads of metrics, five of evaluations, no other."""
    reads = trained[1]
    assert Counter(reads.explicit) == {"metrics": 8, "sums": 5}
    assert (reads.implicit, reads.saves) == (0, 2)


def test_time_that_saves_hold_up_training_is_reported(text_file, tmp_path, monkeypatch, capsys):
    """With a clock that only saving (3 s) and waiting for the last save (1 s) advance."""
    now, save, wait = [0.0], loop.Checkpoints.save, loop.Checkpoints.wait

    def slow_save(self, *args):
        save(self, *args)
        now[0] += 3.0

    def slow_wait(self):
        is_saving = self._saving is not None
        wait(self)
        now[0] += is_saving

    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("gpt2_jax.train.run_logger.time", clock)
    monkeypatch.setattr(loop.Checkpoints, "save", slow_save)
    monkeypatch.setattr(loop.Checkpoints, "wait", slow_wait)
    workdir, made = tmp_path / "run", config(text_file, train__steps=40, train__checkpoint_every=10)
    assert loop.train(made, str(workdir)) == 0
    rows = {
        row["step"]: row.get("perf/save_seconds") for row in read_rows(workdir / "metrics.jsonl")
    }
    # A save also waits for the one before it.
    assert rows == {0: None, 5: None, 10: None, 15: 3, 20: None, 25: 4, 30: None, 35: 4, 40: None}
    saves = json.loads((workdir / "run.json").read_text())["saves"]
    assert saves == {"count": 4, "seconds": 3 + 4 + 4 + 5, "longest_seconds": 5}
    assert "4 saves held up training for 16.00 s, the longest for 5.00 s" in capsys.readouterr().out

    longer = replace(made, {"train.steps": 50})
    assert loop.train(longer, str(workdir)) == 0
    saves = json.loads((workdir / "run.json").read_text())["saves"]
    assert saves == {"count": 5, "seconds": 16 + 4, "longest_seconds": 5}


def test_directory_is_complete(trained):
    workdir = trained[0]
    assert {p.name for p in workdir.iterdir() if not p.name.startswith(".")} == {
        "config.json", "run.json", "metrics.jsonl", "checkpoints", "loss.png", "sample.txt",
    }  # fmt: skip
    assert (workdir / "sample.txt").read_text() == "a sample\n"
    info = json.loads((workdir / "run.json").read_text())
    assert info["changed"]["model.n_embd"] == 16
    assert info["attention"] == "xla" and len(info["corpus"]) == 64
    assert {"jax", "flax", "optax"} <= set(info["starts"][0]["versions"])


def test_too_many_skipped_steps_stop_the_run_with_a_reason(text_file, tmp_path, monkeypatch):
    real = loop.compile_step

    def poisoned(config, **options):
        program = real(config, **options)
        init = program.init

        def bad():
            state = init()
            nan = jax.tree.map(lambda x: x * np.float32("nan"), state.params["embedding"])
            return state._replace(params=state.params | {"embedding": nan})

        return type(program)(**{**program.__dict__, "init": bad})

    monkeypatch.setattr(loop, "compile_step", poisoned)
    made = config(text_file, optimizer__max_skipped=7, train__steps=40)
    with pytest.raises(Diverged, match="by step 10, 10 steps in a row") as caught:
        loop.train(made, str(tmp_path / "run"))
    assert caught.value.exit_code == 1
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["train/loss"] is None


def test_missing_attention_kernel_is_an_error():
    assert kernel_of("custom-call __cudnn$fmhaSoftmax", "cudnn") == "cudnn"
    assert kernel_of('op_name="splash_mha_fwd_residuals"', "splash") == "splash"
    assert kernel_of("dot(...)", "xla") == "xla"
    for kernel in ("cudnn", "splash"):
        with pytest.raises(UserError, match=f"attention={kernel}, but the compiled step does not"):
            kernel_of("dot(...)", kernel)


@pytest.mark.parametrize(("kernel", "device"), [("cudnn", "GPU"), ("splash", "TPU")])
def test_kernel_of_another_device_is_a_one_line_error(kernel, device, text_file, tmp_path):
    made = config(text_file, model__attention=kernel, model__dtype="bfloat16")
    expected = f"model.attention={kernel} is not available here: it needs a {device}, and this is"
    with pytest.raises(UserError, match=expected):
        loop.train(made, str(tmp_path / "run"))


def test_damaged_checkpoint_is_named_and_an_older_one_is_used(trained, text_file, tmp_path,
                                                                    capsys):  # fmt: skip
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    (data,) = (workdir / "checkpoints" / "00000040" / "state" / "d").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    assert loop.train(config(text_file, train__steps=40), str(workdir)) == 0
    out = capsys.readouterr().out
    assert "00000040 is damaged" in out and f"continuing {workdir} after step 20" in out
    strip = lambda path: [
        {k: v for k, v in row.items() if not k.startswith("perf")} for row in read_rows(path)
    ]
    assert strip(workdir / "metrics.jsonl") == strip(trained[0] / "metrics.jsonl")


def without_timings(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    timings = ("perf/tokens_per_sec", "perf/step_ms", "perf/seconds", "perf/save_seconds")
    return [{k: v for k, v in row.items() if k not in timings} for row in rows]


def signal_in_evaluation(patch, at):
    """Sends SIGTERM in the evaluation after a step, between two batches."""
    shown = run.Progress.validating

    def validating(self, step, done, total):
        if step == at and done == 1:
            signal.raise_signal(signal.SIGTERM)
        shown(self, step, done, total)

    patch.setattr(run.Progress, "validating", validating)


def test_signal_interrupts_an_evaluation_and_the_next_start_repeats_it(
    trained, text_file, tmp_path, capsys
):
    """Before the first step, at a step that is not saved otherwise, and at the end."""
    workdir, made = tmp_path / "run", config(text_file, train__steps=40)
    for at, rows in ((0, 0), (10, 3), (40, 9)):
        with pytest.MonkeyPatch.context() as patch:
            signal_in_evaluation(patch, at)
            assert loop.train(made, str(workdir), TEXTS) == 75
        found = read_rows(workdir / "metrics.jsonl")
        assert len(found) == rows and not any(
            "val/loss" in row for row in found if row["step"] == at
        )
        assert (workdir / "checkpoints" / f"{at:08d}").exists() == (at > 0)
        assert "stopped by SIGTERM" in capsys.readouterr().out
    assert loop.train(made, str(workdir), TEXTS) == 0
    assert without_timings(workdir) == without_timings(trained[0])
    seconds = [row["perf/seconds"] for row in read_rows(workdir / "metrics.jsonl")]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[1]
    ours, theirs = open_run(str(workdir)), open_run(str(trained[0]))
    assert ours.step == theirs.step == 40
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    best = min(read_rows(workdir / "metrics.jsonl"), key=lambda r: r.get("val/loss", np.inf))
    assert loop.Checkpoints(workdir / "checkpoints").best() == best["step"]


@pytest.mark.parametrize("phase", ["open_data", "compile_step"])
def test_signal_before_the_first_step_saves_nothing(
    text_file, tmp_path, monkeypatch, phase, capsys
):
    def signalled(*args, **options):
        signal.raise_signal(signal.SIGHUP)
        raise AssertionError("went on")

    monkeypatch.setattr(loop, phase, signalled)
    workdir = tmp_path / "run"
    assert loop.train(config(text_file), str(workdir)) == 75
    assert not (workdir / "metrics.jsonl").exists() and not (workdir / "checkpoints").exists()
    assert "stopped by SIGHUP before training began" in capsys.readouterr().out


def test_loss_curve_exists_from_the_first_evaluation_on(text_file, tmp_path, monkeypatch):
    workdir, seen = tmp_path / "a$b_{$", []
    real = run.RunLogger.is_kept

    def is_kept(self, row):
        if row["step"] == 20:
            self._curve.close()  # waits for the picture in progress
            seen.append((workdir / "loss.png").read_bytes()[:4])
            raise KeyboardInterrupt
        return real(self, row)

    monkeypatch.setattr(run.RunLogger, "is_kept", is_kept)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config(text_file, train__steps=40), str(workdir))
    assert seen == [b"\x89PNG"]


def test_text_that_becomes_unavailable_stops_the_run_after_saving(text_file, tmp_path, capsys):
    """As a signal does; the same command continues."""
    made = config(text_file, **{"train.sample_tokens": 0})
    whole = loop.train(made, str(tmp_path / "whole"))
    real = Sampler.batch

    def batch(self, step, rows=slice(None)):
        if step >= 13:
            raise Unavailable("source s3://bucket/a cannot be read: timeout")
        return real(self, step, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "batch", batch)
        assert loop.train(made, str(tmp_path / "run")) == 75
    assert "stopped by a failed download (source s3://bucket/a cannot" in capsys.readouterr().out
    assert (tmp_path / "run/checkpoints/00000013").is_dir()
    assert whole == loop.train(made, str(tmp_path / "run")) == 0
    losses = lambda name: [
        (row["step"], row.get("train/loss"), row.get("val/loss"))
        for row in read_rows(tmp_path / name / "metrics.jsonl")
        if row["step"] != 13
    ]
    assert losses("run") == losses("whole")


def test_a_signal_ends_the_wait_for_a_batch():
    waiting = threading.Event()

    def batch(step):
        waiting.wait(5)
        return step

    batches = prefetch.Prefetch(batch, 0, 3, lambda: True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch, "POLL_SECONDS", 0.01)
        patch.setattr(prefetch, "JOIN_SECONDS", 0.01)
        with batches:
            assert list(batches) == []
    waiting.set()
