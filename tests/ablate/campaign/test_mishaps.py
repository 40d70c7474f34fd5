"""What happens to campaigns of tiny models that are left to the world."""

import dataclasses
import shutil
import time

import pytest

from gpt2_jax.ablate.campaign import Campaign, grid
from gpt2_jax.ablate.campaign import worker as workers
from gpt2_jax.ablate.campaign.cells import Cells, cell_config
from gpt2_jax.ablate.campaign.worker import Worker
from gpt2_jax.ablate.report.page import write_report
from gpt2_jax.errors import EXIT_FINISHED, UserError
from gpt2_jax.track.display import Display
from gpt2_jax.train.rundir import RunDirectory
from gpt2_jax.train.signals import StopSignal
from tests.ablate.campaign.small import P, base, conduct, results, starts
from tests.tools import make_text

TWO = Campaign(grid({P: ("pre_ln",)}), {P: "pre_ln"}, seeds=(1, 2), at_once=2)


@pytest.fixture(scope="module")
def done(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    conduct(workdir, base(text_file), TWO)
    return workdir


def test_a_text_that_changed_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(make_text(20_000))
    conduct(tmp_path / "w", base(text), TWO)
    text.write_text(make_text(20_000, seed=1))
    more = dataclasses.replace(TWO, seeds=(1, 2, 3))
    workers._corpus.cache_clear()  # as a process that starts later
    with pytest.raises(UserError, match=r"was trained on another text than data\.source="):
        conduct(tmp_path / "w", base(text), more)


def test_a_cell_has_the_vocabulary_of_its_own_tokenizer(text_file):
    made = lambda name: cell_config(base(text_file), TWO, {"seed": 1, "data.tokenizer": name})
    assert made("bytes").model.vocab_size == 257 and made("gpt2").model.vocab_size == 50257


def test_a_damaged_checkpoint_costs_its_wave_the_updates_since(done, text_file, tmp_path):
    """Results are to the bit those of the campaign that nothing befell."""
    workdir = tmp_path / "w"
    shutil.copytree(done, workdir)
    shutil.rmtree(workdir / "outcomes")
    first, second = sorted((workdir / "cells").iterdir())
    for path in (first, second):  # as if killed behind update 16 of 24
        shutil.rmtree(path / "checkpoints/00000024")
    (second / "checkpoints/00000016/meta.json").write_text("{}")
    _, code = conduct(workdir, base(text_file), TWO)
    assert code == EXIT_FINISHED
    assert starts(first)[-1]["from_step"] == starts(second)[-1]["from_step"] < 16
    assert (workdir / "results.json").read_bytes() == (done / "results.json").read_bytes()


def test_a_cell_that_somebody_trains_by_hand_is_waited_for(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    worker = Worker(base(text_file), TWO, tmp_path)
    by_hand = RunDirectory(str(worker.cells.path(worker.check()[0].name)))
    by_hand.lock()
    display, said = Display(), []

    def note(line):
        said.append(line)
        if len(said) == 3:
            by_hand.unlock()

    display.note = note
    began = time.monotonic()
    with StopSignal() as stop:
        assert worker.work(display, stop) == EXIT_FINISHED
    assert all("another process is training in" in line for line in said[:3])
    assert time.monotonic() - began > 0.15
    assert [c["status"] for c in results(tmp_path)["cells"]] == ["finished"] * 2


def test_first_weights_are_named_by_their_update(done, text_file, tmp_path):
    """And a campaign from them is started again like any other."""
    origin = sorted((done / "cells").iterdir())[0]
    with pytest.raises(UserError, match=rf"seed=1: train\.init_from=.*name it: {origin}@24"):
        conduct(tmp_path / "w", base(text_file, train__init_from=str(origin)), TWO)
    config = base(text_file, train__init_from=f"{origin}@24")
    config.model.n_embd, config.model.n_layer = 768, 12  # as in a file that leaves them open
    made = cell_config(config, TWO, {"seed": 1})
    assert made.model.n_embd == 16 and made.model.n_layer == 1
    for _ in range(2):
        conduct(tmp_path / "w", config, TWO)
    found = results(tmp_path / "w")["cells"]
    assert [c["status"] for c in found] == ["finished"] * 2
    assert all(c["start_loss"] < results(done)["cells"][0]["start_loss"] - 0.1 for c in found)


def test_with_patience_the_best_evaluation_counts(done, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(done, workdir)
    cell = sorted((workdir / "cells").iterdir())[0]
    rows = ['{"step": 0, "val/loss": 5.0}', '{"step": 12, "val/loss": 2.0}']
    (cell / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 24, "val/loss": 3.0}']) + "\n")
    cells = Cells(workdir)
    assert cells.judge(cell.name, None, 4.0).loss == 3.0
    config = RunDirectory(str(cell)).read_config()
    config.train.patience = 2
    (cell / "config.json").write_text(config.to_json())
    assert cells.judge(cell.name, None, 4.0).loss == 2.0
    assert write_report(workdir).complete
