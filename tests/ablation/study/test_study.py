"""Whole studies with tiny models, in this process."""

import dataclasses
import subprocess

import pytest

from gpt2_jax import config as configs
from gpt2_jax.ablation.report.page import write_report
from gpt2_jax.ablation.study import Search, Study, grid
from gpt2_jax.ablation.study import worker as workers
from gpt2_jax.ablation.study.definition import Definition, write
from gpt2_jax.ablation.study.overview import overview
from gpt2_jax.ablation.study.plan import known_trials
from gpt2_jax.ablation.study.worker import Worker
from gpt2_jax.errors import EXIT_FINISHED, UserError
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.track.progress import StudyProgress
from gpt2_jax.train.distributed.signals import StopSignal
from gpt2_jax.train.loop import train
from gpt2_jax.train.storage.open_run import open_run
from tests.ablation.study.small import LR, STUDY, P, base, results, run_study, starts


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    worker, code = run_study(workdir, base(text_file))
    assert code == EXIT_FINISHED
    return workdir, worker


def test_every_trial_is_an_ordinary_run(whole):
    workdir, _ = whole
    found = results(workdir)
    assert found["complete"] and len(found["trials"]) == len(list((workdir / "trials").iterdir()))
    assert {c["status"] for c in found["trials"]} == {"finished"}
    for trial in found["trials"]:
        path = workdir / "trials" / trial["name"]
        names = {p.name for p in path.iterdir() if not p.name.startswith(".")}
        assert names == {"config.json", "run.json", "metrics.jsonl", "checkpoints", "loss.png"}
        rows = read_rows(path / "metrics.jsonl")
        assert [row["step"] for row in rows] == [0, 4, 8, 12, 16, 20, 24]
        assert [s for s, _ in trial["curve"]] == [0, 12, 24] and trial["curve"][-1][1] == trial[
            "loss"
        ]
        assert "depth/stream_rms/block_01" in rows[0] and "depth/grad_norm/block_01" in rows[-1]
        assert trial["loss"] < trial["initial_loss"]
        tags = configs.from_json(path / "config.json").track.wandb.tags
        assert tags == (trial["purpose"],)
    opened = open_run(str(path))
    assert opened.step == 24 and opened.config.seed == trial["values"]["seed"]


def test_fresh_seeds_are_shared_and_use_the_best_learning_rate(whole):
    found = results(whole[0])
    for i, variant in enumerate(found["variants"]):
        mine, lr = [t for t in found["trials"] if t["variant"] == i], variant["learning_rate"]
        searched = {t["values"][LR]: t["loss"] for t in mine if t["purpose"] == "search"}
        verdict = [t["values"] for t in mine if t["purpose"] == "verdict"]
        assert lr == min(searched, key=searched.get)
        assert min(searched) < lr < max(searched)
        assert [(v[LR], v["seed"]) for v in verdict] == [(lr, s) for s in (1, 2, 3)]
    assert len(set(searched.values())) == len(searched)


def test_trial_matches_the_same_config_trained_alone(whole, tmp_path):
    """To 1e-5: the compiler orders operations differently if a number is an argument."""
    workdir, _ = whole
    name = results(workdir)["trials"][0]["name"]  # its low learning rate does not amplify rounding
    config = configs.from_json(workdir / "trials" / name / "config.json")
    assert train(config, str(tmp_path / "alone")) == EXIT_FINISHED
    alone = read_rows(tmp_path / "alone" / "metrics.jsonl")
    trial = read_rows(workdir / "trials" / name / "metrics.jsonl")
    for a, b in zip(alone, trial, strict=True):
        assert set(a) == set(b)
        for key in ("train/loss", "val/loss", "train/grad_norm", "depth/stream_rms/block_01"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-5 if "loss" in key else 1e-4), key
    assert alone[-1]["train/loss"] != pytest.approx(alone[1]["train/loss"], rel=1e-2)


