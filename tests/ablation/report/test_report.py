"""Reports of hand-written studies with known results."""

import dataclasses
import json
import math
import os
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from gpt2_jax.ablation.report.analysis import analyze, labels
from gpt2_jax.ablation.report.markup import escaped
from gpt2_jax.ablation.report.page import page, write_report
from gpt2_jax.ablation.report.text import markdown
from gpt2_jax.ablation.report.variant import _blocks
from gpt2_jax.ablation.report.verdicts import verdicts
from gpt2_jax.ablation.report.wandb_report import COLUMNS, log_report, offline_hint
from gpt2_jax.ablation.statistics import Arm, compare, detectable, median_interval, seeds_for
from gpt2_jax.ablation.study import Search, Study, crossed, grid
from gpt2_jax.ablation.study.definition import Definition, write
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.overview import trials_left
from gpt2_jax.ablation.study.plan import Plan, known_trials
from gpt2_jax.ablation.study.results import collect, write_results
from gpt2_jax.ablation.study.store import TrialStore
from gpt2_jax.config import replace, to_json
from gpt2_jax.errors import UserError
from tests.tools import ROOT, run, tiny

P, LR = "placement.preset", "optimizer.peak_lr"
NOISE = [0.010, -0.012, 0.004, 0.007, -0.009]
OFFSETS = {"pre_ln": 0.0, "deepnorm": -0.1, "post_ln": 0.05, "rezero": 0.0}
TWO = grid({P: ("pre_ln", "rezero")})
KILLED, YOUNG = ".report.md.0123abcd.tmp", ".report.md.4567cdef.tmp"
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
# Seed 10 has no variant-specific noise that could change which learning rate is best.
SEARCH = Search(2.0**-8, n=3, seeds=(10,), max_contenders=1)
STUDY = Study(grid({P: tuple(OFFSETS)}), {P: "pre_ln"}, SEEDS, SEARCH, smallest_difference=0.0002)


def loss(trial):
    """A parabola around 2**-7, plus noise shared by all variants and variant-specific noise."""
    name, seed = trial.values.get(P, "pre_ln"), trial.seed
    rate = math.log2(trial.values.get(LR, 2.0**-7))
    if name == "post_ln" and rate > -7:
        return math.inf
    k = 1 + list(OFFSETS).index(name)
    own = 0.3 * NOISE[(seed * k + k) % 5]
    return 2.0 + OFFSETS[name] + 0.2 * (rate + 7) ** 2 + NOISE[seed % 5] + own


def play(workdir, study=STUDY, trials=None, of=loss):
    """Writes a study's directory as if its trials had been trained; default: all of them."""
    base = replace(tiny(), {"data.source": "<script>alert('x')</script> | a_b"})
    write(workdir, Definition("configs/my_|_study.py", base, base, study))
    plan, kept = Plan(study), TrialStore(workdir)
    while True:
        known, outcomes = known_trials(plan, kept)
        todo = [c for c in known if c.name not in outcomes]
        todo = todo if trials is None else todo[: trials - len(outcomes)]
        if not todo:
            return plan, kept
        for trial in todo:
            end(workdir, kept, trial, of(trial))


def end(workdir, kept, trial, value):
    path = workdir / "trials" / trial.name
    path.mkdir(parents=True)
    steps = {0: 5.0, 10: value + 0.5, 20: value}
    blocks = lambda step: {
        f"depth/{name}/block_0{l}": 1.0 + l + step / 10
        for name in ("stream_rms", "attn_ratio", "grad_norm")
        for l in (1, 2)
    }
    rows = [
        {"step": s, "val/loss": v, "perf/tokens_per_sec": 1000.0, **(blocks(s) if s != 10 else {})}
        for s, v in steps.items()
    ]
    good = math.isfinite(value)
    lines = rows if good else rows[:1]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    start = {"commit": "abc", "python": "3.11", "versions": {"jax": "1"}}
    larger = 110 if trial.values.get(P) == "rezero" else 100
    info = {
        "parameters": larger, "flops": 6000 * larger, "flops_per_token": 6 * larger,
        "devices": ["cpu"], "peak_bytes_per_device": None, "corpus": "c0ffee", "starts": [start],
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(info))
    config = tiny(seed=trial.seed, placement__preset=trial.values.get(P, "pre_ln"))
    config = replace(config, {"optimizer.peak_lr": trial.values.get(LR, 2.0**-7)})
    (path / "config.json").write_text(to_json(config))
    status = "finished" if good else "diverged"
    outcome = Outcome(
        status, 20 if good else 7, value if good else None, 5.0, 3.3, None if good else "wild"
    )
    kept.write_outcome(trial.name, outcome)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report")
    play(workdir)
    for name in (KILLED, YOUNG):
        (workdir / name).write_text("")
    os.utime(workdir / KILLED, (1, 1))
    return workdir, write_report(workdir), (workdir / "report.md").read_text()


