"""A study's files that were edited, damaged, lost, or written by another version."""

import json
import shutil
from pathlib import Path

import pytest

from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Study, grid
from gpt2_jax.ablation.study import definition as definitions
from gpt2_jax.ablation.study.definition import Definition
from gpt2_jax.ablation.study.formats import VERSION
from gpt2_jax.ablation.study.packing import pack
from gpt2_jax.ablation.study.plan import Plan
from gpt2_jax.ablation.study.results import write_results
from gpt2_jax.ablation.study.store import TrialStore
from gpt2_jax.ablation.study.worker import Worker
from gpt2_jax.errors import UserError
from gpt2_jax.files import fields_sha256
from tests.ablation.report.test_report import play
from tests.ablation.study.small import base
from tests.tools import tiny

P, N, LR = "placement.preset", "placement.norm_sites", "optimizer.peak_lr"
STUDY = Study(grid({P: ("pre_ln", "rezero"), LR: (2.0**-7,)}), {P: "pre_ln"}, (1, 2))
PLAN = Plan(STUDY)
ONE = "placement=rezero,peak_lr=0.0078125,seed=2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    play(workdir, STUDY)
    assert write_results(workdir, PLAN, TrialStore(workdir)) is None
    return workdir


@pytest.fixture
def study(whole, tmp_path):
    """Returns a copy of a finished study, for damaging it."""
    return shutil.copytree(whole, tmp_path / "study")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lines(path, change):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def edit_unnoticed(path, **changes):
    """Edits a file, and the hash of its content that it contains."""
    fields = json.loads(path.read_text()) | changes
    del fields["sha256"]
    path.write_text(json.dumps(fields | {"sha256": fields_sha256(fields)}))


DAMAGES = {
    "edited loss": lambda o, c: edit(o, loss=1.0),
    "edited status": lambda o, c: edit(o, status="diverged"),
    "truncated": lambda o, c: o.write_bytes(o.read_bytes()[:40]),
    "empty": lambda o, c: o.write_bytes(b""),
    "binary": lambda o, c: o.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda o, c: o.write_text("[]"),
    "no fields": lambda o, c: o.write_text("{}"),
    "newer": lambda o, c: edit(o, format_version=VERSION + 1),
    "no version": lambda o, c: edit(o, format_version=None),
    "rows twice": lambda o, c: lines(c / "metrics.jsonl", lambda x: [*x, x[-1]]),
    "a row less": lambda o, c: lines(c / "metrics.jsonl", lambda x: x[:-1]),
    "rows swapped": lambda o, c: lines(c / "metrics.jsonl", lambda x: [x[0], x[2], x[1]]),
    "no rows": lambda o, c: (c / "metrics.jsonl").unlink(),
    "another config": lambda o, c: edit(c / "config.json", seed=7),
    "no run": lambda o, c: shutil.rmtree(c),
    "older": lambda o, c: edit_unnoticed(o, format_version=VERSION - 1),
    "a wrong type": lambda o, c: edit_unnoticed(o, step="20"),
    "NaN": lambda o, c: edit_unnoticed(o, loss=float("nan")),
    "no hashes": lambda o, c: edit_unnoticed(o, run_files=None),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_outcome_that_does_not_match_its_run_is_refused(study, damage):
    before = (study / "results.json").read_bytes()
    DAMAGES[damage](study / f"outcomes/{ONE}.json", study / "trials" / ONE)
    with pytest.raises(UserError, match=ONE) as refused:
        write_results(study, PLAN, TrialStore(study))
    assert "\n" not in str(refused.value)
    assert (study / "results.json").read_bytes() == before
    with pytest.raises(UserError, match=ONE):
        pack(study, study.parent / "x.tar")
    assert not (study.parent / "x.tar").exists()


@pytest.mark.parametrize("damage", [b"", b'{"complete": tr', b"[]", b"\xff\xfe"])
def test_damaged_results_are_written_again_and_kept(study, damage):
    good = (study / "results.json").read_bytes()
    (study / "results.json").write_bytes(damage)
    assert write_results(study, PLAN, TrialStore(study)) is None
    assert (study / "results.json").read_bytes() == good
    assert [path.read_bytes() for path in study.glob("results.old-*")] == [damage]


def test_edited_results_are_written_again_and_kept(study):
    good, path = (study / "results.json").read_bytes(), study / "results.json"
    stored = json.loads(good)
    stored["trials"][0]["loss"] -= 0.1
    path.write_text(json.dumps(stored))
    write_results(study, PLAN, TrialStore(study))
    assert path.read_bytes() == good
    kept = next(study.glob("results.old-*"))
    assert json.loads(kept.read_text()) == stored


def test_results_of_a_newer_version_are_not_overwritten(study):
    edit(study / "results.json", format_version=VERSION + 1)
    with pytest.raises(UserError, match=rf"results\.json has format_version {VERSION + 1}"):
        write_results(study, PLAN, TrialStore(study))


def test_results_of_an_older_version_are_not_overwritten(study):
    edit(study / "results.json", format_version=VERSION - 1)
    before = (study / "results.json").read_bytes()
    with pytest.raises(UserError, match=rf"results\.json has format_version {VERSION - 1}"):
        write_results(study, PLAN, TrialStore(study))
    assert (study / "results.json").read_bytes() == before


def test_directory_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "campaign.json").write_text("{}")
    for action in (definitions.check_workdir, definitions.read):
        with pytest.raises(UserError, match=r"campaign\.json.*another --workdir"):
            action(tmp_path)


