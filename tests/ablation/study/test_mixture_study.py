"""Studies on a mixture, whose trials report the loss of each source, and on remote text."""

from types import SimpleNamespace

import pytest

from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Study, grid
from gpt2_jax.ablation.study import data as study_data
from gpt2_jax.config.sections import DataConfig
from gpt2_jax.errors import EXIT_FINISHED, UserError
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.loop import train
from tests.ablation.study.small import LR, base, results, run_study
from tests.tools import make_text

STUDY = Study(grid({LR: (0.001, 0.01)}), {LR: 0.001}, seeds=(1, 2), trials_per_batch=2)
STEPS = {"train__steps": 6, "train__eval_every": 6, "track__diagnostics_every": None}


def test_trial_on_a_mixture_matches_the_same_config_trained_alone(tmp_path):
    (tmp_path / "web.txt").write_text(make_text(8000, seed=1))
    (tmp_path / "code.txt").write_text(make_text(5000, seed=2).upper())
    source = f"mixture:{tmp_path}/web.txt=2,{tmp_path}/code.txt=1"
    _, code = run_study(tmp_path / "study", base(source, **STEPS), STUDY)
    assert code == EXIT_FINISHED
    (corpus,) = results(tmp_path / "study")["corpora"]
    assert corpus["source"] == source
    name = results(tmp_path / "study")["trials"][0]["name"]
    path = tmp_path / "study/trials" / name
    assert train(configs.from_json(path / "config.json"), str(tmp_path / "alone")) == EXIT_FINISHED
    alone, trial = (read_rows(p / "metrics.jsonl") for p in (tmp_path / "alone", path))
    for a, b in zip(alone, trial, strict=True):
        assert set(a) == set(b)
        for key in ("train/loss", "val/loss", "val/web/loss", "val/code/loss", "val/accuracy"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-5), key
    last = trial[-1]
    assert last["val/web/loss"] != pytest.approx(last["val/code/loss"], rel=1e-3)
    mean = (2 * last["val/web/loss"] + last["val/code/loss"]) / 3
    assert last["val/loss"] == pytest.approx(mean, rel=1e-6)


def test_a_study_refuses_text_that_is_fetched_while_training(monkeypatch):
    streamed = SimpleNamespace(streams={"source": None})
    monkeypatch.setattr(study_data, "open_data", lambda data: (streamed, None))
    with pytest.raises(UserError, match=r"s3://bucket/a.*, which a study does not support; copy"):
        study_data._open_text(DataConfig(source="s3://bucket/a.jsonl"))
