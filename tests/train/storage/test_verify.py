"""Run directories with lost, damaged, replaced or misplaced files."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from gpt2_jax import config as configs
from gpt2_jax.data.dataset import open_dataset
from gpt2_jax.errors import UserError
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from gpt2_jax.train.storage.checkpoint import restore_params
from gpt2_jax.train.storage.checkpoint_ref import CheckpointRef, find_checkpoint
from gpt2_jax.train.storage.checksums import SUMS, render_sums
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.train.storage.rundir import INFO_TYPES, RunDirectory
from gpt2_jax.train.storage.verify import find_resume_point
from tests.runs import config

STEPS = {"train__steps": 12, "train__log_every": 2, "train__eval_every": 4, "mesh__data": 1}
STEPS |= {"train__checkpoint_every": 4, "train__eval_tokens": 24, "train__sample_tokens": 0}


@pytest.fixture(scope="module")
def made(text_file):
    return config(text_file, **STEPS)


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Two finished runs of one config, which differ only in their ids and times."""
    folder = tmp_path_factory.mktemp("verify")
    for name in ("ours", "theirs"):
        assert loop.train(made, str(folder / name)) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs / "ours", tmp_path / "run")


def copy_runs(runs, folder):
    """Returns a copy of our run, next to a link to theirs."""
    (folder / "theirs").symlink_to(runs / "theirs")
    return shutil.copytree(runs / "ours", folder / "run")


def checkpoint(run, step):
    return run / "checkpoints" / f"{step:08d}"


def change(path, **fields):
    """Changes fields of a JSON file; None removes a field."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def change_meta(run, step, **fields):
    """Changes a checkpoint's meta.json, and updates its checksums."""
    folder = checkpoint(run, step)
    change(folder / "meta.json", **fields)
    (folder / SUMS).write_text(render_sums(folder))


def lines(run, f):
    path = run / "metrics.jsonl"
    path.write_text("".join(f(path.read_text().splitlines(keepends=True))))


