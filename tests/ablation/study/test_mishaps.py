"""Studies of tiny models under adverse conditions."""

import dataclasses
import json
import os
import shutil
import signal
import tarfile
import time
from types import SimpleNamespace

import pytest

from gpt2_jax.ablation.report.analysis import analyze
from gpt2_jax.ablation.study import Study, grid
from gpt2_jax.ablation.study import data as study_data
from gpt2_jax.ablation.study import worker as workers
from gpt2_jax.ablation.study.leases import Leases
from gpt2_jax.ablation.study.packing import pack
from gpt2_jax.ablation.study.plan import Plan
from gpt2_jax.ablation.study.store import TrialStore
from gpt2_jax.ablation.study.trials import trial_config
from gpt2_jax.ablation.study.worker import Worker
from gpt2_jax.cli import ablate as command
from gpt2_jax.config import replace, to_json
from gpt2_jax.errors import EXIT_FINISHED, UserError
from gpt2_jax.track.progress import StudyProgress
from gpt2_jax.train.distributed.signals import Stopped, StopSignal
from gpt2_jax.train.storage.rundir import RunDirectory
from tests.ablation.study.small import P, base, results, run_study, starts
from tests.tools import make_text

TWO = Study(grid({P: ("pre_ln",)}), {P: "pre_ln"}, seeds=(1, 2), trials_per_batch=2)


