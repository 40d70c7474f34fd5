"""Checkpoints: atomic, verified, and safe while training continues."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.optim.optimizer import make_optimizer
from gpt2_jax.train.state import make_init
from gpt2_jax.train.storage import checkpoint
from gpt2_jax.train.storage.checkpoint import Checkpoints, restore_params, save_params
from gpt2_jax.train.storage.checksums import SUMS, find_damage
from tests.tools import tiny


def make_state(**changes):
    config = tiny(optimizer__name="muon", **changes)
    mesh, model = make_mesh(config.train, config.mesh), define_model(config.model, config.placement)
    optimizer = make_optimizer(config.optimizer, model.infos)
    init = make_init(config.seed, config.optimizer, model, optimizer, mesh)
    return init, make_layout(model, mesh).abstract(jax.eval_shape(init))


@pytest.fixture(scope="module")
def state():
    init, _ = make_state(mesh__data=2)
    return init()


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """Checkpoints of steps 10 and 20; the states differ."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    folder.mkdir()
    checkpoints = Checkpoints(folder)
    for step in (10, 20):
        checkpoints.save(step, state._replace(step=state.step + step), {"val/loss": 1.0 / step})
    checkpoints.close()
    return folder


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_restored_state_is_bitwise_equal(saved, state):
    restored = Checkpoints(saved).restore(20, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert int(restored.step) == 20
    assert_equal(restored._replace(step=state.step), state)


def test_restore_onto_another_number_of_devices(saved, state):
    _, shapes = make_state(mesh__data=8)
    restored = Checkpoints(saved).restore(20, shapes)
    assert len(restored.params["embedding"]["wte"].sharding.device_set) == 8
    assert_equal(restored.params, state.params)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << (len(content) % 8)
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path):
    path.unlink()


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_nowhere(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("harm", [flip, truncate, delete, to_folder, to_nowhere])
def test_damage_to_any_file_is_named(saved, tmp_path, harm):
    names = [p.relative_to(saved / "00000020") for p in files(saved / "00000020")]
    assert len(names) >= 10 and any(p.name == SUMS for p in names)
    for name in names:
        folder = tmp_path / "00000020"
        shutil.copytree(saved / "00000020", folder)
        if (folder / name).stat().st_size == 0 and harm in (flip, truncate):
            (folder / name).write_bytes(b"x")
        else:
            harm(folder / name)
        fault = find_damage(folder)
        assert fault and (name.name in fault or name.name == SUMS), (name, fault)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [SUMS, "meta.json", "state/_METADATA", "."])
def test_unreadable_file_is_an_error_and_not_damage(saved, tmp_path, name, monkeypatch):
    """A loop of links simulates missing permissions, which would not stop the root user."""
    folder = tmp_path / "00000020"
    shutil.copytree(saved / "00000020", folder)
    victim = folder / name
    if name == ".":
        monkeypatch.setattr(checkpoint.os, "walk", refuse)
    else:
        victim.unlink()
        victim.symlink_to(victim.name)
    with pytest.raises(UserError, match=re.escape(str(victim))):
        find_damage(folder)


def refuse(path, **_):
    raise PermissionError(13, "Permission denied", str(path))


def test_damaged_checkpoint_is_set_aside_under_a_unique_name(tmp_path):
    for _ in range(2):
        (tmp_path / "00000020").mkdir()
        Checkpoints(tmp_path).set_aside(20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000020.damaged", "00000020.damaged1"]
    assert Checkpoints(tmp_path).steps() == []


@pytest.mark.parametrize("name", ["exp[1]", "a*b?", "\N{SNOWMAN} ~x\ny", "a%20b,c=d+e@f:g"])
def test_checkpoints_can_be_saved_to_any_path(state, tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    folder.mkdir(parents=True)
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, state, {})
    checkpoints.wait()
    assert_equal(checkpoints.restore(0, state), state)
    assert_equal(restore_params(folder / "00000000", state.params), state.params)
    save_params(tmp_path / name / "weights", state.params)
    assert_equal(restore_params(tmp_path / name / "weights", state.params), state.params)


def test_state_of_another_step_is_refused(saved, tmp_path, state):
    shutil.copytree(saved / "00000020", tmp_path / "00000030")
    with pytest.raises(UserError, match=r"00000030 holds the state of step 20"):
        Checkpoints(tmp_path).restore(30, state)
    with pytest.raises(UserError, match=r"00000030 holds the state of step 20"):
        restore_params(tmp_path / "00000030", state.params, 30)


def test_extra_file_is_damage(saved, tmp_path):
    shutil.copytree(saved / "00000020", tmp_path / "c")
    (tmp_path / "c" / "state" / "extra").write_text("x")
    assert find_damage(tmp_path / "c") == f"files differ from {SUMS}: state/extra"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="this system has no sha256sum")