def test_leftovers_of_a_killed_report_are_deleted(reported):
    assert not (reported[0] / KILLED).exists() and (reported[0] / YOUNG).exists()


def row(text, name, of="## Verdict"):
    section = text.partition(of)[2].partition("\n## ")[0] if of else text
    line = next(x for x in section.splitlines() if x.startswith(f"| {name} "))
    return [word.strip() for word in line.strip("|").split("|")]


def test_verdicts_match_the_losses(reported):
    _, found, text = reported
    of = lambda name: list(found.variant(name).losses.values())
    others = [name for name in OFFSETS if name != "pre_ln"]
    expected = compare({n: (Arm(of(n)), Arm(of("pre_ln"))) for n in others}, smallest=0.0002)
    for name, comparison in expected.items():
        line = row(text, name.replace("_", r"\_"))
        middle, low, high = median_interval(of(name))
        assert line[2:5] == [f"{middle:.4f}", f"{low:.4f} to {high:.4f}", "0 of 9"]
        assert line[5].startswith(f"{comparison.difference.estimate:+.4f} (")
        assert line[6] == f"{comparison.adjusted_p:.3g}"
        low, high = seeds_for(0.0002, comparison.sd, 9)
        assert line[8] == (f"{low} to {high}" if comparison.is_open else "–")
    words = {n: row(text, n.replace("_", r"\_"))[7] for n in OFFSETS}
    assert words == {
        "deepnorm": "**better**", "pre_ln": "baseline", "post_ln": "**worse**",
        "rezero": "**not distinguishable** at this budget",
    }  # fmt: skip
    assert row(text, r"pre\_ln")[1] == "0.007812"


def test_learning_rates_and_divergence_are_reported(reported):
    _, found, text = reported
    section = "## Learning rates"
    assert row(text, r"post\_ln", section)[1:3] == ["0.007812", "0.007812"]
    assert row(text, r"pre\_ln", section)[1:3] == ["0.007812", "≥ 0.01562"]
    assert "below the unigram entropy (3.300 nats)" in text
    scores = found.variant("post_ln").search.scores
    assert scores[2] == math.inf
    clipped = [min(score, 5.0) for score in scores.values()]
    expected = sum(clipped) / 3 - min(clipped)
    assert row(text, r"post\_ln", section)[3] == f"{expected:.3f}"


def test_limitations_are_listed(reported):
    _, found, text = reported
    section = text.partition("## Limitations")[2].partition("\n## ")[0]
    assert r"rezero has +10.0% parameters compared with pre\_ln" in section
    assert r"rezero takes +10.0% FLOPs compared with" in section
    assert "one text, one budget" in section and "not finished" not in section
    assert found.complete


def test_variants_have_equation_citation_difference_and_command(reported):
    _, _, text = reported
    section = text.partition("### deepnorm")[2].partition("\n### ")[0]
    assert "Wang et al. 2022" in section and "    x' = N(" in section
    assert "`placement.preset` = `deepnorm` (baseline: `pre_ln`)" in section
    assert "set by its placement: `norm_sites` = `post` (`pre`); " in section
    assert "`init` = `xavier`" in section and "the whole recipe" in text
    assert "python train.py '--config=configs/my_|_study.py'" in section
    assert "--config.placement.preset=deepnorm" in section and "--config.seed=1" in section
    assert "Commit: abc." in text and "jax 1" in text


