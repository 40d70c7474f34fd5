"""Diagnoses compared with gradients and steps computed separately, and the command."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.ablation.diagnosis import BY_BLOCK, STEP_LR, WHOLE, diagnose
from gpt2_jax.data.batch import Batch
from gpt2_jax.model.definition import define_model
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.loss import mean_loss
from tests.tools import make_text, noisy, one_line_error, run, tiny

BATCHES = [Batch(np.random.default_rng(i).integers(0, 11, (8, 13), np.int32)) for i in range(3)]


@pytest.fixture(scope="module")
def measured():
    config = tiny(placement__preset="post_ln", mesh__data=2, optimizer__weight_decay=0.3)
    model = define_model(config.model, config.placement)
    params = noisy(model.init(jax.random.key(0)))
    return (
        model,
        params,
        diagnose("p", config, model, make_mesh(config.train, config.mesh), params, 0, BATCHES),
    )


def gradient(model, params, batch):
    return jax.grad(mean_loss)(params, model, batch, None, 0)


def norms(grads):
    """Returns the norm of each block's gradient, and of the whole gradient."""
    rows = [np.concatenate([np.asarray(x[l]).ravel() for x in jax.tree.leaves(grads["blocks"])])
            for l in range(2)]  # fmt: skip
    every = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(grads)])
    return [np.linalg.norm(row) for row in rows], np.linalg.norm(every)


def test_gradient_norms_of_one_batch_and_of_the_mean(measured):
    model, params, got = measured
    each = [gradient(model, params, batch) for batch in BATCHES]
    blocks, wholes = zip(*map(norms, each), strict=True)
    np.testing.assert_allclose(got.by_block[""]["grad_norm"], np.mean(blocks, 0), rtol=1e-4)
    assert got.whole["model_grad_norm"] == pytest.approx(np.mean(wholes), rel=1e-4)
    mean_blocks, mean_whole = norms(jax.tree.map(lambda *g: sum(g) / 3, *each))
    np.testing.assert_allclose(got.by_block[""]["mean_grad_norm"], mean_blocks, rtol=1e-4)
    assert got.whole["model_mean_grad_norm"] == pytest.approx(mean_whole, rel=1e-4)
    assert mean_whole < 0.95 * np.mean(wholes)


def test_first_step_moves_the_output(measured):
    """SGD's update is the gradient, Adam's from zero moments g / (|g| + eps); neither has decay.

    The expected changes are central differences, scaled to the learning rate.
    """
    model, params, got = measured
    grads = gradient(model, params, BATCHES[0])
    hidden = lambda p: np.asarray(
        model.bind(p).hidden(jnp.asarray(BATCHES[0].inputs_BT), None, 0), np.float64
    )
    for name, move in (("sgd", lambda g: g), ("adam", lambda g: g / (jnp.abs(g) + 1e-8))):
        rate = {"sgd": 1e-2, "adam": 2e-4}[name]
        ends = [
            jax.tree.map(lambda p, g, r=r, move=move: p + r * move(g), params, grads)
            for r in (rate, -rate)
        ]
        slopes = (hidden(ends[0]) - hidden(ends[1])) / (2 * rate)
        want = STEP_LR * np.sqrt((slopes**2).mean())
        assert got.whole[f"{name}_model_change"] == pytest.approx(want, rel=2e-2)
        # Here the last block's stream is the head's input: the block ends in a norm.
        last = got.by_block[""][f"{name}_change"][-1] * got.by_block[""]["stream_rms"][-1]
        assert last == pytest.approx(want, rel=2e-2)
    assert got.by_block[""]["adam_change"][0] < got.by_block[""]["adam_change"][1]


@pytest.mark.slow
def test_model_changes_are_measured_in_float32(measured):
    """The changes are smaller than bfloat16's rounding errors."""
    _, params, exact = measured
    config = tiny(placement__preset="post_ln", mesh__data=2, model__dtype="bfloat16")
    model = define_model(config.model, config.placement)
    got = diagnose("p", config, model, make_mesh(config.train, config.mesh), params, 0, BATCHES)
    for name in ("sgd_model_change", "adam_model_change"):
        assert got.whole[name] == pytest.approx(exact.whole[name], rel=0.1)
    assert got.whole["loss"] != exact.whole["loss"]


