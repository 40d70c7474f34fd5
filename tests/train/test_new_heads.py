"""Weights of another task: the body is taken, and a head that does not fit is new."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gpt2_jax.errors import UserError
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.heads import HeadSpec
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.pretrained import load_pretrained, open_source
from gpt2_jax.train.storage.open_run import open_run
from tests import tools
from tests.interop import towers

CASES = [
    (HeadSpec("tokens", 5), "new: head.bias, head.kernel; not used: head.dense.bias, head."),
    (HeadSpec("sequence", 5), "new: head.bias, head.kernel"),
    (HeadSpec("sequence", 5, "mean"), "new: head.bias, head.kernel; not used: head.dense.bias, "),
    (HeadSpec("mlm"), "new: mlm.bias, mlm.dense.bias, mlm.dense.kernel, mlm.norm.bias, mlm.norm."),
]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A BERT without a task, with its pooler."""
    folder = tmp_path_factory.mktemp("bert")
    fields = towers.ENCODERS["bert"] | {"architectures": ["BertModel"]}
    tensors = towers.values(towers.class_shapes("bert", "BertModel"))
    towers.write(folder / "theirs", fields, tensors)
    import_model(str(folder / "theirs"), str(folder / "run"))
    return folder / "run"


def load(workdir, head, say=lambda line: None, **changes):
    """Returns the loaded and the initial parameters of a model with another head."""
    config = open_run(str(workdir), devices=1).config
    if changes:
        config = tools.tiny(**changes)
    model_def = define_model(config.model, config.placement, head=head)
    initial = model_def.init(jax.random.key(3))
    mesh = make_mesh(config.train, config.mesh, 0)
    source = replace(open_source(str(workdir)), config=config)
    weights = load_pretrained(source, mesh, head, say=say)
    return model_def.with_weights(initial, weights), initial


@pytest.mark.parametrize(("head", "said"), CASES)
def test_a_head_of_another_task_is_new(imported, head, said):
    lines: list[str] = []
    params, initial = load(imported, head, lines.append)
    before = open_run(str(imported), devices=1).params
    for name in ("embedding", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, params[name], before[name])
    assert len(lines) == 1 and said in lines[0], lines
    if head.kind == "sequence" and head.pool == "cls":  # the pooler fits
        jax.tree.map(
            np.testing.assert_array_equal, params["head"]["dense"], before["head"]["dense"]
        )
        new = {name: params["head"][name] for name in ("kernel", "bias")}
        old = {name: initial["head"][name] for name in new}
    else:
        part = "mlm" if head.kind == "mlm" else "head"
        new, old = params[part], initial[part]
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_another_body_is_refused(imported):
    with pytest.raises(UserError, match="do not fit the model"):
        load(imported, HeadSpec("lm"), model__n_embd=24)
