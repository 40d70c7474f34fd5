"""Meshes with `fsdp` and `tensor`: the same losses as one device, less memory, few collectives."""

import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config.sections import MeshConfig, TrainConfig
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.placements import PRESETS
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.diagnostics import jit_diagnostics
from gpt2_jax.train.distributed.mesh import device_grid, make_mesh, mesh_shape
from gpt2_jax.train.distributed.sharding import LayerSplit, make_layout
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.storage.checkpoint import Checkpoints
from tests.placements import depth
from tests.tools import tiny

IDS = (np.cumsum(np.random.default_rng(0).integers(0, 3, 4000) > 0) % 11).astype(np.uint16)
MESHES = ((1, 8, 1), (2, 2, 2))
OPTIMIZERS = ("adamw", "muon")
STEPS = 20


def config(mesh=(1, 1, 1), **changes):
    data, fsdp, tensor = mesh
    fields = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
    return tiny(**(fields | {"model__unroll": False} | changes))


def batch(step):
    return Sampler(Tokens([IDS]), 12, 8, 0).batch(step)


def run(program, state, first=0, last=STEPS):
    """Returns the state after steps `first` to `last`, and their losses."""
    losses = []
    for step in range(first, last):
        state, metrics = program.step(state, program.put(batch(step)))
        losses.append(metrics["loss"].item())
    return state, np.array(losses)


def trained(mesh, **changes):
    program = compile_step(config(mesh, **changes))
    return program, *run(program, program.start(batch(0)))


FAST = ("hyper_connections", "universal")  # `several` below is Pre-LN


def cases():
    """Each preset with one mesh and one optimizer, in turn; a few of them in the fast tests."""
    for i, name in enumerate(sorted(PRESETS)):
        mesh, optimizer = MESHES[i % 2], OPTIMIZERS[i // 2 % 2]
        if PRESETS[name].parametrization != "standard":
            optimizer = "adamw"  # Muon does not support the others
        marks = () if name in FAST else pytest.mark.slow
        yield pytest.param(name, mesh, optimizer, marks=marks)


@pytest.mark.parametrize(("name", "mesh", "optimizer"), cases())
def test_losses_are_those_of_one_device(name, mesh, optimizer):
    changes = {
        "placement__preset": name,
        "optimizer__name": optimizer,
        "model__n_layer": depth(name),
    }
    one, several = (compile_step(config(m, **changes)) for m in ((1, 1, 1), mesh))
    first = one.start(batch(0))
    own = name in FAST or PRESETS[name].data_dependent_init
    same = several.start(batch(0)) if own else put(first, several)
    expected, found = run(one, first)[1], run(several, same)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.005  # training changes it by far more than the tolerance


def put(state, program):
    """Returns a state on a program's devices, copied, since steps donate theirs.

    Compiling the initial values for a mesh would take nearly as long as compiling the step.
    """
    place = lambda x, like: jax.device_put(np.array(x), like.sharding)
    return jax.tree.map(place, state, program.shapes)


@pytest.fixture(scope="module")
def one():
    return trained((1, 1, 1), optimizer__name="muon")


@pytest.fixture(scope="module", params=MESHES, ids=str)
def several(request):
    return trained(request.param, optimizer__name="muon")


def bytes_on_first_device(tree):
    return sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(tree))


def test_state_is_split_over_devices(one, several):
    np.testing.assert_allclose(several[2], one[2], atol=1e-5)
    kept = bytes_on_first_device(several[1]) / bytes_on_first_device(one[1])
    assert kept < (0.3 if several[0].mesh.shape["fsdp"] == 8 else 0.4)


def test_initial_values_do_not_depend_on_the_mesh(one, several):
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    jax.tree.map(same, several[0].init(), one[0].init())