def test_figures_are_written_and_captioned(reported):
    workdir, _, text = reported
    names = re.findall(r"\]\((report/\w+\.png)\)", text)
    assert names == [
        f"report/{n}.png"
        for n in ("losses", "learning_rates", "curves", "depth_start", "depth_end")
    ]
    for name in names:
        picture = (workdir / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 5000


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_html_is_one_file_with_escaped_text(reported):
    workdir, _, _ = reported
    reader = Reader()
    reader.feed((workdir / "report.html").read_text())
    assert "script" not in reader.tags
    assert "<script>alert('x')</script> | a_b" in reader.text
    assert len(reader.links) == 5
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert reader.tags.count("table") == 4
    raw = Reader()  # the page escapes what the text did not
    raw.feed(page("# <b>x</b>\n\n<script>alert('y')</script>\n", workdir))
    assert not {"script", "b"} & set(raw.tags) and "<script>alert('y')</script>" in raw.text


def test_shared_settings_and_detectable_differences_are_stated(reported):
    _, found, text = reported
    assert "Warm-up of 0 steps; weight decay 0.1 x learning rate per step" in text
    assert "; 9.1 to 10 tokens per parameter." in text
    spread = sorted(v.comparison.sd for v in found.variants if v.comparison)[1]
    effect = detectable(9, 3)
    assert f"by {effect:.2f} standard deviations" in text and f"{effect * spread:.3f} nats" in text
    assert "All variants share: warm-up, weight decay" in text
    assert "number of training tokens" in text
    assert "`c0ffee`" in text


def test_warm_up_fraction_refers_to_the_budget(reported):
    """The base has 20 steps, the runs have 1,000 tokens: 10 steps of 8 x 12."""
    _, found, _ = reported
    base = tiny(optimizer__warmup_steps=None, optimizer__warmup_fraction=0.5)
    text = markdown(found, Definition("a.py", base, base, STUDY), {})
    assert "Warm-up of 5 steps" in text


@pytest.mark.parametrize("trials", [0, 9, 29])
def test_an_unfinished_study_has_a_report(tmp_path, trials):
    play(tmp_path, trials=trials)
    found = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert not found.complete and f"{trials} of {found.n_trials} known trials done" in text
    assert "The study is not finished" in text
    assert "**better**" not in text or trials == 29
    assert json.loads((tmp_path / "results.json").read_text())["complete"] is False
    assert (tmp_path / "report.html").exists()


def test_best_learning_rate_at_the_end_of_the_range_is_reported(tmp_path):
    def falling(trial):
        return 3.0 - 0.01 * math.log2(trial.values[LR])

    study = Study(TWO, {P: "pre_ln"}, (1,), dataclasses.replace(SEARCH, max_n=5))
    play(tmp_path, study, of=falling)
    warnings = " ".join(write_report(tmp_path).warnings)
    assert "pre_ln: the search ended at its limit of 5 learning rates" in warnings
    assert "1 seed is too few: 6 are needed" in warnings
    assert "With fewer than 4 search seeds" in warnings


def test_study_without_a_search(tmp_path):
    study = Study(grid({P: ("pre_ln", "rezero"), LR: (2.0**-7,)}), {P: "pre_ln"}, (1, 2))
    play(tmp_path, study)
    found = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "There was no search" in text and found.complete
    assert found.variants[0].name == "pre_ln"  # all variants have the same learning rate


def test_changes_to_a_preset_are_reported(tmp_path):
    norms = ("pre", "pre+qk | pre")
    study = Study(grid({"placement.norm_sites": norms}), {"placement.norm_sites": "pre"}, (1, 2))
    play(tmp_path, study)
    write_report(tmp_path)
    section = (tmp_path / "report.md").read_text().partition("### pre+qk")[2]
    assert "here it is changed to `norm_sites` = `pre+qk | pre`." in section
    reader = Reader()
    reader.feed((tmp_path / "report.html").read_text())
    assert "\npre+qk | pre\n" in reader.text and "&#124;" not in reader.text


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ([{P: "pre_ln", "model.n_layer": 4}, {P: "lns", "model.n_layer": 4}], ["pre_ln", "lns"]),
        (
            crossed(
                grid({"model.n_layer": (4, 8)}),
                [{P: "pre_ln"}, {P: "completep", "placement.base_n_layer": 4}],
            ),
            [
                f"n_layer={n},placement={p}"
                for n in (4, 8)
                for p in ("pre_ln", "completep,base_n_layer=4")
            ],
        ),
        ([{}], ["base"]),
    ],
)
def test_names_have_only_the_fields_that_distinguish_variants(axes, names):
    assert labels(Study(axes, {P: "pre_ln"} if P in axes[0] else {})) == names


