"""The train step on tiny models: accumulation, devices, precision, skipped steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.cli import guarded
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.nn.target import Target
from gpt2_jax.train.distributed.mesh import by_rows, find_devices, make_mesh
from gpt2_jax.train.optim.optimizer import make_optimizer, trainable_infos
from gpt2_jax.train.state import make_init
from gpt2_jax.train.step import make_step
from tests.tools import tiny

# Each id is usually the successor of the previous one, which is easy to learn.
IDS = (np.cumsum(np.random.default_rng(0).integers(0, 3, 4000) > 0) % 11).astype(np.uint16)


class Trainer:
    def __init__(self, target=None, **changes):
        self.config = tiny(**changes)
        opt, self.mesh = self.config.optimizer, make_mesh(self.config.train, self.config.mesh)
        model = define_model(self.config.model, self.config.placement, target)
        optimizer = make_optimizer(opt, trainable_infos(opt, model))
        self.state = make_init(self.config.seed, opt, model, optimizer, self.mesh)()
        self.step = jax.jit(make_step(self.config, model, optimizer, self.mesh), donate_argnums=0)
        self.sampler = Sampler(Tokens([IDS]), 12, self.config.train.batch_size, 0)

    def batch(self, step):
        return jax.device_put(self.sampler.batch(step), by_rows(self.mesh))

    def run(self, n):
        rows = []
        for _ in range(n):
            self.state, metrics = self.step(self.state, self.batch(int(self.state.step)))
            rows.append({name: value.item() for name, value in metrics.items()})
        return rows


def losses(n=20, **changes):
    return np.array([row["loss"] for row in Trainer(**changes).run(n)])


@pytest.fixture(scope="module")
def one_device():
    return losses(mesh__data=1)


def test_losses_on_eight_devices_equal_those_on_one(one_device):
    eight = Trainer(mesh__data=8)
    assert eight.mesh.devices.size == 8
    assert len(eight.batch(0).tokens_BT1.sharding.device_set) == 8
    got = np.array([row["loss"] for row in eight.run(20)])
    np.testing.assert_allclose(got, one_device, atol=1e-5)
    assert one_device[0] - one_device[-1] > 0.1  # it learns, so the comparison means something


def test_accumulation_equals_one_large_batch(one_device):
    parts = Trainer(mesh__data=1, train__accumulation=4)
    jaxpr = str(jax.make_jaxpr(parts.step)(parts.state, parts.batch(0)))
    assert "length=4" in jaxpr
    got = np.array([row["loss"] for row in parts.run(20)])
    np.testing.assert_allclose(got, one_device, atol=1e-5)


def test_accumulation_on_several_devices(one_device):
    np.testing.assert_allclose(losses(mesh__data=2, train__accumulation=2), one_device, atol=1e-5)


@pytest.mark.slow
def test_dropout_does_not_depend_on_devices_or_accumulation():
    one = losses(4, mesh__data=1, model__dropout=0.3)
    four = losses(4, mesh__data=4, model__dropout=0.3)
    np.testing.assert_allclose(four, one, atol=1e-5)
    assert np.abs(one - losses(4, mesh__data=1)).min() > 1e-4
    parts = losses(4, mesh__data=1, model__dropout=0.3, train__accumulation=2)
    np.testing.assert_allclose(parts, one, atol=1e-5)


def test_dropout_masks_depend_on_seed_and_step():
    trainer = Trainer(model__dropout=0.5, model__n_layer=1, mesh__data=1)
    state, batch = trainer.state, trainer.batch(0)
    step = jax.jit(trainer.step)  # without donation
    base = step(state, batch)[1]["loss"]
    assert step(state, batch)[1]["loss"] == base
    assert step(state._replace(step=jnp.int32(1)), batch)[1]["loss"] != base
    assert step(state._replace(seed=jnp.uint32(1)), batch)[1]["loss"] != base


def test_bfloat16_trains_with_float32_state_and_gradients():
    trainer = Trainer(model__dtype="bfloat16", mesh__data=1)
    rows = trainer.run(20)
    assert rows[0]["loss"] - rows[-1]["loss"] > 0.1
    kinds = {x.dtype.name for x in jax.tree.leaves(trainer.state)}
    assert kinds == {"float32", "int32", "uint32"}


def test_first_loss_is_that_of_a_uniform_guess():
    assert losses(1)[0] == pytest.approx(np.log(11), abs=0.05)


def test_metrics_describe_the_step():
    trainer = Trainer(mesh__data=1, optimizer__warmup_steps=4, optimizer__grad_clip=0.0)
    rows = trainer.run(3)
    assert [row["lr"] for row in rows] == pytest.approx([0.0025, 0.005, 0.0075])
    assert [row["skipped"] for row in rows] == [0, 0, 0]
    assert int(trainer.state.step) == 3


def test_clipping_scales_the_gradient_to_the_limit():
    """Adam's first step does not depend on the size of the gradient, but its moments do."""
    moments = {}
    for limit in (0.0, 0.1):
        trainer = Trainer(mesh__data=1, optimizer__grad_clip=limit)
        norm = trainer.run(1)[0]["grad_norm"]
        mu = trainer.state.opt_state[0].mu
        moments[limit] = float(jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(mu)))) / 0.1
        assert norm > 0.2
    assert moments[0.0] == pytest.approx(norm, rel=1e-4)
    assert moments[0.1] == pytest.approx(0.1, rel=1e-4)