@pytest.mark.slow
def test_trial_can_be_extended_as_a_run(whole, tmp_path):
    """A trial has ordinary checkpoints."""
    name = results(whole[0])["trials"][0]["name"]
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole[0] / "trials" / name), str(copy)], check=True)
    config = configs.from_json(copy / "config.json")
    config = configs.replace(config, {"train.steps": 28, "optimizer.schedule": "linear"})
    assert train(config, str(copy)) == EXIT_FINISHED
    assert read_rows(copy / "metrics.jsonl")[-1]["step"] == 28
    assert starts(copy)[-1]["from_step"] == 24


def test_finished_study_trains_nothing(whole, monkeypatch):
    workdir, worker = whole
    monkeypatch.setattr(Worker, "_train", lambda *_: pytest.fail("trained again"))
    before = (workdir / "results.json").stat().st_mtime_ns
    assert run_study(workdir, worker.base)[1] == EXIT_FINISHED
    assert (workdir / "results.json").stat().st_mtime_ns == before


def test_changed_study_file_only_adds_and_drops_trials(whole, tmp_path, monkeypatch):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole[0]), str(workdir)], check=True)
    times = lambda: {p: p.stat().st_mtime_ns for p in workdir.glob("trials/*/metrics.jsonl")}
    before = times()
    changed = dataclasses.replace(STUDY, variants=grid({P: ("pre_ln", "rezero")}), seeds=(1, 2, 4))
    run_study(workdir, whole[1].base, changed)
    after = times()
    assert {p: after[p] for p in before} == before
    new = [p.parent.name for p in after if p not in before]
    assert all("rezero" in name or "seed=4" in name for name in new)
    found = results(workdir)
    assert [v["name"] for v in found["variants"]] == ["placement=pre_ln", "placement=rezero"]
    assert not any("post_ln" in c["name"] or c["values"]["seed"] == 3 for c in found["trials"])


def test_different_base_is_refused(whole, text_file):
    with pytest.raises(UserError, match=r"begun with another config: optimizer.b2 \(was 0.95"):
        run_study(whole[0], base(text_file, optimizer__b2=0.9))
    with pytest.raises(UserError, match=r"train.steps \(was 24, now 48\)"):
        run_study(whole[0], base(text_file, train__steps=48))


def test_directory_with_other_content_is_refused(tmp_path, text_file):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        Worker(base(text_file), STUDY, tmp_path).check()


def test_diverging_trial_is_a_result(text_file, tmp_path):
    rates = {LR: (1e-2, 1e30)}
    study = Study(grid(rates), {LR: 1e-2}, seeds=(1, 2), trials_per_batch=4)
    config = base(text_file, optimizer__max_skipped=3, train__log_every=1)
    _, code = run_study(tmp_path, config, study)
    assert code == EXIT_FINISHED
    found = results(tmp_path)
    assert [c["status"] for c in found["trials"]] == ["finished"] * 2 + ["diverged"] * 2
    wild = found["trials"][2]
    assert wild["step"] < 24 and wild["loss"] is None and "3 steps in a row" in wild["reason"]
    assert str(tmp_path) not in wild["reason"]
    alone = dataclasses.replace(study, variants=grid({LR: (1e-2,)}))
    run_study(tmp_path / "calm", config, alone)
    assert [c["loss"] for c in results(tmp_path / "calm")["trials"]] == [
        c["loss"] for c in found["trials"][:2]
    ]
    text = (write_report(tmp_path), (tmp_path / "report.md").read_text())[1]
    assert "2 of 2 seeds broke at its learning rate" in text