def test_diverged_baseline_seeds_count_as_broken(tmp_path):
    def wild(trial):
        broken = trial.values[P] == "pre_ln" and trial.seed == 2
        return math.inf if broken else loss(trial)

    study = Study(grid({P: ("pre_ln", "rezero"), LR: (2.0**-7,)}), {P: "pre_ln"}, (1, 2, 3))
    play(tmp_path, study, of=wild)
    found = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert row(text, r"pre\_ln")[4] == "1 of 3" and row(text, r"pre\_ln")[7] == "baseline"
    assert row(text, "rezero")[7] == "**inconclusive: too few seeds**"
    assert any("pre_ln: 1 of 3 seeds broke at its learning rate" in line for line in found.warnings)


def broken_at_random(trial):
    return 3.3 if trial.values[P] == "rezero" and 3 < trial.seed < 10 else loss(trial)


def test_seeds_no_better_than_unigrams_count_as_broken(tmp_path):
    """Six of nine end at the unigram entropy; the variant is still compared."""
    play(tmp_path, of=broken_at_random)
    found = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    line = row(text, "rezero")
    assert line[2] == "inf" and line[4].startswith("6 of 9: less stable (p 0.027")
    assert all(v.comparison.broken_p == 1 for v in found.variants[1:3])
    assert any("rezero: 6 of 9 seeds broke" in w and "30% to 93%" in w for w in found.warnings)
    assert row(text, "deepnorm")[7] == "**better**"


def test_report_lists_the_learning_rates_of_a_verdict(tmp_path):
    """Two learning rates are equally good for the baseline, so both get the verdict's seeds."""

    def of(trial):
        rate = math.log2(trial.values[LR])
        if trial.values[P] == "pre_ln" and rate == -6:
            return loss(trial) - 0.2 + 0.001 * (-1) ** trial.seed
        return loss(trial)

    search = Search(2.0**-8, n=3, seeds=(10, 11, 12, 13))
    play(tmp_path, dataclasses.replace(STUDY, variants=TWO, search=search), of=of)
    found = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert row(text, r"pre\_ln", "## Learning rates")[5] == "0.007812, 0.01562"
    assert row(text, "rezero", "## Learning rates")[5] == "0.007812"
    pre = found.variant("pre_ln")
    assert [len(runs) for runs in pre.alternatives] == [9] and pre.is_complete
    only = compare({"rezero": (found.variant("rezero").arm, Arm(pre.arm.losses))}, 0.0002)
    mine = found.variant("rezero").comparison
    assert mine.difference.high >= only["rezero"].difference.high
    assert not any("fewer than 4 search seeds" in line for line in found.warnings)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["format_version"] == 3 and len(stored["variants"][0]["contenders"]) == 2


def test_trials_left_include_every_learning_rate_in_contention(tmp_path):
    """Of two variants with two learning rates each in contention, 6 and 14 of 18 runs are done."""
    study = Study(TWO, {P: "pre_ln"}, SEEDS, dataclasses.replace(SEARCH, max_contenders=2))
    plan, kept = play(tmp_path, study, trials=20)
    known, _ = known_trials(plan, kept)
    assert trials_left(SimpleNamespace(plan=plan, store=kept), known, 12) == {0: 4, 1: 18}


def test_run_to_be_retried_is_not_complete(tmp_path):
    study = Study(TWO, {P: "pre_ln"}, (1, 2))
    plan, kept = play(tmp_path, study)
    assert collect(plan, kept)["complete"]
    name = plan.trials({})[0].name
    kept.write_outcome(name, Outcome("failed", 0, None, None, reason="OOM", attempts=1))
    assert not collect(plan, TrialStore(tmp_path))["complete"]