def poison(state):
    wte = state.params["embedding"]["wte"]
    return with_tokens(state, wte.at[0, 0].set(jnp.nan))


def with_tokens(state, wte):
    """Returns a state with different token embeddings."""
    embedding = state.params["embedding"] | {"wte": wte}
    return state._replace(params=state.params | {"embedding": embedding})


def test_step_with_a_nan_is_skipped_and_counted():
    trainer = Trainer(mesh__data=2)
    trainer.run(2)
    trainer.state = poison(trainer.state)
    before = jax.tree.map(np.array, (trainer.state.params, trainer.state.opt_state))
    rows = trainer.run(3)
    assert [row["skipped"] for row in rows] == [1, 2, 3]
    assert [row["max_consecutive_skipped"] for row in rows] == [1, 2, 3]
    assert np.isnan([row["loss"] for row in rows]).all()
    after = jax.tree.map(np.array, (trainer.state.params, trainer.state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(trainer.state.step) == 5


def test_step_taken_resets_the_count_of_consecutive_skips():
    trainer = Trainer(mesh__data=1)
    trainer.run(1)
    whole = trainer.state.params["embedding"]["wte"] + 0
    trainer.state = poison(trainer.state)
    trainer.run(1)
    trainer.state = with_tokens(trainer.state, whole)
    (row,) = trainer.run(1)
    assert (row["skipped"], row["max_consecutive_skipped"]) == (1, 1)
    assert int(trainer.state.guard.consecutive) == 0


@pytest.mark.parametrize(("factor", "skipped"), [(None, 0), (3.0, 1)])
def test_outlier_is_skipped_if_configured(factor, skipped):
    trainer = Trainer(mesh__data=1, optimizer__skip_outliers=factor)
    trainer.run(60)
    trainer.state = with_tokens(trainer.state, trainer.state.params["embedding"]["wte"] * 30)
    assert trainer.run(1)[0]["skipped"] == skipped


def test_outliers_are_compared_with_the_running_moments():
    trainer = Trainer(mesh__data=1)
    norms = [row["grad_norm"] for row in trainer.run(30)]
    guard = trainer.state.guard
    assert int(guard.taken) == 30
    assert float(guard.norm_mean) == pytest.approx(np.mean(norms), rel=1e-4)
    assert float(guard.norm_var) == pytest.approx(np.var(norms), rel=1e-3)


def test_state_is_donated():
    trainer = Trainer(mesh__data=2)
    old = trainer.state
    trainer.run(1)
    assert all(x.is_deleted() for x in jax.tree.leaves(old.params))


def test_gpu_program_takes_the_same_steps(one_device):
    """It reduces each gradient separately, and selects values instead of branching."""
    trainer = Trainer(Target("gpu"), mesh__data=2)
    jaxpr = str(jax.make_jaxpr(trainer.step)(trainer.state, trainer.batch(0)))
    assert "cond[" not in jaxpr and "select_n" in jaxpr
    got = np.array([row["loss"] for row in trainer.run(20)])
    np.testing.assert_allclose(got, one_device, atol=1e-5)
    trainer.state = poison(trainer.state)
    before = jax.tree.map(np.array, (trainer.state.params, trainer.state.opt_state))
    assert trainer.run(1)[0]["skipped"] == 1
    after = jax.tree.map(np.array, (trainer.state.params, trainer.state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize\nbackend"), AssertionError()])
def test_platform_without_devices_is_a_one_line_error(monkeypatch, error):
    """With what `jax.devices()` raises for a platform that is unknown or has no device."""

    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match="JAX_PLATFORMS") as caught:
        find_devices()
    assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit) as ended:  # wherever a command first uses jax
        guarded(lambda argv: jax.devices())(["command"])
    assert ended.value.code == 2
