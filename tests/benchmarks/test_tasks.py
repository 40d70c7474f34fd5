"""The speed benchmark of tasks, our side; the other one is in tests/peers/test_task_speed.py."""

import io
import json
import math

import numpy as np
import pytest

from benchmarks import task_steps, task_work
from benchmarks.task_arrays import load_arrays
from benchmarks.tasks import PEERS, commands, ratio, show
from benchmarks.turns import Times, serve
from tests.benchmarks.small_tasks import CHANGES, shrink


@pytest.fixture(scope="module")
def translate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translate")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        task_work.prepare_translate(folder, CHANGES)
    return folder


def test_sentences_are_as_long_as_those_of_multi30k():
    """Pieces per sentence with their end: means 16.6 and 17.7, 95th percentiles 27 and 30."""
    lengths = [[len(text.split()) + 1 for text in side] for side in task_work.sentences(20_000)]
    assert np.allclose(np.mean(lengths, 1), (16.6, 17.7), atol=0.3)
    assert np.allclose(np.percentile(lengths, 95, axis=1), (27, 30), atol=1)


def test_both_layouts_have_sentences_in_their_rows(translate):
    found = {name: load_arrays(translate / f"{name}.npz") for name in ("padded", "packed")}
    assert [x["ids"].shape for x in found["padded"]] == [(8, 64)] * 2
    assert [x["source_ids"].shape for x in found["packed"]] == [(4, 64)] * 2
    for name, batches in found.items():
        assert {int(x["segments"].max()) > 1 for x in batches} == {name == "packed"}
        n = sum(int(x["weights"].sum()) for x in batches)
        counts = task_work.count(translate / f"{name}.npz")
        assert counts.batches == 2 and counts.tokens == n
        assert (counts.padding > 0.5) == (name == "padded")


def test_steps_train_and_can_be_repeated(translate, monkeypatch, capsys):
    turn = task_steps.steps(translate, "padded", "float32")
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n10\n"))
    serve(turn)
    ready, *times = capsys.readouterr().out.splitlines()
    first = json.loads(ready.removeprefix("ready "))
    assert math.isfinite(first) and turn() < first
    assert len(times) == 2 and all(float(x) > 0 for line in times for x in line.split()[1:])


def test_ratios_are_to_the_faster_peer_within_rounds(translate, capsys):
    """A machine that becomes half as fast in the middle changes no ratio."""
    eager, compiled = PEERS
    times = {
        "gpt2_jax": [Times(8.0, 10.0), Times(16.0, 20.0)],
        eager: [Times(20.0, 12.0), Times(40.0, 24.0)],
        compiled: [Times(10.0, 20.0), Times(20.0, 40.0)],
    }
    assert ratio(times) == Times(0.8, 0.5)
    assert ratio({"gpt2_jax": times["gpt2_jax"]}) is None
    show("translate", translate, times)
    rows = capsys.readouterr().out.strip().splitlines()
    assert [row.count("|") for row in rows] == [7] * 5
    assert "0.80 (CPU time 0.50)" in rows[2] and rows[2].startswith("| gpt2_jax | 6.0 | 7.5 |")


def test_peers_are_left_out_without_their_python(tmp_path):
    assert not set(commands("beam", tmp_path, None)) & set(PEERS)
    assert set(PEERS) <= set(commands("beam", tmp_path, "python3"))