def test_failed_run_at_another_learning_rate_is_reported(tmp_path):
    search = dataclasses.replace(SEARCH, max_contenders=2)
    plan, kept = play(tmp_path, Study(TWO, {P: "pre_ln"}, SEEDS, search))
    rival = plan.search_state(0, known_trials(plan, kept)[1]).contenders[1]
    trial = plan.verdict_trials(0, rival)[0]
    kept.write_outcome(trial.name, Outcome("failed", 0, None, None, reason="OOM", attempts=2))
    found = analyze(plan, TrialStore(tmp_path))
    assert "pre_ln: 1 trial failed (OOM)." in found.warnings and found.n_failed == 1
    assert not any(variant.comparison for variant in found.variants)


def test_losses_on_different_texts_are_not_compared(tmp_path):
    study = Study(grid({P: ("pre_ln", "rezero"), LR: (2.0**-7,)}), {P: "pre_ln"}, (1, 2, 3))
    _, kept = play(tmp_path, study)
    for path in (tmp_path / "trials").glob("placement=rezero*"):
        kept.write_outcome(path.name, Outcome("finished", 20, 1.0, 5.0, 9.9))
    found = write_report(tmp_path)
    assert (
        row((tmp_path / "report.md").read_text(), "rezero")[7]
        == "scored on different text or tokens"
    )
    assert any("rezero is scored on a different validation text" in line for line in found.warnings)


def test_trials_dropped_from_the_study_file_are_reported(tmp_path):
    study = Study(grid({P: ("pre_ln", "rezero", "lns")}), {P: "pre_ln"}, (1, 2, 3))
    play(tmp_path, study, of=lambda trial: 2.0 + 0.01 * trial.seed)
    assert not any("no longer" in line for line in write_report(tmp_path).warnings)
    fewer = dataclasses.replace(study, variants=grid({P: ("pre_ln", "rezero")}))
    base = tiny()
    write(tmp_path, Definition("a.py", base, base, fewer))
    warnings = write_report(tmp_path).warnings
    assert any("contains 3 trials" in line and "no longer" in line for line in warnings)


def test_no_sensitivity_if_the_best_is_the_last_shared_learning_rate(tmp_path):
    """Only some variants have losses beyond it."""

    def of(trial):
        best = -7 if trial.values[P] == "pre_ln" else -5  # the search of the second extends further
        return 2.0 + 0.1 * abs(math.log2(trial.values[LR]) - best)

    study = Study(grid({P: ("pre_ln", "lns")}), {P: "pre_ln"}, (1, 2), SEARCH)
    play(tmp_path, study, of=of)
    found = write_report(tmp_path)
    assert found.learning_rates == [2.0**-8, 2.0**-7, 2.0**-6] and set(found.sensitivities) == {
        "pre_ln"
    }


def test_introduction_describes_all_variants(tmp_path):
    variants = grid({"model.n_layer": (1, 2, 4), P: ("pre_ln",)})
    play(tmp_path, Study(variants, {"model.n_layer": 2}, (1, 2)), of=lambda trial: 2.0)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "1, 2 or 4 layers of width 16" in text and "; 1,000 tokens per run." in text
    section = text.partition("Losses by seed:")[2].partition("!")[0]
    assert row(section, "variant", "")[1:] == ["1", "2"] and row(section, "4", "")[1] == "2.0000"


def test_one_seed_has_no_interval(tmp_path):
    study = Study(grid({P: ("pre_ln", "rezero"), LR: (2.0**-7,)}), {P: "pre_ln"}, (1,))
    play(tmp_path, study)
    write_report(tmp_path)
    line = row((tmp_path / "report.md").read_text(), "rezero")
    assert line[3:5] == ["–", "0 of 1"] and re.fullmatch(r"[+-]\d\.\d{4}", line[5])
    assert line[6:] == ["1", "**inconclusive: too few seeds**", "–"]


def test_trials_that_failed_before_run_json_was_written(tmp_path):
    _, kept = play(tmp_path)
    for path in (tmp_path / "trials").glob("placement=rezero*"):
        (path / "run.json").write_text("{}")
        kept.write_outcome(path.name, Outcome("failed", 0, None, None, reason="OOM", attempts=2))
    found = write_report(tmp_path)
    assert any("rezero: 3 trials failed (OOM)" in line for line in found.warnings)
    assert row((tmp_path / "report.md").read_text(), "rezero", "## Cost")[1:4] == ["–"] * 3