@pytest.fixture(scope="module")
def done(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    run_study(workdir, base(text_file), TWO)
    return workdir


def test_changed_text_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(make_text(20_000))
    run_study(tmp_path / "w", base(text), TWO)
    text.write_text(make_text(20_000, seed=1))
    more = dataclasses.replace(TWO, seeds=(1, 2, 3))
    study_data._open_text.cache_clear()  # as in a new process
    with pytest.raises(UserError, match=r"was trained on another text than data\.source="):
        run_study(tmp_path / "w", base(text), more)


def test_trial_has_the_vocabulary_of_its_own_tokenizer(text_file):
    made = lambda name: trial_config(base(text_file), TWO, {"seed": 1, "data.tokenizer": name})
    assert made("bytes").model.vocab_size == 257 and made("gpt2").model.vocab_size == 50257


def test_batch_repeats_the_steps_after_a_damaged_checkpoint(done, text_file, tmp_path):
    """Results are bitwise equal to those of the uninterrupted study."""
    workdir = tmp_path / "w"
    shutil.copytree(done, workdir)
    shutil.rmtree(workdir / "outcomes")
    first, second = sorted((workdir / "trials").iterdir())
    (second / "checkpoints/00000024/meta.json").write_text("{}")
    _, code = run_study(workdir, base(text_file), TWO)
    assert code == EXIT_FINISHED
    assert starts(first)[-1]["from_step"] == starts(second)[-1]["from_step"] == 16
    assert (workdir / "results.json").read_bytes() == (done / "results.json").read_bytes()


def test_trial_with_lost_checkpoints_fails_and_keeps_its_metrics(done, text_file, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(done, workdir)
    shutil.rmtree(workdir / "outcomes")
    _, second = sorted((workdir / "trials").iterdir())
    shutil.rmtree(second / "checkpoints")
    before = (second / "metrics.jsonl").read_bytes()
    run_study(workdir, base(text_file), TWO)
    ends = [json.loads(path.read_text()) for path in sorted((workdir / "outcomes").iterdir())]
    assert [end["status"] for end in ends] == ["finished", "failed"]
    assert "checkpoints/" in ends[1]["reason"]
    assert (workdir / "results.json").read_bytes() == (done / "results.json").read_bytes()
    assert (second / "metrics.jsonl").read_bytes() == before


def test_unfinished_trial_with_duplicate_rows_is_refused(done, text_file, tmp_path):
    workdir = shutil.copytree(done, tmp_path / "w")
    shutil.rmtree(workdir / "outcomes")
    metrics = sorted((workdir / "trials").iterdir())[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() * 2)
    with pytest.raises(UserError, match=r"seed=2/metrics\.jsonl has step 0 after step 24"):
        Worker(base(text_file), TWO, workdir).check()


def test_worker_waits_for_a_trial_that_another_process_trains(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    worker = Worker(base(text_file), TWO, tmp_path)
    by_hand = RunDirectory(str(worker.store.path(worker.check()[0].name)))
    by_hand.lock()
    display, messages = StudyProgress(), []

    def note(line):
        messages.append(line)
        if len(messages) == 3:
            by_hand.unlock()

    display.note = note
    began = time.monotonic()
    with StopSignal() as stop:
        assert worker.work(display, stop) == EXIT_FINISHED
    assert all("another process is training in" in line for line in messages[:3])
    assert time.monotonic() - began > 0.15
    assert [c["status"] for c in results(tmp_path)["trials"]] == ["finished"] * 2


def test_pretrained_weights_must_name_their_step(done, text_file, tmp_path):
    """A study that starts from them can be continued like any other."""
    origin = sorted((done / "trials").iterdir())[0]
    with pytest.raises(UserError, match=rf"seed=1: train\.init_from=.*{origin}@24"):
        run_study(tmp_path / "w", base(text_file, train__init_from=str(origin)), TWO)
    config = base(text_file, train__init_from=f"{origin}@24")
    # As in a study file that does not set the sizes.
    config = replace(config, {"model.n_embd": 768, "model.n_layer": 12})
    made = trial_config(config, TWO, {"seed": 1})
    assert made.model.n_embd == 16 and made.model.n_layer == 1
    for _ in range(2):
        run_study(tmp_path / "w", config, TWO)
    found = results(tmp_path / "w")["trials"]
    assert [c["status"] for c in found] == ["finished"] * 2
    assert all(c["initial_loss"] < results(done)["trials"][0]["initial_loss"] - 0.1 for c in found)


def test_outcome_with_patience_is_the_best_evaluation(done, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(done, workdir)
    trial = sorted((workdir / "trials").iterdir())[0]
    rows = ['{"step": 0, "val/loss": 5.0}', '{"step": 12, "val/loss": 2.0}']
    (trial / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 24, "val/loss": 3.0}']) + "\n")
    store = TrialStore(workdir)
    assert store.judge(trial.name, None, 4.0).loss == 3.0
    config = replace(RunDirectory(str(trial)).read_config(), {"train.patience": 2})
    (trial / "config.json").write_text(to_json(config))
    assert store.judge(trial.name, None, 4.0).loss == 2.0
    store.write_outcome(trial.name, store.judge(trial.name, None, 4.0))
    assert analyze(Plan(TWO), store).complete


def test_packed_study_continues_on_another_machine(done, text_file, tmp_path, monkeypatch):
    """The text has a different path there, and the results are bitwise the same.

    A lease that plain tar has copied does not block workers, although the clock there is behind.
    """
    workdir = shutil.copytree(done, tmp_path / "here/my [study]")
    ended, begun = sorted((workdir / "trials").iterdir())
    (workdir / "outcomes" / f"{begun.name}.json").unlink()  # as if killed after step 16 of 24
    shutil.rmtree(begun / "checkpoints/00000024")
    owner = {"owner": "x", "host": "here", "pid": 1, "process_start": "1"}
    (workdir / "leases" / f"{begun.name}.9").write_text(json.dumps(owner))
    os.utime(workdir / "leases" / f"{begun.name}.9", (1, 1))
    archive = tmp_path / "x.tar.gz"
    assert pack(workdir, archive) > 5
    shutil.rmtree(workdir)
    with tarfile.open(archive) as file:
        names, owners = file.getnames(), {(m.uname, m.uid) for m in file}
        file.extractall(tmp_path / "there", filter="data")
    assert all(name.split("/")[0] == "my [study]" for name in names) and owners == {("", 0)}
    assert not any("/leases/" in name or name.endswith(".lock") for name in names)
    assert {n.split("/")[2] for n in names if "/checkpoints/" in n} == {begun.name}
    text, moved = shutil.copy(text_file, tmp_path / "moved.txt"), tmp_path / "there/my [study]"
    monkeypatch.setattr("socket.gethostname", lambda: "there")
    (moved / "leases").mkdir()
    (moved / "leases" / f"{begun.name}.9").write_text(json.dumps(owner))
    os.utime(moved / "leases" / f"{begun.name}.9", (time.time() + 3600,) * 2)
    assert run_study(moved, base(text), TWO)[1] == EXIT_FINISHED
    ended, begun = (starts(path) for path in sorted((moved / "trials").iterdir()))
    assert len(ended) == 1 and begun[-1]["from_step"] == 16
    assert (moved / "results.json").read_bytes() == (done / "results.json").read_bytes()


def test_unpackable_study_is_refused(done, tmp_path):
    for out, named in (("x.zip", "must end in"), ("x.tar", "already exists")):
        (tmp_path / "x.tar").write_text("keep")
        with pytest.raises(UserError, match=named):
            pack(done, tmp_path / out)
    assert (tmp_path / "x.tar").read_text() == "keep"
    with pytest.raises(UserError, match="is inside"):
        pack(done, done / "x.tar")
    with pytest.raises(UserError, match=r"study\.json does not exist"):
        pack(tmp_path, tmp_path.parent / "y.tar")
    with Leases(done / "leases") as leases:
        leases.take("trial")
        with pytest.raises(UserError, match="a worker is training trial"):
            pack(done, tmp_path / "z.tar")
    linked = shutil.copytree(done, tmp_path / "linked")
    (linked / "trials").rename(tmp_path / "trials")
    (linked / "trials").symlink_to(tmp_path / "trials")
    with pytest.raises(UserError, match="trials is a link"):
        pack(linked, tmp_path / "z.tar")
    assert not (tmp_path / "z.tar").exists() and not list(tmp_path.glob(".*"))


def test_study_is_checked_without_study_json(done, text_file, tmp_path):
    workdir = shutil.copytree(done, tmp_path / "w")
    (workdir / "study.json").unlink()
    assert len(Worker(base(text_file), TWO, workdir).check()) == 2
    with pytest.raises(UserError, match=r"optimizer\.b2"):
        Worker(base(text_file, optimizer__b2=0.5), TWO, workdir).check()


def test_only_leftovers_are_removed(done, text_file, tmp_path):
    workdir = shutil.copytree(done, tmp_path / "w")
    trial = sorted((workdir / "trials").iterdir())[0]
    names = (".results.json.0123abcd.tmp", "outcomes/.a.json.0123abcd.tmp", "leases/.clock-ab",
             "leases/.a.0.0123abcd.tmp", "report/.losses.png.0123abcd.tmp",
             f"trials/{trial.name}/.run.json.0123abcd.tmp")  # fmt: skip
    (workdir / "report").mkdir()
    for name in (*names, "mine.tmp", ".mine.tmp", "notes.txt"):
        (workdir / name).write_text("")
        os.utime(workdir / name, (1, 1))
    (workdir / ".young.json.0123abcd.tmp").write_text("")  # may be in use
    run_study(workdir, base(text_file), TWO)
    assert not any((workdir / name).exists() for name in names)
    assert {".young.json.0123abcd.tmp", ".mine.tmp", "mine.tmp", "notes.txt"} <= {
        path.name for path in workdir.iterdir()
    }
    assert not list((workdir / "leases").glob(".clock-*"))


def test_checkpoints_are_deleted_without_keep_checkpoints(done, text_file, tmp_path):
    workdir = shutil.copytree(done, tmp_path / "w")
    before = (workdir / "results.json").read_bytes()
    run_study(workdir, base(text_file), dataclasses.replace(TWO, keep_checkpoints=False))
    assert not list(workdir.glob("trials/*/checkpoints"))
    assert (workdir / "results.json").read_bytes() == before
    assert len(list(workdir.glob("trials/*/metrics.jsonl"))) == 2


def test_signal_interrupts_the_overview(monkeypatch):
    """Preparing the text may take minutes."""
    worker = SimpleNamespace(check=lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(command, "_SUBMIT", SimpleNamespace(value=None))
    with pytest.raises(Stopped, match="SIGTERM"), StopSignal() as stop:
        command._work(worker, None, stop)