def content(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", INFO_TYPES)
def test_run_json_field_of_the_wrong_type_is_named(tmp_path, name):
    (tmp_path / "run.json").write_text(json.dumps({name: 0.5}))
    with pytest.raises(UserError, match=f"run.json is damaged: {name}="):
        RunDirectory(str(tmp_path)).read_info()


def test_unchanged_run_resumes_at_its_last_step(run):
    assert find_resume_point(RunDirectory(str(run))).step == 12
    info = json.loads((run / "run.json").read_text())
    for step in (8, 12):
        meta = json.loads((checkpoint(run, step) / "meta.json").read_text())
        assert meta["run_id"] == info["run_id"] and meta["format_version"] == 2
        assert meta["config"] == json.loads((run / "config.json").read_text())
        assert (meta["corpus"], meta["tokenizer"]) == (info["corpus"], info["tokenizer"])
        assert meta["rows"]["last"] == step


# Changes to a run, and what the error names.
REFUSED = {
    "checkpoints moved": (lambda r: (r / "checkpoints").rename(r.parent / "old"), "checkpoints/"),
    "checkpoints emptied": (
        lambda r: (shutil.rmtree(r / "checkpoints"), (r / "checkpoints").mkdir()),
        "checkpoints/",
    ),
    "checkpoints unmounted": (
        lambda r: (shutil.rmtree(r / "checkpoints"), (r / "checkpoints").symlink_to("nowhere")),
        "checkpoints",
    ),
    "checkpoints a file": (
        lambda r: (shutil.rmtree(r / "checkpoints"), (r / "checkpoints").write_text("")),
        "checkpoints",
    ),
    "all damaged": (
        lambda r: [(checkpoint(r, s) / "meta.json").write_text("{}") for s in (8, 12)],
        "00000012 is damaged",
    ),
    "all set aside": (
        lambda r: [checkpoint(r, s).rename(f"{checkpoint(r, s)}.damaged") for s in (8, 12)],
        "00000008.damaged",
    ),
    "a copy": (lambda r: shutil.copytree(checkpoint(r, 8), checkpoint(r, 50)), "00000050"),
    "an older copy": (lambda r: shutil.copytree(checkpoint(r, 8), checkpoint(r, 3)), "00000003"),
    "renamed": (lambda r: checkpoint(r, 12).rename(checkpoint(r, 14)), "00000014"),
    "a newer checkpoint": (lambda r: change_meta(r, 12, format_version=99), "format_version 99"),
    "no identity": (lambda r: change_meta(r, 12, run_id=None), "00000012"),
    "an older format": (lambda r: change_meta(r, 12, format_version=None), "format_version 1"),
    "another's checkpoint": (
        lambda r: (
            shutil.rmtree(checkpoint(r, 12)),
            shutil.copytree(r.parent / "theirs" / "checkpoints" / "00000012",
                            checkpoint(r, 12)),
        ),
        "00000012",
    ),
    "run.json lost": (lambda r: (r / "run.json").unlink(), "run.json"),
    "run.json {}": (lambda r: (r / "run.json").write_text("{}"), "run.json"),
    "run.json empty": (lambda r: (r / "run.json").write_text(""), "run.json"),
    "run.json a list": (lambda r: (r / "run.json").write_text("[1]"), "run.json"),
    "run.json a folder": (
        lambda r: ((r / "run.json").unlink(), (r / "run.json").mkdir()),
        "run.json",
    ),
    "no starts": (lambda r: change(r / "run.json", starts=None), "starts"),
    "starts of another type": (lambda r: change(r / "run.json", starts=5), "starts"),
    "a start of another type": (lambda r: change(r / "run.json", starts=[1]), "starts"),
    "versions of another type": (
        lambda r: change(r / "run.json", starts=[{"versions": "1.0"}]),
        "starts",
    ),
    "counts of another type": (lambda r: change(r / "run.json", flops="many"), "flops"),
    "no run_id": (lambda r: change(r / "run.json", run_id=None), "run_id"),
    "newer": (lambda r: change(r / "run.json", format_version=3), "format_version 3"),
    "another corpus": (lambda r: change(r / "run.json", corpus="0" * 64), "corpus"),
    "another tokenizer": (lambda r: change(r / "run.json", tokenizer="x"), "tokenizer"),
    "config.json lost": (lambda r: (r / "config.json").unlink(), "config.json"),
    "another seed": (lambda r: change(r / "config.json", seed=5), "seed"),
    "a tokenizer of another kind": (
        lambda r: change(
            r / "config.json",
            data={**json.loads((r / "config.json").read_text())["data"], "tokenizer": "ids:257"},
        ),
        "data.tokenizer",
    ),
    "metrics lost": (lambda r: (r / "metrics.jsonl").unlink(), "metrics.jsonl"),
    "metrics emptied": (lambda r: (r / "metrics.jsonl").write_text(""), "0 of the 7 rows"),
    "metrics a folder": (
        lambda r: ((r / "metrics.jsonl").unlink(), (r / "metrics.jsonl").mkdir()),
        "metrics.jsonl",
    ),
    "metrics a pipe": (
        lambda r: ((r / "metrics.jsonl").unlink(), os.mkfifo(r / "metrics.jsonl")),
        "metrics.jsonl",
    ),
    "metrics halved": (lambda r: lines(r, lambda x: x[:3]), "3 of the 7 rows"),
    "a row lost": (lambda r: lines(r, lambda x: x[:1] + x[2:]), "6 of the 7 rows"),
    "a row twice": (lambda r: lines(r, lambda x: x[:2] + x[1:]), "row 3"),
    "rows swapped": (lambda r: lines(r, lambda x: [x[1], x[0], *x[2:]]), "row 2"),
    "a row appended": (lambda r: lines(r, lambda x: [*x, x[1]]), "row 8"),
    "a step that is true": (lambda r: lines(r, lambda x: ['{"step": true}\n', *x]), "line 1"),
    "another value": (
        lambda r: lines(r, lambda x: [x[0].replace("val/acc", "val/acx"), *x[1:]]),
        "metrics.jsonl",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_inconsistent_files_are_refused_by_name_and_left_unchanged(runs, tmp_path, name):
    run = copy_runs(runs, tmp_path)
    harm, named = REFUSED[name]
    harm(run)
    before = content(run)
    with pytest.raises(UserError) as caught:
        find_resume_point(RunDirectory(str(run)))
    assert named in str(caught.value) and caught.value.exit_code == 2
    assert content(run) == before


HARMLESS = {
    "a blank line": lambda r: lines(r, lambda x: [*x[:2], "\n", *x[2:], "\n"]),
    "a torn line": lambda r: lines(r, lambda x: [*x, '{"step": 14, "tr']),
    "rows past the checkpoint": lambda r: lines(r, lambda x: [*x, '{"step": 14}\n']),
    "a note": lambda r: (r / "notes.txt").write_text("mine"),
    "another frequency": lambda r: change(
        r / "config.json",
        train={**json.loads((r / "config.json").read_text())["train"], "log_every": 3},
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_changes_are_accepted(run, name):
    HARMLESS[name](run)
    assert find_resume_point(RunDirectory(str(run))).step == 12


def test_older_checkpoint_is_used_instead_of_a_damaged_one(run):
    (checkpoint(run, 12) / "meta.json").write_text("{}")
    standing = find_resume_point(RunDirectory(str(run)))
    assert standing.step == 8 and [step for step, _ in standing.damaged] == [12]
    assert checkpoint(run, 12).exists()  # only training sets it aside
    (checkpoint(run, 8) / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"00000012 is damaged.*00000008 is damaged"):
        find_resume_point(RunDirectory(str(run)))


@pytest.mark.parametrize("harm", ["delete", "braces", "no starts", "nothing"])
@pytest.mark.parametrize("field", ["seed", "optimizer__peak_lr", "train__batch_size"])
def test_run_does_not_continue_with_another_config(run, text_file, harm, field):
    if harm == "delete":
        (run / "run.json").unlink()
    elif harm == "braces":
        (run / "run.json").write_text("{}")
    elif harm == "no starts":
        change(run / "run.json", starts=None)
    before = content(run)
    with pytest.raises(UserError, match=field.replace("__", ".")):
        loop.train(config(text_file, **STEPS | {field: 4}), str(run))
    assert content(run) == before


def test_run_killed_before_its_first_checkpoint_starts_again(runs, run, made):
    """Its checkpoint was complete except for its name."""
    checkpoint(run, 8).rename(f"{checkpoint(run, 8)}.partial")
    shutil.rmtree(checkpoint(run, 12))
    lines(run, lambda x: x[:5])
    change(run / "run.json", first_checkpoint=8)
    assert find_resume_point(RunDirectory(str(run))).step is None
    assert loop.train(made, str(run)) == 0
    strip = lambda rows: [{k: v for k, v in r.items() if k[:5] != "perf/"} for r in rows]
    assert strip(read_rows(run / "metrics.jsonl")) == strip(
        read_rows(runs / "ours" / "metrics.jsonl")
    )
    assert json.loads((run / "run.json").read_text())["first_checkpoint"] == 4
    shutil.rmtree(run / "checkpoints")
    change(run / "run.json", first_checkpoint=None)  # as if killed before the first was announced
    assert find_resume_point(RunDirectory(str(run))).step is None


def test_start_killed_before_training_does_not_fix_the_text(made, tmp_path):
    """It had written run.json and config.json, and now the text is different."""
    directory = RunDirectory(str(tmp_path / "run"))
    directory.path.mkdir()
    data = made.data
    corpus, tokenizer = open_dataset(data.source, None, data.tokenizer, data.val_fraction)
    directory.claim(made, corpus, tokenizer)
    other = SimpleNamespace(content_hash=lambda: "0" * 64, source_hashes=dict)
    directory.check_data(other, tokenizer, "data.source=other.txt")
    directory.change_info(starts=[{}])
    directory.check_data(corpus, tokenizer, f"data.source={data.source}")
    with pytest.raises(UserError, match=r"another text than data\.source=other\.txt"):
        directory.check_data(other, tokenizer, "data.source=other.txt")


@pytest.mark.parametrize("newest", ["complete", "incomplete"])
def test_a_copy_made_while_the_run_continued_can_be_resumed(
    runs, made, tmp_path, monkeypatch, newest
):
    """As to object storage: the checkpoints before step 12, and all other files at the end."""
    ours, copy, save = tmp_path / "run", tmp_path / "copy", loop.Checkpoints.save

    def copy_checkpoints(self, step, state, val_loss):
        self.wait()
        if step == 12:
            shutil.copytree(ours / "checkpoints", copy / "checkpoints")
        save(self, step, state, val_loss)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", copy_checkpoints)
        assert loop.train(made, str(ours)) == 0
    other = shutil.ignore_patterns("checkpoints", ".lock")
    shutil.copytree(ours, copy, ignore=other, dirs_exist_ok=True)
    if newest == "incomplete":
        next((checkpoint(copy, 8) / "state").rglob("d/*")).unlink()
    assert loop.train(made, str(copy)) == 0
    strip = lambda rows: [{k: v for k, v in r.items() if "perf" not in k} for r in rows]
    assert strip(read_rows(copy / "metrics.jsonl")) == strip(read_rows(runs / "ours/metrics.jsonl"))
    assert {"00000008", "00000012"} <= {path.name for path in (copy / "checkpoints").iterdir()}


def test_leftovers_of_a_kill_are_removed(run, made):
    for name in (".run.json.0123abcd.tmp", "checkpoints/00000014.partial", "checkpoints/1.deleted"):
        (run / name).mkdir() if "checkpoints" in name else (run / name).write_text("{")
    (run / ".mine.tmp").write_text("")
    (run / "loss.png").unlink()
    assert loop.train(made, str(run)) == 0
    assert {p.name for p in run.iterdir() if p.name[0] == "."} == {".lock", ".mine.tmp"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"00000008", "00000012"}


@pytest.mark.parametrize(
    "changes",
    [
        {"data.source": "nowhere.txt"},
        {"data.tokenizer": "nowhere.json"},
        {"train.init_from": "nowhere"},
        {"optimizer.frozen": ("nothing",)},
        {"train.batch_size": 0},
        {"model.vocab_size": 5},
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_refused_run_leaves_no_files(made, tmp_path, changes, exists):
    given = configs.replace(made, changes)
    if exists:
        (tmp_path / "a" / "b").mkdir(parents=True)
    before = content(tmp_path)
    with pytest.raises(UserError):
        loop.train(given, str(tmp_path / "a" / "b"))
    assert content(tmp_path) == before


def test_failed_compilation_leaves_no_files(made, tmp_path, monkeypatch):
    def fail(config, **options):
        assert (tmp_path / "a" / "b").is_dir()
        raise UserError("too little memory")

    monkeypatch.setattr(loop, "compile_step", fail)
    with pytest.raises(UserError, match="too little memory"):
        loop.train(made, str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


READ_REFUSED = [
    "a copy", "renamed", "no identity", "another's checkpoint", "run.json empty", "newer",
    "another corpus", "config.json lost", "another seed", "all damaged", "checkpoints a file",
    "an older format",
    "a tokenizer of another kind",
]  # fmt: skip


@pytest.mark.parametrize("name", READ_REFUSED)
def test_checkpoint_in_the_wrong_directory_is_not_evaluated(runs, tmp_path, name):
    run = copy_runs(runs, tmp_path)
    REFUSED[name][0](run)
    with pytest.raises(UserError):
        find_checkpoint(CheckpointRef(str(run)))


def test_weights_can_be_read_without_run_json_with_a_warning(run, capsys):
    (run / "run.json").unlink()
    assert find_checkpoint(CheckpointRef(str(run))) == 12
    assert "run.json" in capsys.readouterr().err
    change(run / "config.json", seed=5)
    with pytest.raises(UserError, match="seed"):
        find_checkpoint(CheckpointRef(str(run)))
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        open_run(str(run), devices=1)


@pytest.mark.parametrize("step", [None, "best"])
def test_next_checkpoint_is_used_if_training_deletes_one(run, monkeypatch, step):
    tried = []

    def rotate(folder, *rest):
        tried.append(folder.name)
        if len(tried) == 1:
            shutil.rmtree(folder)
            raise FileNotFoundError(folder)
        return restore_params(folder, *rest)

    monkeypatch.setattr("gpt2_jax.train.storage.open_run.restore_params", rotate)
    assert open_run(str(run), step, devices=1).step == 8
    assert tried == ["00000012", "00000008"]