def test_no_learning_rate_trains_if_a_seed_diverges_at_every_one(tmp_path):
    of = lambda trial: math.inf if trial.seed == 9 else loss(trial)
    search = dataclasses.replace(SEARCH, seeds=(10, 9))
    play(tmp_path, Study(grid({P: ("pre_ln",)}), {P: "pre_ln"}, (1, 2), search), of=of)
    assert write_report(tmp_path).variants[0].max_learning_rate is None


def test_sixteen_variants_are_drawn_with_their_own_baselines(tmp_path, monkeypatch):
    unpainted = lambda figure, file, **_: file.write(b"")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", unpainted)
    variants = crossed(
        grid({"model.n_layer": (4, 8, 16, 32)}), grid({P: ("pre_ln", "deepnorm", "rezero", "lns")})
    )
    of = lambda trial: loss(trial) if trial.values[P] != "lns" else 2.0
    play(tmp_path, Study(variants, {P: "pre_ln"}, (1, 2), SEARCH), of=of)
    write_report(tmp_path)
    drawn = {path.stem for path in (tmp_path / "report").iterdir()}
    assert {f"depth_end_{i}" for i in (1, 2, 3, 4)} <= drawn and "depth_end" not in drawn


def test_report_is_logged_to_wandb_as_a_run(reported, monkeypatch):
    workdir, found, _ = reported
    base = tiny()
    logged = {}

    class Log:
        problem = "rows are missing"

        def __init__(self, options, config, rows, say):
            logged["options"] = options

        def report(self, tables, images):
            logged.update(tables=tables, images=images)

        def close(self, code):
            logged["code"] = code

    monkeypatch.setattr("gpt2_jax.ablation.report.wandb_report.WandbLog", Log)
    for _ in range(2):
        problem = log_report(workdir, Definition("a.py", base, base, STUDY), found)
        ids = logged.setdefault("ids", set())
        ids.add(logged["options"].run_id)
    assert len(ids) == 1 and problem == Log.problem and logged["options"].group == workdir.name
    columns, rows = logged["tables"]["verdict"]
    assert columns == COLUMNS and len(rows) == 4
    best = dict(zip(columns, rows[1], strict=True))
    assert best["verdict"] == "better" and best["difference"] == pytest.approx(-0.1, abs=0.02)
    assert set(logged["images"]) == {
        *("losses", "learning_rates", "curves", "depth_start", "depth_end")
    }
    (workdir / ".wandb_id").write_bytes(b"\xff")
    log_report(workdir, Definition("a.py", base, base, STUDY), found)
    assert re.fullmatch("[0-9a-f]{8}", logged["options"].run_id)


def test_how_to_upload_offline_runs_is_reported(tmp_path):
    (tmp_path / "trials/a/wandb").mkdir(parents=True)
    assert offline_hint(tmp_path) is None
    (tmp_path / "trials/a/wandb/offline-run-1").mkdir()
    assert f"{tmp_path}/trials/*/wandb/offline-run-*" in offline_hint(tmp_path)


def test_verdicts_from_results_json_match_the_report(reported):
    workdir, found, _ = reported
    text = "\n".join(verdicts(workdir / "results.json"))
    for variant in found.variants:
        line = row(text, escaped(f"placement={variant.name}"), "")
        assert line[4] == f"{variant.median.estimate:.4f}"
        assert line[7].strip("*") == variant.verdict
        if compared := variant.comparison:
            assert line[5].startswith(f"{compared.difference.estimate:+.4f} (")
            assert line[6] == f"{compared.adjusted_p:.3g}"


def test_limitations_of_the_searches_are_listed(tmp_path):
    """The placement study, as if its search had had one seed and ended at the first grid."""
    stored = json.loads((ROOT / "docs/ablations/placement/results.json").read_text())
    line = lambda text, name: next(
        x for x in text.splitlines() if x.startswith(f"- placement={name}:")
    )

    def kept(trial):
        values = trial["values"]
        in_grid = values["optimizer.peak_lr"] <= 2.0**-6
        if trial["purpose"] == "search":
            return values["seed"] == 0 and in_grid
        return values["seed"] <= 6 and in_grid

    reduced = stored | {"trials": [trial for trial in stored["trials"] if kept(trial)]}
    (tmp_path / "results.json").write_text(json.dumps(reduced))
    text = "\n".join(verdicts(tmp_path / "results.json"))
    assert "losses still fall, so 0.0312, 0.0625" in line(text, "olmo2")
    assert "1 search seed; not ruled out" in line(text, r"pre\_ln")
    assert "0.0156 (2.4411)" in line(text, r"pre\_ln")
    assert "losses still fall" not in line(text, "deepnorm")
    assert "**better**" not in text and "at least 9 seeds" in text
    two = "\n".join(verdicts(ROOT / "docs/ablations/qk_norm/results.json"))
    assert re.search(r"- norm\\_sites=pre: 2 search seeds; not ruled out.*: 0\.00781", two)


