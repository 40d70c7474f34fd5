"""Fine-tuning from runs of other tasks: which parts of the model are taken, new or dropped."""

import jax
import numpy as np
import pytest

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.errors import UserError
from gpt2_jax.train import loop
from gpt2_jax.train.storage.open_run import open_run
from tests.tasks.small import small, write_data


class Place:
    """A folder with a run of masked language modeling and one of classification."""

    def __init__(self, folder):
        self.folder, self.data = folder, {}
        for task in ("mlm", "classify"):
            (folder / f"{task}_data").mkdir()
            self.data[task] = write_data(folder / f"{task}_data", task)
            assert self.train(task, task, train__steps=2) == 0

    def train(self, name, task, **changes):
        changes = {"train__sample_tokens": 0, "train__eval_every": 100} | changes
        return loop.train(small(task, self.data[task], **changes), str(self.folder / name))

    def begin(self, name, task, source, **changes):
        """Trains from a run, without fields that its weights determine."""
        config = small(task, self.data[task], train__steps=1, train__sample_tokens=0)
        default = configs.flatten(Config())
        unset = {n: v for n, v in default.items() if n.startswith("model.")}
        unset["data.tokenizer"] = default["data.tokenizer"]
        given = {"train.init_from": str(self.folder / source), "optimizer.peak_lr": 1e-30}
        return loop.train(configs.replace(config, unset | given | changes), str(self.folder / name))

    def params(self, name):
        params = open_run(str(self.folder / name)).params
        return jax.tree.map(np.asarray, params)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("heads"))


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, atol=1e-12) for x, y in pairs)


def test_another_task_gets_a_new_head(place, capsys):
    assert place.begin("tuned", "classify", "mlm") == 0
    said = capsys.readouterr().out
    new = "head.bias, head.dense.bias, head.dense.kernel, head.kernel"
    assert f"weights from {place.folder / 'mlm'}@2; new: {new}; not used: " in said
    assert "not used: mlm.bias, mlm.dense.bias" in said
    tuned, source = place.params("tuned"), place.params("mlm")
    assert tuned.keys() == source.keys() - {"mlm"} | {"head"}
    for name in tuned.keys() - {"head"}:
        assert same(tuned[name], source[name])
    assert np.abs(tuned["head"]["kernel"]).max() > 0
    assert place.begin("tuned", "classify", "mlm") == 0  # finished


def test_the_same_task_takes_the_head(place, capsys):
    assert place.begin("again", "classify", "classify") == 0
    assert f"weights from {place.folder / 'classify'}@2\n" in capsys.readouterr().out
    assert same(place.params("again"), place.params("classify"))


def test_other_labels_get_a_new_head(place, capsys):
    """Also if there are as many of them."""
    folder = place.folder / "renamed"
    folder.mkdir()
    data = write_data(folder, "classify")
    for path in folder.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"label": "blue"', '"label": "teal"'))
    place.data["classify"], before = data, place.data["classify"]
    try:
        assert place.begin("teal", "classify", "classify") == 0
    finally:
        place.data["classify"] = before
    said = "; new: head.bias, head.kernel; not used: head.bias, head.kernel\n"
    assert said in capsys.readouterr().out
    assert not same(place.params("teal")["head"], place.params("classify")["head"])


def test_other_architectures_and_sizes_are_refused(place):
    with pytest.raises(UserError) as found:
        place.begin("refused", "classify", "mlm", **{"model.n_embd": 32})
    assert "model.n_embd=32, but the weights of" in str(found.value)
    place.data["translate"] = write_data(place.folder, "translate")
    with pytest.raises(UserError) as found:
        place.begin("refused", "translate", "mlm")
    assert "have model.architecture=encoder, but task.name=translate needs" in str(found.value)
    assert not (place.folder / "refused").exists()
