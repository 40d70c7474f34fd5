"""A study on a task: its trials run one after the other, and its report shows their scores."""

import json

import numpy as np
import pytest

from gpt2_jax.ablation.report.analysis import analyze
from gpt2_jax.ablation.report.text import markdown
from gpt2_jax.ablation.study import Study, grid
from gpt2_jax.ablation.study.data import open_trial_data
from gpt2_jax.ablation.study.definition import Definition
from gpt2_jax.ablation.study.overview import overview
from gpt2_jax.errors import EXIT_FINISHED
from gpt2_jax.track.metrics import read_rows
from tests.ablation.study.small import P, results, run_study, starts
from tests.tasks.small import small, write_data

STUDY = Study(grid({P: ("pre_ln", "post_ln")}), {P: "pre_ln"}, seeds=(1, 2, 3))


def opened(config):
    with_types = config.model.token_types > 0
    return open_trial_data(config.task, config.data, with_types, config.seed)


def test_entropy_of_labels(tmp_path):
    config = small("classify", write_data(tmp_path, "classify"))
    found = opened(config)
    labels = [record.label for record in found.corpus.splits["val"].records]
    p = np.array([labels.count(name) for name in set(labels)]) / len(labels)
    assert found.unigram_loss == pytest.approx(-(p * np.log(p)).sum()) and found.unigram_loss > 0.5
    assert opened(config) is found


def test_answers_have_no_entropy(tmp_path):
    assert opened(small("answer", write_data(tmp_path, "answer"))).unigram_loss is None


@pytest.mark.slow
def test_study_of_translation(tmp_path):
    epochs = {"train__epochs": 0.02, "train__eval_every": 2, "train__checkpoint_every": 4}
    config = small("translate", write_data(tmp_path, "translate"), **epochs)
    workdir = tmp_path / "study"
    worker, code = run_study(workdir, config, STUDY)
    assert code == EXIT_FINISHED
    trials = results(workdir)["trials"]
    assert len(trials) == 6 and {trial["status"] for trial in trials} == {"finished"}
    for trial in trials:
        path = workdir / "trials" / trial["name"]
        rows = read_rows(path / "metrics.jsonl")
        assert trial["loss"] == rows[-1]["val/loss"] < trial["initial_loss"]
        assert rows[-1]["step"] == json.loads((path / "config.json").read_text())["train"]["steps"]
        assert "val/bleu" in rows[-1] and len(starts(path)) == 1
        assert 2 < trial["unigram_loss"] < 4
    definition = Definition("a.py", config, config, STUDY)
    text = markdown(analyze(worker.plan, worker.store), definition, {})
    scores = text.partition("## Scores")[2].partition("##")[0]
    assert "| variant | bleu | chrf | accuracy |" in scores and scores.count("_ln") == 2
    assert "nats per token" in text
    assert "tokens each" in overview(worker, worker.check(), timed=True)
