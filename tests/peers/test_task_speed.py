"""The speed benchmark of tasks: PyTorch's side does the same work as ours."""

import json
import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from benchmarks import task_peers, task_steps, task_work
from gpt2_jax.config import from_json
from gpt2_jax.model.definition import define_model
from tests.benchmarks.small_tasks import CHANGES, shrink

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


def test_translation_models_have_equal_parameters_and_train(tmp_path):
    changes = CHANGES | {"model.vocab_multiple": 1}
    task_work.prepare_translate(tmp_path, changes)
    facts = json.loads((tmp_path / "facts.json").read_text())
    config = from_json(tmp_path / "config.json")
    ours = define_model(config.model, config.placement).n_params()
    theirs = task_peers.Translation(facts, 64)
    assert sum(x.numel() for x in theirs.parameters()) == ours
    turn = task_peers.steps(tmp_path, "translate", "eager")
    first = turn()
    assert math.isfinite(first) and min(turn() for _ in range(10)) < first


def test_padding_does_not_change_translations(tmp_path):
    task_work.prepare_translate(tmp_path, CHANGES)
    facts = json.loads((tmp_path / "facts.json").read_text())
    batch = task_peers.load_batches(tmp_path / "padded.npz")[0]
    model = task_peers.Translation(facts, 64).eval()
    real = batch["segments"] > 0
    other = {
        name: torch.where(batch[f"{name[:-3]}segments"] > 0, x, 1)
        for name, x in batch.items()
        if name.endswith("ids")
    }
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[real], model(batch | other)[real])
    assert ((batch["targets"] != task_peers.IGNORED) == real).all()


def test_searches_find_the_same_texts(tmp_path):
    task_work.prepare_beam(tmp_path, CHANGES)
    ours, theirs = task_steps.searches(tmp_path)(), task_peers.searches(tmp_path, "eager")()
    assert ours == theirs and len(set(ours)) > 1


def test_a_bert_is_fine_tuned_on_tags(tmp_path):
    fields = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 128}
    transformers.BertModel(transformers.BertConfig(**fields)).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127))])
    )
    work = tmp_path / "work"
    work.mkdir()
    task_work.prepare_tag(work, tmp_path / "theirs", "toy:tags", {"mesh.data": 1})
    for turn in (
        task_steps.steps(work, "padded", "float32"),
        task_peers.steps(work, "tag", "eager"),
    ):
        first = turn()
        assert math.isfinite(first) and min(turn() for _ in range(5)) < first
