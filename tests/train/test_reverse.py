"""An encoder-decoder learns to reverse sequences, which needs cross-attention and positions."""

import pytest

from gpt2_jax.data.examples.sources import RecordSource
from gpt2_jax.evaluate.translate_lines import translate_lines
from gpt2_jax.track.metrics import read_rows
from tests import tools

FLAGS = [
    "--config=translate",
    "--config.data.source=toy:reverse",
    "--config.data.val_source=toy:reverse#val",
    "--config.data.tokenizer=bpe:300",
    "--config.model.n_layer=2",
    "--config.model.n_encoder_layer=2",
    "--config.model.n_embd=64",
    "--config.model.dropout=0",
    "--config.placement.preset=pre_ln_xavier",  # with pre_ln, 560 steps are too few
    "--config.train.batch_size=32",
    "--config.train.epochs=25",
    "--config.train.sample_tokens=0",
    "--config.optimizer.label_smoothing=0",
]


@pytest.mark.slow
def test_two_blocks_learn_to_reverse(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workdir = tmp_path / "run"
    words = ("-m", "gpt2_jax", "train", *FLAGS, f"--workdir={workdir}")
    done = tools.run(*words, tmp=tmp_path, XLA_FLAGS="")  # compiled as for users
    assert done.returncode == 0, done.stderr
    pairs = list(RecordSource("translate", "toy:reverse#test").records({}))
    found = translate_lines(str(workdir), None, iter([pair.source for pair in pairs]), beam=1)
    right = [text == pair.references[0] for text, pair in zip(found, pairs, strict=True)]
    last = read_rows(workdir / "metrics.jsonl")[-1]
    print(f"{last['step']} steps, {last['perf/seconds']:.0f} s: {sum(right)} of {len(right)}")
    assert len(right) == 250 and sum(right) >= 248