def test_sha256sum_accepts_the_sums(saved):
    import subprocess

    done = subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=saved / "00000020", check=False)
    assert done.returncode == 0


def test_training_during_a_save_does_not_affect_it(tmp_path):
    """The next steps reuse the donated buffers of the state; that must not affect the save."""
    init, shapes = make_state(mesh__data=2, model__n_embd=256, model__vocab_size=4000)
    state = init()
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    compiled = update.lower(shapes).compile()
    before = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state, {})
    for _ in range(20):
        state = compiled(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_equal(checkpoints.restore(0, shapes), before)
    assert (np.asarray(state.params["embedding"]["wte"]) != before.params["embedding"]["wte"]).all()


def test_only_the_latest_and_the_best_checkpoints_are_kept(state, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 1.5}
    kept = []
    for step, loss in losses.items():
        checkpoints.save(step, state, {"val/loss": loss})
        checkpoints.wait()
        kept.append(checkpoints.steps())
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
    assert checkpoints.best() == 2


def test_best_checkpoint_by_a_score(state, tmp_path):
    """The highest, whatever the loss; by what was not saved, the rows of metrics.jsonl decide."""
    folder = tmp_path / "checkpoints"
    checkpoints, kept = Checkpoints(folder, keep=1, best_by="accuracy"), []
    scores = {1: (1.0, 0.5), 2: (3.0, 0.9), 3: (0.5, 0.7), 4: (2.0, 0.9)}
    for step, (loss, accuracy) in scores.items():
        checkpoints.save(step, state, {"val/loss": loss, "val/accuracy": accuracy})
        checkpoints.wait()
        kept.append(checkpoints.steps())
    assert kept == [[1], [2], [2, 3], [2, 4]] and checkpoints.best() == 2
    meta = json.loads((folder / "00000004" / "meta.json").read_text())
    assert (meta["val_loss"], meta["best_by"], meta["score"]) == (2.0, "accuracy", 0.9)
    assert Checkpoints(folder, best_by="macro_f1").best() is None
    assert Checkpoints(folder).best() is None
    rows = [{"step": 2, "val/loss": 3.0, "val/macro_f1": 0.1}]
    rows.append({"step": 4, "val/loss": 2.0, "val/macro_f1": 0.2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Checkpoints(folder, best_by="macro_f1").best() == 4
    assert Checkpoints(folder).best() == 4


def test_checkpoint_becomes_valid_only_after_before_commit(state, tmp_path):
    seen = []
    checkpoints = Checkpoints(tmp_path)
    checkpoints.before_commit = lambda: seen.append(checkpoints.steps())
    checkpoints.save(7, state, {})
    checkpoints.wait()
    assert seen == [[]] and checkpoints.steps() == [7]


def test_failed_save_leaves_no_checkpoint(state, tmp_path):
    def fail():
        raise RuntimeError("the metrics could not be written")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.before_commit = fail
    checkpoints.save(7, state, {})
    with pytest.raises(RuntimeError, match="could not be written"):
        checkpoints.wait()
    assert checkpoints.steps() == []
    checkpoints.clean()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_one_line_error(state, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(UserError, match=r"cannot write checkpoint 7 .*No space left on device"):
        Checkpoints(tmp_path).save(7, state, {})


def test_best_ignores_checkpoints_with_damaged_meta(saved, tmp_path):
    assert Checkpoints(tmp_path).best() is None
    folder, messages = tmp_path / "checkpoints", []
    shutil.copytree(saved, folder)
    assert Checkpoints(folder).best() == 20
    meta = json.loads((folder / "00000010" / "meta.json").read_text())
    (folder / "00000010" / "meta.json").write_text(json.dumps(meta | {"val_loss": 0.001}))
    assert Checkpoints(folder).best(messages.append) == 20
    assert len(messages) == 1 and "00000010" in messages[0]


def test_errors_of_late_writes_are_suppressed(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    checkpoint._drop_late_callbacks.__wrapped__()
    for text in ("Event loop is closed", "something else"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(one.exc_value) for one in shown] == ["something else"]