def test_results_are_never_replaced_by_less_complete_ones(study):
    before = (study / "results.json").read_bytes()
    (study / f"outcomes/{ONE}.json").unlink()
    assert ONE in write_results(study, PLAN, TrialStore(study))
    shutil.rmtree(study / "trials")
    shutil.rmtree(study / "outcomes")
    assert "4 trials" in write_results(study, PLAN, TrialStore(study))
    assert (study / "results.json").read_bytes() == before


def test_results_include_the_training_text(study):
    for trial in (study / "trials").iterdir():
        edit(trial / "run.json", corpus="ab" * 32)
    write_results(study, PLAN, TrialStore(study))
    found = json.loads((study / "results.json").read_text())
    assert found["format_version"] == VERSION
    assert found["corpora"] == [
        {"sha256": "ab" * 32, "source": "stdlib", "val_source": None, "val_fraction": 0.1,
         "tokenizer": "bytes"},
    ]  # fmt: skip


def test_duplicate_rows_are_refused(study):
    store = TrialStore(study)
    lines(study / "trials" / ONE / "metrics.jsonl", lambda x: [*x, x[-1]])
    with pytest.raises(UserError, match=r"metrics\.jsonl has step 20 after step 20"):
        store.judge(ONE, None, 3.3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda path: path.write_text(path.read_text()[:100]), "damaged"),
        (lambda path: edit(path, format_version=VERSION + 1), f"format_version {VERSION + 1}"),
        (lambda path: edit(path, format_version=VERSION - 1), f"format_version {VERSION - 1}"),
        (lambda path: edit_unnoticed(path, study={"variants": []}), "damaged"),
        (lambda path: edit_unnoticed(path, base=3), "damaged"),
        (lambda path: edit_unnoticed(path, base={"mesh": {"depth": 1}}), "mesh.depth"),
        (lambda path: path.write_text(path.read_text().replace("0.005", "0.007")), "remove it"),
    ],
)
def test_damaged_study_json_is_a_one_line_error(study, change, named):
    change(study / "study.json")
    with pytest.raises(UserError, match=rf"study\.json.*{named}"):
        definitions.read(study)


