"""Optimizer moments in bfloat16 and 8 bits: their errors, their size, and training with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gpt2_jax.config import capacity
from gpt2_jax.config.check import check
from gpt2_jax.errors import UserError
from gpt2_jax.nn.param import Role
from gpt2_jax.train.compiled_step import compile_step, state_bytes
from gpt2_jax.train.optim.moments import Quantized, noise, quantize, to_bfloat16, to_float32
from gpt2_jax.train.storage.checkpoint import Checkpoints
from tests import tools
from tests.train.distributed.test_sharding import STEPS, config, run, trained

DTYPES = ("bfloat16", "int8")
VALUES = np.concatenate([[0.0], np.geomspace(1e-7, 1.0, 60), -np.geomspace(1e-3, 0.9, 40)]).astype(
    np.float32
)


def test_quantized_values_are_close():
    found = to_float32(quantize(jnp.asarray(3 * VALUES), jnp.float32(0.5)))
    large = np.abs(VALUES) > 1e-3
    np.testing.assert_allclose(found[large], 3 * VALUES[large], rtol=0.1)
    np.testing.assert_allclose(found[VALUES == 1], 3.0, rtol=1e-6)
    assert found[0] == 0 and (np.sign(found) == np.sign(VALUES)).all()


def test_tiny_values_do_not_become_zero_divisors():
    found = to_float32(quantize(jnp.float32([1.0, 1e-12, 0.0]), jnp.float32(0.0)))
    assert 0 < found[1] < 1e-8 and found[2] == 0
    assert not to_float32(quantize(jnp.zeros(3), jnp.float32(0.0))).any()


@pytest.mark.parametrize("store", [quantize, to_bfloat16])
def test_rounding_is_right_on_average(store):
    """And not to the nearest: a value between two levels is rounded to both."""
    x = jnp.asarray(VALUES)
    stored = jnp.stack([to_float32(store(x, noise(x.shape, 5, jnp.int32(i)))) for i in range(400)])
    large = np.abs(VALUES) > 1e-3
    np.testing.assert_allclose(stored.mean(0)[large], VALUES[large], rtol=0.01)
    assert (stored.std(0)[large & (np.abs(VALUES) < 1)] > 0).all()


def test_noise_is_uniform_and_differs_by_position_salt_and_step():
    of = lambda salt, count: np.asarray(noise((64, 32), salt, jnp.int32(count))).ravel()
    all_of = [of(1, 0), of(1, 1), of(2, 0), of(2, 1)]
    for u in all_of:
        assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.06 and abs(u.std() - 12**-0.5) < 0.01
    assert np.abs(np.corrcoef(all_of) - np.eye(4)).max() < 0.06


def sizes(optimizer, dtype):
    """Returns the bytes of the parameters and of the rest of the state."""
    changes = {"optimizer__name": optimizer, "optimizer__moments_dtype": dtype}
    shapes = jax.eval_shape(compile_step(config(**changes, model__n_embd=64)).init)
    n_bytes = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return n_bytes(shapes.params), n_bytes(shapes.opt_state)


@pytest.mark.parametrize(("optimizer", "n_moments"), [("adamw", 2), ("muon", 1)])
def test_state_takes_the_expected_bytes(optimizer, n_moments):
    """Embeddings have two moments with either optimizer; here most parameters are in blocks."""
    params, full = sizes(optimizer, "float32")
    assert full / params == pytest.approx(n_moments, rel=0.05)
    for dtype, n_bytes in (("bfloat16", 2), ("int8", 1)):
        assert sizes(optimizer, dtype)[1] / full == pytest.approx(n_bytes / 4, abs=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_moments_of_matrices_and_embeddings_are_stored_in_fewer_bits(optimizer, dtype):
    changes = {"optimizer__name": optimizer, "optimizer__moments_dtype": dtype}
    program = compile_step(config(**changes))
    infos = program.model_def.infos
    is_leaf = lambda x: isinstance(x, Quantized)
    leaves = jax.tree_util.tree_leaves_with_path(program.shapes.opt_state, is_leaf=is_leaf)
    n_large = 0
    for path, x in leaves:
        info = infos
        for key in (k.key for k in path if isinstance(k, jax.tree_util.DictKey)):
            info = info[key] if isinstance(info, dict) and key in info else info
        if isinstance(info, dict):
            continue  # a counter
        large = info.role in (Role.MATRIX, Role.EMBEDDING, Role.POSITION)
        stored = x.codes.dtype if isinstance(x, Quantized) else x.dtype
        assert stored == (dtype if large else "float32"), path
        n_large += large
    assert n_large == {"adamw": 2 * 6, "muon": 4 + 2 * 2}[optimizer]


@pytest.fixture(scope="module", params=[(o, d) for o in ("adamw", "muon") for d in DTYPES], ids=str)
def stored(request):
    """An optimizer and a dtype, trained on one device and on a mesh."""
    optimizer, dtype = request.param
    changes = {"optimizer__name": optimizer, "optimizer__moments_dtype": dtype}
    return changes, trained((1, 1, 1), **changes), trained((2, 2, 2), **changes)


def test_training_is_nearly_that_with_float32(stored):
    changes, one, several = stored
    full = trained((1, 1, 1), **(changes | {"optimizer__moments_dtype": "float32"}))[2]
    assert one[2][-1] != full[-1] and full[0] - full[-1] > 0.1
    np.testing.assert_allclose(one[2], full, atol=0.02)
    np.testing.assert_allclose(several[2], one[2], atol=2e-3)


def test_moments_are_split_as_their_parameters(stored):
    program = stored[2][0]
    specs = {}
    for path, x in jax.tree_util.tree_leaves_with_path(program.shapes):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        if keys[-2:] == ["up", "kernel"]:
            specs[getattr(path[-1], "name", path[0].name)] = (x.sharding.spec, x.shape)
    whole = specs.pop("params")
    assert set(whole[0][1:]) == {"fsdp", "tensor"}
    if stored[0]["optimizer__moments_dtype"] == "int8":
        assert specs == {
            "codes": whole,
            "scale": (PartitionSpec(*whole[0][:-1], None), (*whole[1][:-1], 1)),
        }
    else:
        assert set(specs.values()) == {whole}


def test_checkpoint_restores_on_another_mesh(stored, tmp_path):
    _, one, several = stored
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(STEPS, several[1], {})
    checkpoints.wait()
    restored = checkpoints.restore(STEPS, one[0].shapes)
    back = checkpoints.restore(STEPS, several[0].shapes)
    checkpoints.close()
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    jax.tree.map(same, restored, several[1])
    assert jax.tree.map(lambda x: (x.dtype, x.sharding), back) == jax.tree.map(
        lambda x: (x.dtype, x.sharding), several[1]
    )
    on_one, on_several = (
        run(program, state, STEPS, STEPS + 4)[1]
        for program, state in ((one[0], restored), (several[0], back))
    )
    np.testing.assert_allclose(on_several, on_one, atol=1e-3)


def test_memory_checks_count_the_moments_bytes(monkeypatch):
    large = {"model__n_embd": 64, "model__n_layer": 8}
    n_params = capacity.least_parameters(tools.tiny(**large))
    sizes = {"float32": 12, "bfloat16": 8, "int8": 6}
    for dtype, n_bytes in sizes.items():
        made = tools.tiny(**large, optimizer__moments_dtype=dtype)
        assert capacity.parameter_bytes(made.optimizer) == n_bytes
        least = n_params * n_bytes + capacity.batch_bytes(made)
        with monkeypatch.context() as patch:
            patch.setattr(capacity, "machine_bytes", lambda least=least: least / 2 + 1)
            check(made)
            patch.setattr(capacity, "machine_bytes", lambda least=least: least / 2 - 1)
            with pytest.raises(UserError, match="this machine has"):
                check(made)
    made = config(optimizer__moments_dtype="int8", optimizer__name="muon")
    model = compile_step(made).model_def
    n_stored = sum(x.size for x in jax.tree.leaves(model.shapes))
    assert state_bytes(made, model) == n_stored * (4 + 1 + 4)
