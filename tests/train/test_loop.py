"""The loop in this process: what it reads from the devices, writes down, and stops at."""

import json
import threading
from collections import Counter

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from gpt2_jax.errors import Diverged, UserError
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from gpt2_jax.train.program import kernel_of
from tests import tools


def config(text_file, **changes):
    made = tools.tiny(
        **{
            "model.vocab_size": None,
            "data.source": str(text_file),
            "train.log_every": 5,
            "train.eval_every": 10,
            "train.checkpoint_every": 20,
            "train.eval_tokens": 96,
            "track.wandb.mode": "disabled",
            "mesh.data": 2,
            **changes,
        }
    )
    made.model.vocab_size = 257
    return made


class Reads:
    """Counts what the host reads from the devices, by how it does: said aloud, or on the way."""

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
        patch.setattr(loop.jax, "device_get", device_get)
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
        code = loop.train(made, str(workdir), lambda *args: "a sample")
        after = reads.implicit
        float(jax.numpy.ones(()) + 1)  # so that counting is seen to work
        assert reads.implicit == after + 1
        reads.implicit = after
    assert code == 0
    return workdir, reads


def test_rows_are_where_the_config_says(trained):
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


def test_the_host_reads_the_devices_once_a_row(trained):
    """40 updates with a row every 5: eight reads of metrics, five of evaluations, no other."""
    reads = trained[1]
    assert Counter(reads.explicit) == {"metrics": 8, "sums": 5}
    assert (reads.implicit, reads.saves) == (0, 2)


def test_the_directory_is_complete(trained):
    workdir = trained[0]
    assert {p.name for p in workdir.iterdir() if not p.name.startswith(".")} == {
        "config.json", "run.json", "metrics.jsonl", "checkpoints", "loss.png", "sample.txt",
    }  # fmt: skip
    assert (workdir / "sample.txt").read_text() == "a sample\n"
    info = json.loads((workdir / "run.json").read_text())
    assert info["changed"]["model.n_embd"] == 16
    assert info["attention"] == "xla" and len(info["corpus"]) == 64
    assert {"jax", "flax", "optax"} <= set(info["starts"][0]["versions"])


def test_too_many_skipped_updates_stop_the_run_with_a_reason(text_file, tmp_path, monkeypatch):
    real = loop.compile_program

    def poisoned(config):
        program = real(config)
        init = program.init

        def bad():
            state = init()
            nan = jax.tree.map(lambda x: x * np.float32("nan"), state.params["wte"])
            return state._replace(params=state.params | {"wte": nan})

        return type(program)(**{**program.__dict__, "init": bad})

    monkeypatch.setattr(loop, "compile_program", poisoned)
    made = config(text_file, optimizer__max_skipped=7, train__steps=40)
    with pytest.raises(Diverged, match="by step 10, 10 steps in a row had") as caught:
        loop.train(made, str(tmp_path / "run"))
    assert caught.value.exit_code == 1
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["train/loss"] is None


def test_a_kernel_that_is_not_in_the_program_is_an_error():
    assert kernel_of("custom-call __cudnn$fmhaSoftmax", "cudnn") == "cudnn"
    assert kernel_of("dot(...)", "xla") == "xla"
    with pytest.raises(UserError, match=r"the compiled step holds no cuDNN attention"):
        kernel_of("dot(...)", "cudnn")


def test_cudnn_on_a_cpu_is_one_line(text_file, tmp_path):
    made = config(text_file, model__attention="cudnn", model__dtype="bfloat16")
    with pytest.raises(UserError, match=r"model\.attention=cudnn cannot be had here"):
        loop.train(made, str(tmp_path / "run"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(trained, text_file, tmp_path,
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
