"""Distillation: its term in the loss, and runs that learn from a teacher."""

import jax
import numpy as np
import pytest

from gpt2_jax.config import from_json, replace
from gpt2_jax.config.check import check
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.train import loop
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.distillation import BoundTeacher, Teacher, divergence
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.pretrained import PretrainedSource
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.train.teacher import check_teacher
from tests.runs import config, losses
from tests.tools import noisy, tiny
from tests.train.distributed.test_sharding import batch


def test_divergence_is_that_of_the_softened_predictions():
    rng = np.random.default_rng(0)
    teacher, student = rng.standard_normal((2, 1, 2, 5)) * 3
    padding = np.full((1, 2, 3), np.finfo(np.float32).min)
    padded = [np.concatenate([x, padding], -1) for x in (teacher, student)]
    got = divergence(*map(jax.numpy.float32, padded), temperature=0.5, n_ids=5)
    p, q = (np.exp(x / 0.5) / np.exp(x / 0.5).sum(-1, keepdims=True) for x in (teacher, student))
    np.testing.assert_allclose(got, (p * np.log(p / q)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(divergence(teacher, teacher, 2.0, 5), 0, atol=1e-6)


def test_loss_is_a_weighted_sum():
    made = tiny()
    model = define_model(made.model, made.placement)
    params = noisy(model.init(jax.random.key(0)))
    bound = BoundTeacher(Teacher(model, 0, 0.25, 2.0), model, params)
    tokens = np.arange(12)[None] % 11
    logits = model.bind(noisy(params, seed=1))(tokens)
    nll = np.full((1, 12), 3.0)
    kl = divergence(model.bind(params)(tokens), logits, 2.0, 11)
    assert kl.min() > 1e-4
    np.testing.assert_allclose(bound.mixed(nll, logits, tokens), 0.75 * 3 + 0.25 * 4 * kl, 1e-5)


def test_devices_and_accumulation_do_not_change_the_loss():
    found = []
    for (data, fsdp, tensor), parts in (((1, 1, 1), 1), ((2, 2, 2), 2)):
        fields = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
        fields |= {"train__teacher": "x", "train__accumulation": parts, "model__unroll": False}
        made = tiny(**fields)
        wide = tiny(model__n_embd=32, model__n_layer=1)
        model = define_model(wide.model, wide.placement)
        teacher = Teacher(model, 0, 0.5, 2.0)
        program = compile_step(made, teacher=teacher)
        params = noisy(model.init(jax.random.key(1)))
        shardings = make_layout(model, program.mesh).shardings(params)
        program = program.taught(jax.device_put(params, shardings))
        state, rows = program.init(), []
        for _ in range(4):
            state, metrics = program.step(state, program.put(batch(0)))
            rows.append([metrics["loss"].item(), metrics["grad_norm"].item()])
        found.append(np.array(rows))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert found[0][-1, 0] < found[0][0, 0] - 0.01


def test_run_learns_from_a_teacher_and_resumes(source, text_file, tmp_path):
    given = config(text_file, train__teacher=str(source), train__steps=10, model__n_layer=1)
    given = replace(given, {"train.eval_every": 5, "optimizer.schedule": "constant"})
    given = replace(given, {"train.teacher_weight": 0.9})
    assert loop.train(replace(given, {"train.steps": 5}), str(tmp_path / "run")) == 0
    assert loop.train(given, str(tmp_path / "run")) == 0
    assert loop.train(given, str(tmp_path / "whole")) == 0
    alone = replace(given, {"train.teacher": None, "train.teacher_weight": 0.5})
    assert loop.train(alone, str(tmp_path / "alone")) == 0
    runs = [open_run(str(tmp_path / name)).params for name in ("run", "whole", "alone")]
    jax.tree.map(np.testing.assert_array_equal, *runs[:2])
    assert losses(tmp_path / "run")[0] == losses(tmp_path / "alone")[0]
    assert abs(losses(tmp_path / "run")[10] - losses(tmp_path / "alone")[10]) > 1e-3
    stored = from_json(tmp_path / "run" / "config.json")
    assert stored.train.teacher == f"{source}@20"


def test_teacher_that_does_not_fit_is_refused(text_file, tmp_path):
    made = config(text_file)
    other = PretrainedSource(tmp_path, replace(made, {"data.tokenizer": "gpt2"}), "a@20")
    with pytest.raises(UserError, match=r"a@20 has data\.tokenizer=gpt2 with 257 ids"):
        check_teacher(made.model, made.data, other)
    encoder = replace(made, {"model.architecture": "encoder"})
    message = r"train\.teacher=a@20 has model\.architecture=encoder, but the run has .*=decoder"
    with pytest.raises(UserError, match=message):
        check_teacher(made.model, made.data, PretrainedSource(tmp_path, encoder, "a@20"))
    short = PretrainedSource(tmp_path, replace(made, {"model.n_positions": 8}), "a@20")
    with pytest.raises(UserError, match=r"longer than the 8 positions of train\.teacher=a@20"):
        check_teacher(made.model, made.data, short)
    with pytest.raises(UserError, match=r"train\.teacher=.*nothing"):
        loop.train(replace(made, {"train.teacher": str(tmp_path / "nothing")}), str(tmp_path / "r"))
    with pytest.raises(UserError, match=r"train\.temperature has no effect without train\.teacher"):
        check(replace(made, {"train.temperature": 3.0}))
    with pytest.raises(UserError, match="supported by `gpt2-jax train` alone"):
        compile_step(replace(made, {"train.teacher": "x"}))
