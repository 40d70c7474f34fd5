"""Weight decay and Muon depend on roles; stacking does not change steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers, muon

from gpt2_jax.model.definition import is_info
from gpt2_jax.nn.param import ParamInfo, Role
from gpt2_jax.train.optim.optimizer import DECAYED, make_optimizer
from tests.tools import noisy, tiny, tiny_model


def flat(tree):
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in paths}


def layers_of(tree):
    """Returns separate layers, with separate q, k and v, as in a model without stacking."""
    out = {}
    for path, value in flat(tree).items():
        if not path.startswith("blocks"):
            out[path] = value
            continue
        for layer in range(value.shape[0]):
            if "qkv" in path:
                parts = np.moveaxis(value[layer], -3, 0)
                out |= {f"{path}/{layer}/{c}": parts[i] for i, c in enumerate("qkv")}
            else:
                out[f"{path}/{layer}"] = value[layer]
    return out


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_three_steps_equal_those_of_unstacked_layers(name):
    config = tiny(optimizer__name=name, optimizer__weight_decay=0.3)
    model, params = tiny_model(optimizer__name=name)
    roles = {}
    for path, info in flat(jax.tree.map(lambda i: i.role, model.infos, is_leaf=is_info)).items():
        roles[path] = info

    def role(path):
        return next(r for p, r in roles.items() if path == p or path.startswith(p + "/"))

    def dims(path):
        if role(path) != Role.MATRIX:
            return None
        return (
            MuonDimensionNumbers((0, 1), (2,))
            if "out/kernel" in path
            else (MuonDimensionNumbers((0,), (1, 2)) if "qkv" in path else MuonDimensionNumbers())
        )

    # As in the optimizers' documentation for unstacked parameters.
    opt = config.optimizer
    adamw = optax.adamw(
        1.0, opt.b1, opt.b2, opt.eps, weight_decay=0.3,
        mask=lambda tree: {p: DECAYED[role(p)] for p in tree},
    )  # fmt: skip
    listed = layers_of(params)
    matrices = [p for p in listed if name == "muon" and role(p) == Role.MATRIX]
    transforms = {
        p: muon(1.0, beta=opt.momentum, weight_decay=0.3, consistent_rms=0.2,
                muon_weight_dimension_numbers=dims(p))
        for p in matrices
    }  # fmt: skip
    rest = {p: v for p, v in listed.items() if p not in matrices}
    state, states = adamw.init(rest), {p: t.init(listed[p]) for p, t in transforms.items()}

    stacked = params
    transform = make_optimizer(config.optimizer, model.infos)
    stacked_state = transform.init(stacked)
    together, separately = (
        jax.jit(transform.update),
        jax.jit(
            lambda grads, state, states, listed: (
                adamw.update({p: grads[p] for p in rest}, state, {p: listed[p] for p in rest}),
                {p: t.update(grads[p], states[p], listed[p]) for p, t in transforms.items()},
            )
        ),
    )
    for seed in range(3):
        grads = jax.tree.map(lambda p: 0.1 * p, noisy(params, seed=seed))
        updates, stacked_state = together(grads, stacked_state, stacked)
        stacked = jax.tree.map(lambda p, u: p + 0.01 * u, stacked, updates)

        (moves, state), each = separately(layers_of(grads), state, states, listed)
        for path, (update, new_state) in each.items():
            moves[path], states[path] = update, new_state
        listed = {path: listed[path] + 0.01 * moves[path] for path in listed}

    before = layers_of(params)
    after = layers_of(stacked)
    assert set(after) == set(listed)
    for path, value in listed.items():
        moved = np.abs(np.asarray(value) - before[path]).max()
        assert moved > 1e-4, path
        np.testing.assert_allclose(after[path], value, atol=1e-3 * moved, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_depends_on_the_role(name):
    """With zero gradients, only weight decay moves parameters: all matrices and embeddings."""
    config = tiny(optimizer__name=name, optimizer__weight_decay=0.5, model__tie_head=False)
    model, params = tiny_model(model__tie_head=False)
    transform = make_optimizer(config.optimizer, model.infos)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(transform.update)(zeros, transform.init(params), params)
    moved = {p for p, u in flat(updates).items() if np.abs(u).max() > 0}
    assert moved == {
        "embedding/wte",
        "embedding/wpe",
        "head",
        "blocks/all/attn/sublayer/qkv/kernel",
        "blocks/all/attn/sublayer/out/kernel",
        "blocks/all/mlp/sublayer/up/kernel",
        "blocks/all/mlp/sublayer/down/kernel",
    }
    for path in moved:
        np.testing.assert_allclose(flat(updates)[path], -0.5 * flat(params)[path], rtol=1e-6)


def test_muon_updates_only_the_matrices_of_blocks():
    config = tiny(optimizer__name="muon")
    model, params = tiny_model()
    state = make_optimizer(config.optimizer, model.infos).init(params)
    kept = {path for path in flat_paths(state) if "'muon'" in path and ".mu[" in path}
    assert {path.split("sublayer']['")[1].split("'")[0] for path in kept} == {
        "qkv", "out", "up", "down",
    }  # fmt: skip
    assert len(kept) == 4


def flat_paths(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def test_muon_updates_are_orthogonal_per_layer_and_for_q_k_and_v():
    config = tiny(optimizer__name="muon", optimizer__weight_decay=0.0)
    model, params = tiny_model()
    transform = make_optimizer(config.optimizer, model.infos)
    updates, _ = jax.jit(transform.update)(noisy(params), transform.init(params), params)
    qkv = flat(updates)["blocks/all/attn/sublayer/qkv/kernel"].reshape(2, 16, 3, 16)
    for layer in range(2):
        for part in range(3):
            singular = np.linalg.svd(qkv[layer, :, part], compute_uv=False)
            # RMS 0.2 of a 16 x 16 matrix; five iterations do not bring the smallest value to 1
            assert singular[-2] / (0.2 * 4) > 0.6 and singular[0] / (0.2 * 4) < 1.3


def test_role_without_a_rule_is_an_error():
    model, _ = tiny_model()
    infos = model.infos | {"head": ParamInfo("rotation")}
    with pytest.raises(KeyError):
        make_optimizer(tiny(), infos)


def test_every_role_has_a_rule():
    assert set(DECAYED) == set(Role)