@pytest.mark.slow
def test_each_batch_has_its_own_dropout_mask():
    config = tiny(model__dropout=0.5, mesh__data=1)
    model = define_model(config.model, config.placement)
    params = noisy(model.init(jax.random.key(0)))
    got = diagnose(
        "p", config, model, make_mesh(config.train, config.mesh), params, 0, [BATCHES[0]] * 3
    )
    assert (got.by_block[""]["mean_grad_norm"] < 0.95 * got.by_block[""]["grad_norm"]).all()


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    text = tmp_path_factory.mktemp("diagnose") / "text.txt"
    text.write_text(make_text(20_000))
    sizes = {
        "model.n_embd": 16, "model.n_head": 2, "model.n_positions": 16, "data.seq_len": 16,
        "optimizer.warmup_steps": 1, "train.steps": 6, "train.sample_tokens": 0,
    }  # fmt: skip
    given = [f"--config.{name}={value}" for name, value in sizes.items()]
    return text.parent, ["--config=configs/quickstart.py", *given, f"--config.data.source={text}"]


def command(flags, *more):
    place, given = flags
    return run("-m", "gpt2_jax", "diagnose", *given, "--batches=2", *more, tmp=place)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_command_writes_tables_and_figures(flags):
    out = flags[0] / "starts"
    done = command(flags, "--placements=admin", "--depths=2,4", f"--out={out}")
    assert done.returncode == 0, done.stderr
    figures = {f"{name}.{kind}" for name in ("blocks_2", "blocks_4", "depth")
               for kind in ("pdf", "png")}  # fmt: skip
    assert {p.name for p in out.iterdir()} == {"models.csv", "blocks.csv", *figures}
    models, blocks = read(out / "models.csv"), read(out / "blocks.csv")
    assert [(row["model"], row["n_layer"]) for row in models] == [
        ("admin", "2"), ("admin", "4"),
    ]  # fmt: skip
    assert list(models[0]) == ["model", "n_layer", "step", *WHOLE]
    columns = [name for name in BY_BLOCK if name != "cross_ratio"]
    assert list(blocks[0]) == ["model", "n_layer", "step", "block", *columns]
    assert [row["block"] for row in blocks] == list("121234")
    numbers = np.array([[float(row[name]) for name in columns] for row in blocks])
    assert np.isfinite(numbers).all() and (numbers != 0).all()
    assert all(f"{row['model']:<28} {row['n_layer']:>6}" in done.stdout for row in models)
    again = command(flags, f"--out={out}")
    assert one_line_error(again).startswith(f"error: --out={out} ")


@pytest.mark.slow
def test_checkpoint_is_diagnosed(flags):
    place, given = flags
    workdir = place / "trained"
    trained = run("train.py", *given, f"--workdir={workdir}",
                  "--config.track.diagnostics_every=6", tmp=place)  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    out = place / "checkpoint"
    done = run("-m", "gpt2_jax", "diagnose", f"--workdirs={workdir}", "--batches=2",
               f"--out={out}", tmp=place)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = read(out / "models.csv")
    assert (row["model"], row["n_layer"], row["step"]) == (f"pre_ln ({workdir})", "4", "6")
    blocks = read(out / "blocks.csv")
    (last,) = [r for r in read_rows(workdir / "metrics.jsonl") if r["step"] == 6]
    for l in range(4):  # diagnostics of the checkpoint are close to those on the previous batch
        value = last[f"depth/stream_rms/block_{l + 1:02}"]
        assert float(blocks[l]["stream_rms"]) == pytest.approx(value, rel=0.05)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ([], "--out"),
        (["--out=x", "--placements=pre_nl"], "--placements has 'pre_nl'; did you mean 'pre_ln'?"),
        (["--out=x", "--depths=2,many"], "--depths has 'many', which is not a number of blocks"),
        (["--out=x", "--workdirs=a"], "--workdirs"),
        (["--out=x", "--step=3"], "--step"),
        (["--out=x", "--depths=2,4,2"], "--depths has 2 twice"),
        (["--out=x", "--depths="], "--depths"),
        (["--out=x", "--config.train.init_from=a"], "train.init_from is not used before training"),
    ],
)
def test_invalid_input_is_a_one_line_error(flags, more, line):
    assert line in one_line_error(command(flags, *more))


def test_refused_command_creates_no_folder(flags):
    command(flags, f"--out={flags[0]}/new/out", "--depths=0")
    assert not (flags[0] / "new").exists()