def test_failing_trial_is_tried_twice_and_the_others_continue(text_file, tmp_path, monkeypatch):
    real, tries = workers.open_trial, []

    def broken(name, *rest):
        if "seed=2" in name:
            tries.append(name)
            raise RuntimeError("a cosmic ray")
        return real(name, *rest)

    study = Study(grid({P: ("pre_ln",)}), {P: "pre_ln"}, seeds=(1, 2, 3), trials_per_batch=3)
    monkeypatch.setattr(workers, "open_trial", broken)
    worker, code = run_study(tmp_path, base(text_file), study)
    assert code == EXIT_FINISHED and len(tries) == 2
    status = {c["values"]["seed"]: c["status"] for c in results(tmp_path)["trials"]}
    assert status == {1: "finished", 2: "failed", 3: "finished"}
    found = write_report(tmp_path)
    assert any("1 trial failed (RuntimeError: a cosmic ray)" in line for line in found.warnings)
    assert found.n_failed == 1
    log = (tmp_path / "logs/placement=pre_ln,seed=2.txt").read_text()
    assert log.count("Traceback") == 2  # one per attempt
    again = Worker(base(text_file), study, tmp_path)
    plan = overview(again, again.check())
    assert "expected   nothing" in plan and "failed     1 of them; --retry_failed" in plan
    monkeypatch.undo()
    assert worker.store.forget_failures(known_trials(worker.plan, worker.store)[0]) == 1
    run_study(tmp_path, base(text_file), study)
    assert [c["status"] for c in results(tmp_path)["trials"]] == ["finished"] * 3


@pytest.mark.parametrize(
    "changes",
    [{"train__patience": 2}, {"train__init_from": "runs/x"}, {"placement__preset": "admin"}],
)
def test_trials_that_cannot_be_vectorized_train_alone(whole, text_file, changes):
    _, worker = whole
    made = lambda **more: configs.resolve(base(text_file, **more), 257)
    assert worker.width(made()) == 2
    assert worker.width(made(**changes)) == 1


def test_programs_are_no_wider_than_the_trials_they_can_train(text_file, tmp_path):
    """Learning rates and seeds are arguments of a program; each placement has its own program."""
    apart = {P: ("pre_ln", "post_ln")}
    for axes, search, expected in (
        (apart, None, 3),
        (apart | {LR: (1e-3, 1e-2)}, None, 6),
        (apart, Search(1e-3, n=4, seeds=(0, 9)), 4),
        ({P: ("pre_ln",)}, Search(1e-3, n=8, seeds=(0, 9, 10)), 8),
    ):
        study = Study(grid(axes), {}, seeds=(1, 2, 3), search=search, trials_per_batch=16)
        worker = Worker(base(text_file), study, tmp_path)
        assert {worker.width(worker.config(trial)) for trial in worker.check()} == {expected}


@pytest.mark.slow
def test_trials_with_data_dependent_initial_values_train_alone(text_file, tmp_path):
    study = Study(grid({P: ("pre_ln", "admin")}), {P: "pre_ln"}, seeds=(1, 2), trials_per_batch=2)
    run_study(tmp_path, base(text_file), study)
    found = results(tmp_path)
    assert [c["status"] for c in found["trials"]] == ["finished"] * 4
    assert "validation loss" in (tmp_path / "logs/placement=admin,seed=1.txt").read_text()


def test_study_resumes_after_a_signal(text_file, tmp_path, whole, monkeypatch):
    """Its trials are bitwise equal to those of an uninterrupted study."""
    one, config = dataclasses.replace(STUDY, variants=STUDY.variants[:1]), base(text_file)
    workdir = tmp_path / "w"
    write(workdir, Definition("a.py", config, config, one))
    monkeypatch.setattr(
        "gpt2_jax.ablation.study.trial_batch.STEPS_PER_DISPATCH", 5
    )  # more kinds of pauses
    n = 0
    while True:
        n += 1
        with StopSignal() as stop:
            display, seen = StudyProgress(), []

            def advance(updates, losses, stop=stop, seen=seen, n=n):
                seen.append(updates)
                if len(seen) == 7 + n % 5:
                    stop.requested = "SIGTERM"

            display.advance = advance
            if Worker(config, one, workdir).work(display, stop) == EXIT_FINISHED:
                break
            assert stop.requested and n < 50
    assert n > 3
    expected = [trial for trial in results(whole[0])["trials"] if trial["variant"] == 0]
    assert results(workdir)["trials"] == expected and len(expected) > 5
    steps = [s["from_step"] for p in (workdir / "trials").iterdir() for s in starts(p)]
    assert any(0 < step < 24 for step in steps)
    assert not list((workdir / "trials").glob("*/checkpoints/*.partial"))
