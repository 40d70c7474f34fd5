"""`train.micro_batch=auto`: the search, and runs that use and resume its result."""

import json
import math
from types import SimpleNamespace

import pytest

from gpt2_jax.ablation.study.trials import trial_config
from gpt2_jax.config import from_json, replace
from gpt2_jax.config.check import check
from gpt2_jax.errors import UserError
from gpt2_jax.train import loop, micro_batch
from gpt2_jax.train.compiled_step import TooLittleMemory, compile_step
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.micro_batch import choices, fewest, usable_bytes
from tests import tools
from tests.runs import config


@pytest.mark.parametrize("limit", [1000, 160, 90, 60, 41, 30.5])
def test_search_finds_the_fewest_and_tries_few(limit):
    """With peaks of 10 + 150 / n + 2 sqrt(n), which are not quite a + b / n."""
    possible = [n for n in range(1, 721) if 720 % n == 0]
    peak = lambda n: 10 + 150 / n + 2 * math.sqrt(n) * (n > 1)
    tried = []

    def asked(n):
        tried.append(n)
        return peak(n)

    expected = next((n for n in possible if peak(n) <= limit), None)
    assert fewest(possible, limit, asked) == expected
    assert len(tried) == len(set(tried)) <= 5 < len(possible)


def test_search_without_known_peaks():
    """As on a TPU, where compiling fails if a program is too large."""
    for first in (1, 2, 16, 256):
        peak = lambda n, first=first: 1.0 if n >= first else math.inf
        assert fewest([2**i for i in range(9)], 1.0, peak) == first
    assert fewest([1, 2, 4], 1.0, lambda n: math.inf) is None


def test_choices_leave_each_device_whole_sequences():
    assert choices(batch_size=48, first=1, n_devices=4) == [1, 2, 3, 4, 6, 12]
    assert choices(batch_size=48, first=4, n_devices=4) == [4, 12]
    assert choices(batch_size=8, first=1, n_devices=8) == [1]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_mesh_does_not_depend_on_the_choice(n):
    made = tools.tiny(train__batch_size=48, train__accumulation=n, mesh__data=None)
    assert make_mesh(made.train, made.mesh).size == 8


def test_usable_memory_is_the_devices_or_a_share_of_the_machines(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    made = tools.tiny(mesh__data=2)
    monkeypatch.setattr(micro_batch, "host_bytes", lambda: 5000)
    assert usable_bytes(make_mesh(made.train, made.mesh)) == 0.9 * 2500
    assert usable_bytes(SimpleNamespace(local_devices=[Device()])) == 900


def limited(patch, n_bytes, n_devices=2):
    """Pretends that the machine has so little memory that a device may use `n_bytes`."""
    patch.setattr(micro_batch, "host_bytes", lambda: (n_bytes + 1) * n_devices / 0.9)


@pytest.fixture(scope="module")
def peaks(text_file):
    """The peak memory of a step by its number of micro-batches."""
    made = config(text_file, train__batch_size=16, data__seq_len=12)
    step = lambda n: compile_step(replace(made, {"train.accumulation": n}))
    return {n: step(n).peak_bytes for n in (1, 2, 4)}


def test_run_uses_the_largest_that_fits_and_resumes_with_it(
    peaks, text_file, tmp_path, monkeypatch, capsys
):
    assert peaks[1] > peaks[2] > peaks[4]
    changes = {"train__batch_size": 16, "train__steps": 12}
    auto = config(text_file, **changes, train__micro_batch="auto")
    limited(monkeypatch, peaks[2])
    assert loop.train(auto, str(tmp_path / "auto")) == 0
    stored = from_json(tmp_path / "auto" / "config.json").train
    assert (stored.accumulation, stored.micro_batch) == (2, "auto")
    info = json.loads((tmp_path / "auto" / "run.json").read_text())
    assert info["changed"]["train.accumulation"] == 2
    captured = capsys.readouterr()
    assert "2 devices x 2 accumulated x 4" in " ".join(captured.out.split())
    assert "train.micro_batch=auto: train.accumulation=2 needs" in captured.err

    limited(monkeypatch, peaks[4])  # too little for the run's choice, which it keeps
    longer = replace(auto, {"train.steps": 24})
    assert loop.train(longer, str(tmp_path / "auto")) == 0
    assert from_json(tmp_path / "auto" / "config.json").train.accumulation == 2

    fixed = config(text_file, **changes, train__accumulation=2)
    assert loop.train(fixed, str(tmp_path / "fixed")) == 0
    rows = lambda name: [
        json.loads(line)["train/loss"]
        for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()[1:]
    ]
    assert rows("auto")[: len(rows("fixed"))] == rows("fixed")


def test_resuming_with_another_choice_is_refused(peaks, text_file, tmp_path, monkeypatch):
    auto = config(text_file, train__batch_size=16, train__steps=5, train__micro_batch="auto")
    limited(monkeypatch, peaks[2])
    assert loop.train(auto, str(tmp_path / "run")) == 0
    for change in ({"train.micro_batch": None}, {"train.accumulation": 4}):
        with pytest.raises(UserError, match="contains a run with a different config: train"):
            loop.train(replace(auto, {"train.steps": 9} | change), str(tmp_path / "run"))


def test_too_little_memory_for_any_choice_is_one_line(peaks, text_file, tmp_path, monkeypatch):
    auto = config(text_file, train__batch_size=4, train__micro_batch="auto")
    limited(monkeypatch, 1000)
    with pytest.raises(UserError, match=r"micro_batch=auto: a step with one sequence per device"):
        loop.train(auto, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_compiler_that_refuses_a_step_is_not_the_end(text_file, monkeypatch):
    """As on a TPU: the first choice does not compile."""
    made = config(text_file, train__batch_size=8, train__micro_batch="auto")
    real, seen = compile_step(made), []

    def compiled_with(n):
        seen.append(n)
        if n == 1:
            raise TooLittleMemory("RESOURCE_EXHAUSTED")
        return real

    mesh = make_mesh(made.train, made.mesh)
    assert micro_batch.largest_micro_batch(made.train, mesh, compiled_with)[0] == 2
    assert seen == [1, 2]


def test_memory_check_allows_what_auto_can_split(monkeypatch):
    monkeypatch.setattr("gpt2_jax.config.capacity.machine_bytes", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"train\.batch_size=8000"):
        tools.tiny(train__batch_size=8000)
    check(tools.tiny(train__batch_size=8000, train__micro_batch="auto"))


def test_studies_refuse_auto(text_file):
    from gpt2_jax.ablation.study import Study

    study = Study(variants=[{}], seeds=[0], baseline={})
    made = config(text_file, train__micro_batch="auto")
    with pytest.raises(UserError, match="may choose differently on each machine"):
        trial_config(made, study, {})