def without(stored, *excluded):
    """Returns results without the verdict runs of these (variant, seed)."""
    is_out = lambda c: (
        (c["purpose"], c["variant"], c["values"]["seed"]) in [("verdict", *one) for one in excluded]
    )
    return stored | {"trials": [c for c in stored["trials"] if not is_out(c)]}


def test_unfinished_study_has_no_verdicts_for_missing_runs(reported, tmp_path):
    stored = json.loads((reported[0] / "results.json").read_text())
    path = tmp_path / "results.json"
    # Equally many seeds on both sides, but different ones.
    path.write_text(json.dumps(without(stored, (0, 1), (1, 2), (3, 1))))
    text = "\n".join(verdicts(path))
    assert row(text, "placement=deepnorm", "")[7] == "not complete"
    assert row(text, "placement=rezero", "")[7] != "not complete"
    for trial in (other := without(stored))["trials"]:
        if trial["variant"] == 3:
            trial["unigram_loss"] = 9.9
    path.write_text(json.dumps(other))
    text = "\n".join(verdicts(path))
    assert row(text, "placement=rezero", "")[7] == "scored on different text or tokens"
    for trials in (0, 1, 2):
        early = tmp_path / f"after_{trials}"
        write_results(early, *play(early, trials=trials))
        text = "\n".join(verdicts(early / "results.json"))
        assert "rezero: its search is not finished" in text and "**" not in text


def test_verdict_waits_for_every_learning_rate_in_contention(tmp_path):
    """All runs have ended at the chosen learning rate, but not at the other one in contention."""
    search = Search(2.0**-8, n=3, seeds=(10,), max_contenders=2)
    write_results(tmp_path, *play(tmp_path, Study(TWO, {P: "pre_ln"}, SEEDS, search)))
    path = tmp_path / "results.json"
    stored = json.loads(path.read_text())
    assert row("\n".join(verdicts(path)), "placement=rezero", "")[7] != "not complete"
    rival = stored["variants"][0]["contenders"][1]
    trials = [c for c in stored["trials"] if c["values"][LR] == rival and c["variant"] == 0]
    trials[-1]["status"] = "missing"
    path.write_text(json.dumps(stored))
    assert trials[-1]["purpose"] == "verdict"
    assert row("\n".join(verdicts(path)), "placement=rezero", "")[7] == "not complete"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 9, "variants": [], "trials": []}',
        '{"variants": [{"name": "a", "baseline": "b"}], "trials": []}',
        '{"variants": [{"name": "a"}], "trials": [{"variant": 0}]}',
    ],
)
def test_invalid_results_file_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json"):
        verdicts(tmp_path / "results.json")


def test_command(reported, tmp_path):
    workdir, _, _ = reported
    done = run("-m", "gpt2_jax", "report", f"--workdir={workdir}", tmp=tmp_path)
    assert done.returncode == 0 and "report.html" in done.stdout, done.stderr
    done = run("-m", "gpt2_jax", "report", f"--workdir={tmp_path}", tmp=tmp_path)
    assert done.returncode == 2 and "study.json does not exist" in done.stderr


def test_figures_by_block_of_two_towers_are_the_decoders():
    row = lambda step: {
        "step": step,
        **{
            f"depth/{t}/cosine/block_0{l}": l + step for t in ("encoder", "decoder") for l in (1, 2)
        },
        "depth/decoder/cosine/block_03": 0.5,
    }
    assert _blocks([row(0), row(9)], "cosine", last=True).tolist() == [10, 11, 0.5]
    assert _blocks([row(0), row(9)], "cosine", last=False).tolist() == [1, 2, 0.5]
    assert _blocks([row(0)], "entropy", last=False) is None