def test_directory_of_another_study_is_refused(study):
    at = lambda config, study: Definition("b.py", config, config, study)
    old = definitions.read(study)
    definitions.check_same(study, old)
    more = Study(grid({P: ("pre_ln", "lns"), LR: (2.0**-7,)}), {P: "pre_ln"}, (3, 4))
    definitions.check_same(study, at(old.base, more))  # a changed file
    other = Study(grid({P: ("lns", "deepnorm")}), {P: "lns"})
    with pytest.raises(UserError, match=r"another study, from configs/.*none of the variants"):
        definitions.check_same(study, at(old.base, other))
    changed = configs.replace(old.base, {"optimizer.b2": 0.5})
    with pytest.raises(UserError, match=r"optimizer\.b2 \(was 0\.95, now 0\.5\)"):
        definitions.check_same(study, at(changed, STUDY))
    tokens = Study(STUDY.variants, STUDY.baseline, tokens=1000)
    with pytest.raises(UserError, match="tokens, flops"):
        definitions.check_same(study, at(old.base, tokens))


@pytest.mark.parametrize(
    "variants", [[{P: "post_ln"}, {}, {P: "pre_ln"}], [{P: "post_ln"}, {}, {N: "pre"}]]
)
def test_equal_runs_under_two_names_are_refused(variants, text_file, tmp_path):
    study = Study(variants, {}, range(7))
    study.check()
    with pytest.raises(UserError, match="are the same run"):
        Worker(base(text_file), study, tmp_path).check()


def test_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    names = ("file", "file/below", "x" * 300, "gs://bucket/x")
    for place in [tmp_path / name if "://" not in name else Path(name) for name in names]:
        with pytest.raises(UserError, match=r"--workdir=.*(choose another|shared disk)"):
            definitions.check_workdir(place)
    definitions.check_workdir(tmp_path / "a [b]/c d")
    with pytest.raises(UserError, match=r"study\.json does not exist"):
        definitions.read(tmp_path / ("x" * 300))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


FILES = {
    "raise ValueError('a\\nb')": "ValueError: a b",
    "import sys; sys.exit(0)": "a.py ends the process",
    "def get_config(): pass": r"no get_study\(\)",
    "def get_config(): pass\ndef get_study(): return 3": "must return a Study",
    "def get_config(): pass\ndef get_study(x): return 3": "TypeError",
    "from gpt2_jax.ablation.study import grid\ngrid({'model.n_layer': 4})": "'model.n_layer'",
    "from gpt2_jax.ablate.campaign import Campaign": r"gpt2_jax\.ablation\.study",
    "def get_campaign(): pass": r"get_study\(\)",
    "from gpt2_jax.ablation.study import Study\nStudy([{}], {}, at_once=2)": "trials_per_batch",
    "from gpt2_jax.ablation.study import Search\nSearch(1.0, most=9)": "max_n",
    "from gpt2_jax.ablation.study import Search\nSearch(1.0, contenders=2)": "max_contenders",
    "\0": "SyntaxError|ValueError",
    "x = (": "SyntaxError",
}


@pytest.mark.parametrize("text", FILES)
def test_invalid_study_file_is_a_one_line_error(text, tmp_path):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(UserError, match=FILES[text]) as refused:
        definitions.load(str(tmp_path / "a.py"), tiny())
    assert "\n" not in str(refused.value)


SETTING = """
from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Study, Search, grid
def get_config(): return configs.default()
def get_study():
    variants = grid({"placement.preset": ("pre_ln", "post_ln")})
    return Study(variants, {"placement.preset": "pre_ln"}, search=Search(1e-3), tokens=10**6)
"""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("placement.preset", "post_ln"),
        ("optimizer.peak_lr", 1e-2),  # set by the search
        ("train.steps", 5),  # set by the budget
        ("seed", 3),
        ("track.wandb.name", "mine"),
    ],
)
def test_flag_without_effect_on_any_trial_is_refused(field, value, tmp_path):
    (tmp_path / "a.py").write_text(SETTING)
    config = configs.Config()
    definitions.load(str(tmp_path / "a.py"), config)
    config = configs.replace(config, {field: value})
    with pytest.raises(UserError, match=f"{field} has no effect"):
        definitions.load(str(tmp_path / "a.py"), config)