def test_evaluation_and_diagnostics_are_those_of_one_device(one, several):
    params = jax.tree.map(np.asarray, one[1].params)
    found = []
    for program in (one[0], several[0]):
        here = make_layout(program.model_def, program.mesh).shardings(params)
        placed = jax.device_put(params, here)
        score = Evaluator(program.model_def, program.mesh, 12, 8).score(placed, 1, Tokens([IDS]))
        measured = jit_diagnostics(program.model_def, program.mesh, 4, 2)(
            placed, jnp.int32(1), program.put(batch(0))
        )
        found.append((score.nats, score.correct, score.tokens, measured))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def check_restored_on_another_mesh(one, several, folder, tolerance):
    """Saves the state of several devices, and continues from it there and on one device."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, several[1], {})
    checkpoints.wait()
    restored = checkpoints.restore(STEPS, one[0].shapes)
    back = checkpoints.restore(STEPS, several[0].shapes)
    checkpoints.close()
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    jax.tree.map(same, restored, several[1])
    kinds = lambda state: jax.tree.map(lambda x: (x.dtype, x.sharding), state)
    assert kinds(back) == kinds(several[1])
    on_one, on_several = (
        run(program, state, STEPS, STEPS + 4)[1]
        for program, state in ((one[0], restored), (several[0], back))
    )
    np.testing.assert_allclose(on_several, on_one, atol=tolerance)


def test_checkpoint_restores_on_another_mesh(one, several, tmp_path):
    check_restored_on_another_mesh(one, several, tmp_path, 1e-5)


def collectives(hlo):
    """Counts the collectives of a compiled program by kind; the body of a scan counts once."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return Counter(re.findall(rf"^.* = .*? ({kinds})(?:-start)?\(", hlo, re.MULTILINE))


@pytest.mark.parametrize(("remat", "n_passes"), [("none", 1), ("elementwise", 2)])
def test_a_block_has_one_gather_per_matrix_and_pass_and_one_reduce_scatter(remat, n_passes):
    """Four matrices in a block, two embeddings outside; vectors and the loss are one all-reduce."""
    made = config((1, 8, 1), model__remat=remat)
    found = collectives(compile_step(made).step.as_text())
    assert found.pop("all-reduce") <= 3  # also the norm of the gradient
    assert found == {"all-gather": 2 + 4 * n_passes, "reduce-scatter": 2 + 4}


def test_tensor_parallel_weights_are_not_joined_and_muon_moves_each_matrix_once(capfd):
    """Gradient, momentum and parameter of four matrices go there, and the update comes back.

    `tensor` adds all-reduces of activations and of parts of the logits.
    """
    made = config((2, 2, 2), optimizer__name="muon", model__n_layer=4)
    found = collectives(compile_step(made).step.as_text())
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    assert found.pop("all-reduce") <= 15
    n_moves = 4 * 4 * 2  # over `fsdp` and over `tensor`
    assert found == {"all-gather": 2 + 4, "reduce-scatter": 2 + 4, "all-to-all": n_moves}


def test_frozen_parameters_are_split_too():
    frozen = ("wpe", "blocks.1.mlp")
    changes = {"optimizer__frozen": frozen, "optimizer__name": "muon", "model__n_layer": 3}
    one, several = (compile_step(config(mesh, **changes)) for mesh in ((1, 1, 1), (1, 8, 1)))
    first = one.start(batch(0))
    same = put(first, several)
    (whole, expected), (split, found) = run(one, first), run(several, same)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert split.frozen["embedding"]["wpe"].values.sharding.spec != jax.P(None, None)
    assert bytes_on_first_device(split) < 0.3 * bytes_on_first_device(whole)


def layout(mesh, **changes):
    made = config(mesh, **changes)
    model = define_model(made.model, made.placement)
    return make_layout(model, make_mesh(made.train, made.mesh))


def test_rules_split_heads_hidden_channels_and_vocabulary_by_tensor_and_the_rest_by_fsdp():
    specs = {".".join(keys): tuple(spec) for keys, spec in layout((2, 2, 2)).specs.items()}
    block = "blocks.all."
    assert specs["embedding.wte"] == ("tensor", "fsdp")
    assert specs[block + "attn.sublayer.qkv.kernel"] == (None, "fsdp", None, "tensor", None)
    assert specs[block + "attn.sublayer.qkv.bias"] == (None, None, "tensor", None)
    assert specs[block + "attn.sublayer.out.kernel"] == (None, "tensor", None, "fsdp")
    assert specs[block + "mlp.sublayer.up.kernel"] == (None, "fsdp", "tensor")
    assert specs[block + "attn.pre.gain"] == (None, None)


def test_what_no_axis_divides_stays_whole_and_is_named():
    assert layout((1, 8, 1)).whole == []
    small = layout((1, 8, 1), model__n_embd=12, model__n_inner=20)
    assert small.whole == [
        "blocks.all.attn.sublayer.out.kernel",
        "blocks.all.attn.sublayer.qkv.kernel",
        "blocks.all.mlp.sublayer.down.kernel",
        "blocks.all.mlp.sublayer.up.kernel",
        "wpe",
    ]


@pytest.mark.parametrize("n_layer", [1, 3, 4, 16])
@pytest.mark.parametrize("mesh", [(2, 1, 1), *MESHES], ids=str)
def test_split_by_layers_gives_whole_matrices_and_is_undone(mesh, n_layer):
    made = layout(mesh, model__n_layer=n_layer)
    tree = {"blocks": {"all": {"mlp": {"sublayer": {"up": {"kernel": None}}}}}}
    shape = (n_layer, 16, 64)
    put = lambda x: jax.tree.map(lambda _: x, tree, is_leaf=lambda x: x is None)
    x = put(jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape))
    seen = []

    def double(share):
        seen.append(jax.tree.leaves(share)[0].shape)
        return jax.tree.map(lambda x: 2 * x, share)

    found = jax.jit(lambda x: LayerSplit(made).apply(double, x, x))(x)
    np.testing.assert_array_equal(*(jax.tree.leaves(t)[0] for t in (found, put(2 * x_of(x)))))
    (share,) = seen
    assert share[1:] == shape[1:] and share[0] <= max(1, -(-n_layer // made.mesh.size) * 2)


def x_of(tree):
    return jax.tree.leaves(tree)[0]


def test_unset_mesh_uses_data_or_fsdp_if_the_state_does_not_fit():
    sizes = lambda memory=None, **fields: mesh_shape(
        TrainConfig(batch_size=8), MeshConfig(**fields), 8, 10**9, memory
    )
    for memory in (None, 1.3e9):
        assert sizes(memory) == (8, 1, 1)
        assert sizes(memory, tensor=2) == (4, 1, 2) and sizes(memory, fsdp=2) == (4, 2, 1)
    assert sizes(1.2e9) == (1, 8, 1) and sizes(1.2e9, tensor=4) == (1, 2, 4)
    assert sizes(1.2e9, data=2) == (2, 1, 1)


def tpus(n_slices):
    """Slices of 2 x 2 chips, listed in turn."""
    return [
        SimpleNamespace(
            id=4 * part + i,
            platform="tpu",
            device_kind="TPU v4",
            slice_index=part,
            process_index=part,
            coords=(i % 2, i // 2, 0),
            core_on_chip=0,
        )
        for i in range(4)
        for part in range(n_slices)
    ]


def test_only_data_spans_tpu_slices():
    grid = device_grid(tpus(2), (4, 1, 2))
    slices = np.vectorize(lambda device: device.slice_index)(grid)
    np.testing.assert_array_equal(slices.reshape(2, -1), [[0] * 4, [1] * 4])
    assert grid.shape == (4, 1, 2) and len({device.id for device in grid.flat}) == 8
    with pytest.raises(UserError, match="data=1 x fsdp=8 x tensor=1 does not divide 8 TPU devices"):
        device_grid(tpus(2), (1, 8, 1))
    with pytest.raises(UserError, match="in 2 slices: all must be used"):
        device_grid(tpus(2), (2, 2, 1))
    assert device_grid(tpus(1), (1, 4, 1)).shape == (1, 4, 1)


def test_mesh_with_too_many_devices_is_refused():
    with pytest.raises(UserError, match="data=2 x fsdp=4 x tensor=2 needs 16 devices, but there"):
        make_mesh(TrainConfig(batch_size=8), MeshConfig(data=2, fsdp=4, tensor=2))
