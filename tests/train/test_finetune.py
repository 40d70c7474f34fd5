"""Training from pretrained weights: their source, frozen parameters, and early stopping."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from gpt2_jax import config as configs
from gpt2_jax.data.batch import Batch
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.track.metrics import best_row, evaluations_since_best, read_rows
from gpt2_jax.train import loop
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.optim.optimizer import make_optimizer, trainable_infos
from gpt2_jax.train.optim.param_patterns import lr_factors
from gpt2_jax.train.pretrained import PretrainedSource, adopt_model, find_source
from gpt2_jax.train.run_logger import is_stale
from gpt2_jax.train.state import make_init
from gpt2_jax.train.step import make_step
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.train.storage.rundir import RunDirectory
from tests import tools
from tests.runs import begin, config, losses

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_run_starts_from_pretrained_weights_and_a_fresh_optimizer(source, text_file, tmp_path):
    assert loop.train(begin(text_file, source), str(tmp_path / "run")) == 0
    got, before = losses(tmp_path / "run"), losses(source)
    assert got[0] == pytest.approx(before[20], rel=1e-6) and got[0] != before[0]
    stored = configs.from_json(tmp_path / "run" / "config.json")
    assert stored.train.init_from == f"{source}@20" and stored.model.n_embd == 16
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[1]
    assert row["step"] == 5 and row["train/lr"] == pytest.approx(
        0.01 * (0.1 + 0.9 * (1 + math.cos(0.4 * math.pi)) / 2)  # the cosine schedule starts again
    )


def test_run_resumes_after_its_source_has_continued(source, text_file, tmp_path):
    moving = shutil.copytree(source, tmp_path / "moving")
    given = begin(text_file, moving)
    assert loop.train(given, str(tmp_path / "run")) == 0
    longer = config(text_file, train__steps=30)
    assert loop.train(longer, str(moving)) == 0
    given = configs.replace(given, {"train.steps": 15})
    assert loop.train(given, str(tmp_path / "run")) == 0
    assert 15 in losses(tmp_path / "run")
    given = configs.replace(given, {"train.init_from": f"{moving}@30"})
    with pytest.raises(
        UserError, match=r"train.init_from \(was '.*moving@20', now '.*moving@30'\)"
    ):
        loop.train(given, str(tmp_path / "run"))


def test_weights_deleted_during_compilation_are_named(source, text_file, tmp_path, monkeypatch):
    """As by a run in progress, which keeps only its newest checkpoints."""
    moving = shutil.copytree(source, tmp_path / "moving")
    compile_step = loop.compile_step

    def deleting(given, **options):
        shutil.rmtree(moving / "checkpoints" / "00000020")
        return compile_step(given, **options)

    monkeypatch.setattr(loop, "compile_step", deleting)
    with pytest.raises(UserError, match=r"checkpoints/00000020 was deleted before"):
        loop.train(begin(text_file, moving), str(tmp_path / "run"))


def test_init_from_is_recorded_as_a_step(source, text_file, tmp_path):
    moved = shutil.copytree(source, tmp_path / "me@host" / "source")  # this @ is not a step
    assert loop.train(begin(text_file, f"{moved}@best"), str(tmp_path / "run")) == 0
    stored = configs.from_json(tmp_path / "run" / "config.json")
    assert stored.train.init_from == f"{moved}@20"
    moved.rename(tmp_path / "elsewhere")
    for suffix in ("", "@best"):  # the run has its own weights
        given = begin(text_file, f"{moved}{suffix}", train__steps=12)
        assert find_source(given, RunDirectory(str(tmp_path / "run"))).name == f"{moved}@20"
    assert loop.train(given, str(tmp_path / "run")) == 0


def test_factors_that_are_not_learned_may_differ_from_the_source(text_file):
    """As at the end of a ramp over steps; factors with parameters may not differ."""
    origin = PretrainedSource(Path("w"), tools.tiny(placement__preset="prores"), "a@20")
    given = {"placement.branch_scale": "1", "train.init_from": "a"}
    fresh = configs.replace(configs.Config(), given)
    made = adopt_model(fresh, origin, lambda line: None)
    assert (made.placement.preset, made.placement.branch_scale) == ("prores", "1")
    fresh = configs.replace(fresh, {"placement.norm_type": "rmsnorm"})
    with pytest.raises(
        UserError, match=r"placement.norm_type='rmsnorm', but the weights of a@20 have None"
    ):
        adopt_model(fresh, origin, lambda line: None)


def test_the_mask_of_documents_is_that_of_the_source_unless_set(text_file):
    masked = {"model.document_mask": True, "model.end_of_text": 256}
    plain = config(text_file, train__init_from="runs/a@20")
    source = lambda config: PretrainedSource(Path("runs/a"), config, "runs/a@20", 20)
    adopted = adopt_model(plain, source(configs.replace(plain, masked)), lambda line: None)
    assert adopted.model.document_mask and adopted.model.end_of_text == 256
    asked = configs.replace(plain, {"model.document_mask": True})
    adopted = adopt_model(asked, source(plain), lambda line: None)
    assert adopted.model.document_mask and adopted.model.end_of_text is None


@pytest.mark.parametrize(
    "fields, advice",
    [
        ({"data.seq_len": 128}, "set data.seq_len=64"),
        (
            {"data.seq_len": 128, "data.lengths": ("16", "64,96")},
            "set data.seq_len=64 and data.lengths=16",
        ),
        ({"data.seq_len": 128, "data.lengths": ("96",)}, "set data.seq_len=64 and data.lengths="),
        ({"data.source_len": 128}, "set data.source_len=64"),
    ],
)
def test_rows_longer_than_the_positions_of_the_source(fields, advice):
    stored = tools.tiny(model__n_positions=64, data__seq_len=64)
    origin = PretrainedSource(Path("w"), stored, "a@20")
    fresh = configs.replace(configs.Config(), {"train.init_from": "a"} | fields)
    name = next(name for name, value in fields.items() if value == 128)
    with pytest.raises(UserError) as found:
        adopt_model(fresh, origin, lambda line: None)
    assert str(found.value) == f"{name}=128 is longer than the 64 positions of a@20; {advice}"


def test_damaged_weights_are_refused(source, text_file, tmp_path):
    run = open_run(str(source))
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "config.json").write_text(configs.to_json(run.config))
    save_params(tmp_path / "imported" / "weights", run.params)
    victim = next((tmp_path / "imported" / "weights" / "state" / "d").iterdir())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    given = begin(text_file, source)
    given = configs.replace(given, {"train.init_from": None})
    with pytest.raises(UserError, match="damaged or gone"):
        loop.train(given, str(tmp_path / "imported"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.n_head": 4}, "model.n_head=4, but the weights of .*source@20 have 2"),
        ({"train.init_from": "nowhere"}, "=nowhere: nowhere does not exist; set it to the --w"),
        ({"train.init_from": "{text}"}, "is a file, not the directory of a run; set it to"),
        (
            {"train.init_from": "{hf}"},
            "hf is a Hugging Face checkpoint; run `gpt2-jax import --mod",
        ),
        ({"train.init_from": "{hf}/.."}, "is not the directory of a run: it has no config.json"),
        (
            {"train.init_from": "{source}/checkpoints/00000020"},
            "00000020 is a checkpoint of a run; set it to .*source, or .*source@STEP",
        ),
        ({"train.init_from": "{source}@7"}, "has no checkpoint of step 7; there are: 20"),
    ],
)
def test_invalid_init_from_is_named(source, text_file, tmp_path, changes, says):
    given = begin(text_file, source)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "bert"}')
    places = {"source": source, "text": text_file, "hf": tmp_path / "hf"}
    text = lambda value: value.format(**places) if isinstance(value, str) else value
    given = configs.replace(given, {name: text(value) for name, value in changes.items()})
    with pytest.raises(UserError, match=says):
        loop.train(given, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_imported_weights_are_trained_in_place(source, text_file, tmp_path):
    run = open_run(str(source))
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "config.json").write_text(configs.to_json(run.config))
    save_params(tmp_path / "imported" / "weights", run.params)
    assert open_run(str(tmp_path / "imported")).step == 0
    given = begin(text_file, source)
    given = configs.replace(given, {"train.init_from": None})
    assert loop.train(given, str(tmp_path / "imported")) == 0
    got = losses(tmp_path / "imported")
    assert (
        got[0] == pytest.approx(losses(source)[20], rel=1e-6)
        and open_run(str(tmp_path / "imported")).step == 10
    )
    given = configs.replace(given, {"train.steps": 12})
    assert loop.train(given, str(tmp_path / "imported")) == 0
    given = configs.replace(given, {"optimizer.peak_lr": 1.0})
    with pytest.raises(UserError, match=r"optimizer.peak_lr \(was 0.01, now 1.0\)"):
        loop.train(given, str(tmp_path / "imported"))


def stepped(**changes):
    """Returns parameters before and after one step, and its metrics."""
    made = tools.tiny(**changes)
    model, mesh = define_model(made.model, made.placement), make_mesh(made.train, made.mesh)
    optimizer = make_optimizer(made.optimizer, trainable_infos(made.optimizer, model))
    state = make_init(made.seed, made.optimizer, model, optimizer, mesh)()
    batch = Batch(jax.random.randint(jax.random.key(3), (8, 13), 0, 11))
    after, metrics = jax.jit(make_step(made, model, optimizer, mesh))(state, batch)
    return state.all_params, after.all_params, metrics


def moved(before, after):
    return jax.tree.map(lambda a, b: np.asarray(b, np.float64) - np.asarray(a), before, after)


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_frozen_parameters_are_unchanged_and_not_in_the_norm(name):
    common = {"optimizer__name": name, "optimizer__weight_decay": 0.5}
    frozen = ("wte,wpe", "blocks.0", "*.bias")
    before, after, metrics = stepped(**common, optimizer__frozen=frozen)
    change = moved(before, after)
    assert (change["embedding"]["wte"] == 0).all() and (change["embedding"]["wpe"] == 0).all()
    up = change["blocks"]["all"]["mlp"]["sublayer"]["up"]
    assert (up["kernel"][0] == 0).all() and (up["kernel"][1] != 0).all()
    assert (up["bias"] == 0).all() and (change["ln_f"]["gain"] != 0).all()
    assert 0 < float(metrics["grad_norm"]) < float(stepped(**common)[2]["grad_norm"])


def test_multipliers_scale_the_steps_and_the_last_one_applies():
    plain = moved(*stepped()[:2])
    rules = ("blocks.*=0.5", "blocks.1.attn=0.25, wte=2")
    scaled = moved(*stepped(optimizer__lr_multipliers=rules)[:2])
    for part, factors in (("attn", [0.5, 0.25]), ("mlp", [0.5, 0.5])):
        for layer, factor in enumerate(factors):
            jax.tree.map(
                lambda a, b, at=layer, f=factor: np.testing.assert_allclose(
                    b[at], f * a[at], atol=1e-7
                ),
                plain["blocks"]["all"][part],
                scaled["blocks"]["all"][part],
            )
    scaled, plain = scaled["embedding"], plain["embedding"]
    np.testing.assert_allclose(scaled["wte"], 2 * plain["wte"], atol=1e-7)
    np.testing.assert_allclose(scaled["wpe"], plain["wpe"], atol=1e-7)
    assert np.abs(plain["wte"]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"frozen": ("wte", "blocks.7")},
            "frozen.*'blocks.7' matches no param.* paths look like wte",
        ),
        ({"lr_multipliers": ("head=1",)}, "multipliers.*'head=1' matches no parameter"),
        ({"lr_multipliers": ("wte",)}, "'wte', which is not a pattern=factor"),
        ({"lr_multipliers": ("wte=-1",)}, "'wte=-1', which is not a pattern=factor"),
        ({"frozen": ("*",)}, "leaves nothing to train"),
    ],
)
def test_invalid_patterns_are_named(changes, says):
    made = tools.tiny(**{f"optimizer.{name}": value for name, value in changes.items()})
    with pytest.raises(UserError, match=says):
        lr_factors(made.optimizer, define_model(made.model, made.placement))


def test_invalid_pattern_is_reported_before_the_data_is_read(tmp_path):
    made = config("nowhere.txt", optimizer__frozen=("blocks.9",))
    with pytest.raises(UserError, match=r"blocks\.9"):
        loop.train(made, str(tmp_path / "run"))


def test_best_evaluation_has_a_checkpoint_with_patience(text_file, tmp_path):
    """The learning rate is so large that the loss rises again: the best is between checkpoints."""
    given = config(
        text_file,
        train__steps=200,
        train__patience=2,
        train__sample_tokens=0,
        train__checkpoint_every=100,
        optimizer__peak_lr=3.0,
        optimizer__warmup_steps=190,
    )
    assert loop.train(given, str(tmp_path / "run")) == 0
    got = losses(tmp_path / "run")
    best = min(got, key=lambda step: got[step])
    assert 0 < best < max(got) < 200 and best % 100
    assert open_run(str(tmp_path / "run"), "best").step == best
    assert open_run(str(tmp_path / "run")).step == max(got) == best + 20
    with pytest.raises(UserError, match="'worst' is not a checkpoint's step"):
        open_run(str(tmp_path / "run"), "worst")


def test_evaluations_since_the_best():
    rows = lambda *values: [{"val/loss": value} for value in values]
    assert evaluations_since_best(rows(3.0, 2.0, 2.5, 2.1)) == 2
    assert evaluations_since_best(rows(3.0, 2.0, None)) == 1
    assert evaluations_since_best(rows(3.0, 2.0, float("nan"), 2.0)) == 2
    assert evaluations_since_best([{"train/loss": 1.0}]) == 0
    scored = [{"val/loss": 1.0, "val/bleu": value} for value in (3.0, 5.0, None, 5.0)]
    assert evaluations_since_best([{"val/loss": 9.0}, *scored, {"val/loss": 0.5}], "bleu") == 2
    assert best_row(scored, "bleu") is scored[1] and best_row(scored, "chrf") is None


def test_patience_goes_by_the_score_of_best_by():
    """The score was best three evaluations ago, while the loss still falls."""
    row = lambda loss, score: {"val/loss": loss, "val/accuracy": score}
    rows = [row(3.0, 0.1), row(2.0, 0.5), row(1.5, 0.4), row(1.4, 0.5), row(1.3, 0.3)]
    by = lambda name, patience: configs.replace(
        configs.Config(), {"train.best_by": name, "train.patience": patience}
    )
    assert is_stale(by("accuracy", 3), rows) and not is_stale(by("accuracy", 4), rows)
    assert not is_stale(by("loss", 1), rows) and not is_stale(by(None, 1), rows)
    assert not is_stale(by("accuracy", None), rows)


def test_run_stops_when_its_validation_loss_no_longer_falls(text_file, tmp_path, capsys):
    """With a tiny learning rate, no evaluation is better than the first."""
    given = config(
        text_file,
        train__steps=100,
        train__patience=2,
        train__sample_tokens=0,
        optimizer__peak_lr=1e-30,
    )
    workdir = tmp_path / "run"
    assert loop.train(given, str(workdir)) == 0
    assert list(losses(workdir)) == [0, 10, 20]
    assert "stopped early after step 20: step 0 was the best" in capsys.readouterr().out
    assert open_run(str(workdir)).step == 20 and (workdir / "loss.png").exists()
    assert loop.train(given, str(workdir)) == 0
    assert "is finished" in capsys.readouterr().out and list(losses(workdir)) == [0, 10, 20]
    given = configs.replace(given, {"train.patience": 3})
    assert loop.train(given, str(workdir)) == 0
    assert list(losses(workdir)) == [0, 10, 20, 30]
    assert json.loads((workdir / "config.json").read_text())["train"]["patience"] == 3
