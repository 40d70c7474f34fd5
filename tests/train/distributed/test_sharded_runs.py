"""Whole runs and studies on a mesh with `fsdp` and `tensor`."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt2_jax.ablation.study import Study, grid
from gpt2_jax.config import replace
from gpt2_jax.evaluate.perplexity import evaluate_run
from gpt2_jax.evaluate.run_texts import TEXTS
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from tests import tools
from tests.ablation.study import small


def config(text_file, mesh, **changes):
    fields = {
        "model__vocab_size": None,
        "model__unroll": False,
        "data__source": str(text_file),
        "train__log_every": 1,
        "train__eval_every": 10,
        "train__checkpoint_every": 10,
        "train__eval_tokens": 192,
        "train__sample_tokens": 20,
        "track__wandb__mode": "disabled",
        **dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True)),
    }
    return replace(tools.tiny(**(fields | changes)), {"model.vocab_size": 257})


def numbers(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    names = ("train/loss", "val/loss", "train/grad_norm", "depth/entropy/block_02")
    return {(row["step"], name): row[name] for row in rows for name in names if name in row}


def assert_close(a, b):
    assert a.keys() == b.keys()
    np.testing.assert_allclose([*a.values()], [b[key] for key in a], rtol=1e-4)


def test_sharded_run_is_like_one_on_a_single_device(text_file, tmp_path, capsys):
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    for mesh, workdir in (((1, 1, 1), alone), ((1, 2, 2), sharded)):
        made = config(text_file, mesh, track__diagnostics_every=10)
        assert loop.train(made, str(workdir), TEXTS) == 0
    printed = capsys.readouterr().out
    assert "data=1 x fsdp=2 x tensor=2, parameters and optimizer state split" in printed
    assert_close(numbers(sharded), numbers(alone))
    assert len((sharded / "sample.txt").read_text()) > 5
    assert json.loads((sharded / "run.json").read_text())["mesh"]["fsdp"] == 2
    evaluated = evaluate_run(str(sharded), None, None, None)
    assert evaluated["loss"] == pytest.approx(numbers(alone)[20, "val/loss"], rel=1e-4)
    for run in (alone, sharded):
        export_model(str(run), str(run / "hf"))
    ours, theirs = (load_file(run / "hf" / "model.safetensors") for run in (sharded, alone))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4)


def test_run_resumes_on_another_mesh_and_says_so(text_file, tmp_path, capsys):
    constant = {"optimizer__schedule": "constant", "optimizer__warmup_steps": 2}
    workdir = tmp_path / "run"
    for mesh, steps in (((1, 4, 1), 10), ((2, 1, 1), 20)):
        made = config(text_file, mesh, train__steps=steps, **constant)
        assert loop.train(made, str(workdir)) == 0
    printed = capsys.readouterr().out
    assert "the mesh is now data=2 x fsdp=1 x tensor=1 instead of data=1 x fsdp=4" in printed
    whole = config(text_file, (1, 1, 1), **constant)
    loop.train(whole, str(tmp_path / "whole"))
    assert_close(numbers(workdir), numbers(tmp_path / "whole"))


@pytest.mark.slow
def test_trials_of_a_study_may_be_sharded(text_file, tmp_path):
    losses = []
    for mesh in ({"mesh__data": 1}, {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2}):
        study = Study(grid({small.P: ("pre_ln", "post_ln")}), {small.P: "pre_ln"}, seeds=(1, 2))
        workdir = tmp_path / str(len(losses))
        _, code = small.run_study(workdir, small.base(text_file, **mesh), study)
        assert code == 0
        losses.append([trial["loss"] for trial in small.results(workdir)["trials"]])
    np.testing.assert_allclose(*losses, rtol=1e-4)
