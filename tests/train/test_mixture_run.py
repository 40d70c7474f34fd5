"""Runs on a mixture: losses per source, identity, and a resumed run equal to the bit."""

import json
import shutil

import numpy as np
import pytest

from gpt2_jax import config as configs
from gpt2_jax.data.corpus import open_plan
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.perplexity import as_lines, evaluate_run
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from tests.runs import config
from tests.tools import make_text

STEPS = {"train__steps": 12, "train__log_every": 2, "train__eval_every": 4, "mesh__data": 2}
STEPS |= {"train__checkpoint_every": 4, "train__eval_tokens": 240, "train__sample_tokens": 0}


pytestmark = pytest.mark.usefixtures("compiled_once")


def write_corpus(folder, seed):
    (folder.parent / f"{folder.name}.txt").write_text(make_text(5000, seed).upper()[: 4000 + seed])
    plan = open_plan(str(folder.parent / f"{folder.name}.txt"), None, 0.1)
    prepare(plan, load_tokenizer("bytes"), folder)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("corpora")
    for seed, name in enumerate(("web", "code")):
        write_corpus(tmp / name, seed)
    return tmp


@pytest.fixture(scope="module")
def made(corpora):
    return config(f"mixture:{corpora}/web=0.75,{corpora}/code=0.25", **STEPS)


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture") / "run"
    assert loop.train(made, str(path)) == 0
    return path


def losses(path):
    return [(r["step"], r.get("train/loss"), r.get("val/loss")) for r in read_rows(path)]


def test_validation_loss_per_source_and_their_weighted_mean(run):
    rows = [row for row in read_rows(run / "metrics.jsonl") if "val/loss" in row]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    for row in rows:
        web, code = row["val/web/loss"], row["val/code/loss"]
        assert web != code
        assert row["val/loss"] == pytest.approx(0.75 * web + 0.25 * code, rel=1e-6)
        assert row["val/bits_per_byte"] == pytest.approx(row["val/loss"] / np.log(2), rel=1e-6)


def test_loss_of_a_source_is_that_of_evaluating_it_alone(run, corpora):
    whole = evaluate_run(str(run), None, None, 12)  # a stride turns the limit off
    for name in ("web", "code"):
        alone = evaluate_run(str(run), None, f"{corpora}/{name}", 12)
        assert whole["losses"][name] == pytest.approx(alone["loss"], rel=1e-6)
    assert any(line.startswith("loss of web ") for line in as_lines(whole))


def test_identity_of_every_source_is_recorded(run):
    info = json.loads((run / "run.json").read_text())
    assert set(info["sources"]) == {"web", "code"}
    meta = json.loads((run / "checkpoints/00000012/meta.json").read_text())
    assert meta["corpus"] == info["corpus"]


def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(run, made, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(self, step, state, scored, save=loop.Checkpoints.save):
        save(self, step, state, scored)
        if step == 8:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", kill)
        with pytest.raises(Killed):
            loop.train(made, str(tmp_path / "run"))
    assert losses(tmp_path / "run/metrics.jsonl")[-1][0] == 8
    assert loop.train(made, str(tmp_path / "run")) == 0
    assert losses(tmp_path / "run/metrics.jsonl") == losses(run / "metrics.jsonl")


def test_other_numbers_of_devices_read_the_same_rows(run, made, tmp_path):
    alone = configs.replace(made, {"mesh.data": 1})
    assert loop.train(alone, str(tmp_path / "run")) == 0
    pairs = zip(losses(tmp_path / "run/metrics.jsonl"), losses(run / "metrics.jsonl"), strict=True)
    for (_, *ours), (_, *theirs) in pairs:
        for a, b in zip(ours, theirs, strict=True):
            assert a == b or a == pytest.approx(b, abs=1e-5)


def test_changed_source_is_named(run, corpora, made, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(corpora, tmp_path / "kept")
    try:
        shutil.rmtree(corpora / "code")
        write_corpus(corpora / "code", 5)
        with pytest.raises(UserError, match=r"another text than .* contains now \(in code: "):
            loop.train(made, str(tmp_path / "run"))
    finally:
        shutil.rmtree(corpora)
        shutil.copytree(tmp_path / "kept", corpora)


def test_changed_weights_are_refused(run, made, corpora, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    other = f"mixture:{corpora}/web=0.5,{corpora}/code=0.5"
    with pytest.raises(UserError, match=r"a different config: data\.source"):
        loop.train(configs.replace(made, {"data.source": other}), str(tmp_path / "run"))
